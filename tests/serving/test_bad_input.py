"""What broken and hostile clients send to the dataset gateway: each is told, and it serves on."""

import asyncio
import contextlib
import json
import os
import socket
import time
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from tests import web
from tests.serving.rig import SOURCE, WAIT_S, Gateway
from tieredfs_gateway.datasets.app import BODY_BYTES_MAX, bounded
from tieredfs_gateway.datasets.local_socket import LOANS_MAX, socket_address


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.fixture(autouse=True)
def alive(served: Gateway) -> Any:
    yield
    assert served.process is not None
    assert served.process.poll() is None
    asked = {"source": SOURCE, "batch_size": 1000}
    opened = web.post(f"{served.url}/v1/sessions", json=asked, timeout=WAIT_S)
    assert opened.status_code == 201
    assert web.delete(f"{served.url}/v1/sessions/{opened.json()['session']}", timeout=WAIT_S).status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[" * 100_000, 400, "bad_request"),
        (b"\xff\xfe", 400, "bad_request"),
        (b'{"source": "\\ud800", "batch_size": 1}', 400, "bad_request"),
        (b'{"source": "a\\u0000b", "batch_size": 1}', 400, "bad_request"),
        (b'{"source": "../../etc/passwd", "batch_size": 1}', 400, "bad_request"),
        (b'{"source": "a", "batch_size": ' + b"9" * 5000 + b"}", 400, "bad_request"),
        (json.dumps({"source": SOURCE, "batch_size": 1, "filter": "(" * 16_000}).encode(), 400, "bad_request"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "too_large"),
    ],
    ids=["deep", "not UTF-8", "surrogate", "NUL", "climbing", "number", "filter", "large"],
)
def test_bodies_that_make_no_sense(served: Gateway, body: bytes, status: int, code: str) -> None:
    headers = {"content-type": "application/json"}
    answer = web.post(f"{served.url}/v1/sessions", content=body, headers=headers, timeout=WAIT_S)
    assert (answer.status_code, code_of(answer)) == (status, code)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/sessions/%00/count", 404),
        ("/v1/sessions/%ff", 404),
        ("/v1/sessions/..%2f..", 404),
        ("/v1/sessions/" + "x" * 65, 400),
        ("/v1/sessions/x/batches?epoch=1e3", 400),
        ("/%ff", 404),
    ],
)
def test_paths_that_make_no_sense(served: Gateway, path: str, status: int) -> None:
    answer = web.get(f"{served.url}{path}", timeout=WAIT_S)
    assert answer.status_code == status
    assert code_of(answer)


def test_who_asks_in_a_wrong_way_is_told_the_right_ones(served: Gateway) -> None:
    answer = web.request("TRACE", f"{served.url}/healthz", timeout=WAIT_S)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("rest", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", b"Content-Length: 10\r\n\r\n{"])
def test_bodies_that_end_wrongly(served: Gateway, rest: bytes) -> None:
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_S) as connection:
        connection.sendall(head + rest)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def read() -> None:
        await bounded(silent, wait_s=0.01)()

    with pytest.raises(HTTPException) as caught:
        asyncio.run(asyncio.wait_for(read(), WAIT_S))
    assert caught.value.status_code == 408


@pytest.mark.parametrize("wrong", ['"epoch": 1e999', '"batch": {}', '"stride": "x"', '"token": 5', '"token": ["x"]'])
def test_packets_that_make_no_sense(served: Gateway, wrong: str) -> None:
    asked = {"source": SOURCE, "batch_size": 1}
    opened = web.post(f"{served.url}/v1/sessions", json=asked, timeout=WAIT_S).json()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as trainer:
        trainer.connect(socket_address(opened["local"]["socket"]))
        trainer.settimeout(WAIT_S)
        read = {"session": opened["session"], "token": None, "epoch": 0, "batch": 0, "stride": 1}
        trainer.send(b'{"read": ' + json.dumps(read).encode()[:-1] + b", " + wrong.encode() + b"}}")
        assert json.loads(trainer.recv(64 * 1024))["error"]["code"] == "bad_request"


def test_a_trainer_that_always_says_that_it_waits_has_no_more_than_so_many_slabs(served: Gateway) -> None:
    """It takes everything and gives nothing back: that ends somewhere, and with it."""
    asked = {"source": SOURCE, "batch_size": 1}
    opened = web.post(f"{served.url}/v1/sessions", json=asked, timeout=WAIT_S).json()
    name, taken = opened["local"]["socket"], 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as trainer:
        trainer.connect(socket_address(name))
        trainer.settimeout(2)
        read = {"session": opened["session"], "token": None, "epoch": 0, "batch": 0, "stride": 1}
        trainer.send(json.dumps({"read": read, "loans": 2}).encode())
        with contextlib.suppress(TimeoutError):
            while True:
                trainer.send(b'{"done": [], "waits": true}')
                packet, descriptors, _, _ = socket.recv_fds(trainer, 64 * 1024, 1)
                assert "slab" in json.loads(packet)
                for descriptor in descriptors:
                    os.close(descriptor)
                taken += 1
        assert taken == LOANS_MAX
    deadline_s = time.monotonic() + WAIT_S
    while served.metric("slabs_held") and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert served.metric("slabs_held") == 0
