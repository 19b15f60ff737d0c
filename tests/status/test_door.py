"""Who may look: everybody on this machine, or who has a token; and nobody by a name that is not this machine's."""

import asyncio
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from tests.status.examples import document
from tieredfs.errors import BusyError, ConfigurationError, UnavailableError
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.tokens import check_token, make_token
from tieredfs_gateway.status.app import COOKIE, FORM_BYTES_MAX, Door, create_app, is_loopback_name
from tieredfs_gateway.status.document import Document
from tieredfs_gateway.status.page import SERVED_POLICY
from tieredfs_gateway.status.place import SOURCE
from tieredfs_gateway.status.server import Serving, serve
from tieredfs_gateway.status.verbs import status_token

SECRET = b"a secret of at least thirty-two bytes, or so"
TOKEN = make_token(SECRET, [SOURCE], int(time.time()) + 86_400)
ANYBODY, HOLDERS = Door(None), Door(SECRET)


def ask(
    door: Door, method: str, path: str, *, host: str = "127.0.0.1:8900", away: bool = False, **options: object
) -> httpx.Response:
    def look() -> Document:
        if away:
            raise UnavailableError("the metadata does not answer")
        return document()

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(look, door))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(go())


@pytest.mark.parametrize("path", ["/", "/status.json"])
def test_without_a_secret_this_machine_may_look(path: str) -> None:
    answer = ask(ANYBODY, "GET", path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == SERVED_POLICY
    assert "train" in answer.text


@pytest.mark.parametrize("path", ["/", "/status.json"])
def test_a_web_site_that_points_its_name_here_reads_nothing(path: str) -> None:
    answer = ask(ANYBODY, "GET", path, host="evil.example:8900")
    assert answer.status_code == 403
    assert "train" not in answer.text


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1:8900", True),
        ("127.9.9.9", True),
        ("[::1]:8900", True),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_names_of_this_machine(host: str, here: bool) -> None:
    assert is_loopback_name(host) is here


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_with_a_secret_a_token_is_asked_for() -> None:
    for path in ("/", "/status.json"):
        refused = ask(HOLDERS, "GET", path, host="10.0.0.1")
        assert refused.status_code == 401
        assert "sqlite" not in refused.text
        assert ask(HOLDERS, "GET", path, host="10.0.0.1", headers=bearer(TOKEN)).status_code == 200
    assert "<form" in ask(HOLDERS, "GET", "/").text


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("nonsense", 401),
        (make_token(SECRET, [SOURCE], int(time.time()) - 5), 401),
        (make_token(SECRET[::-1], [SOURCE], int(time.time()) + 86_400), 401),
        (make_token(SECRET, ["datasets/flights"], int(time.time()) + 86_400), 403),
    ],
)
def test_other_tokens_are_refused(token: str, status: int) -> None:
    assert ask(HOLDERS, "GET", "/status.json", headers=bearer(token)).status_code == status
    entered = ask(HOLDERS, "POST", "/enter", content=urlencode({"token": token}))
    assert entered.status_code == status
    assert "set-cookie" not in entered.headers


def test_the_form_gives_a_cookie_that_opens_the_page() -> None:
    entered = ask(HOLDERS, "POST", "/enter", content=urlencode({"token": f" {TOKEN} "}))
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert ask(HOLDERS, "GET", "/", headers={"cookie": f"{COOKIE}={TOKEN}"}).status_code == 200
    encrypted = ask(Door(SECRET, secure=True), "POST", "/enter", content=urlencode({"token": TOKEN}))
    assert "secure" in encrypted.headers["set-cookie"].lower()


def test_a_form_that_is_none_is_refused() -> None:
    assert ask(HOLDERS, "POST", "/enter", content=b"\xff\xfe").status_code == 401
    assert ask(HOLDERS, "POST", "/enter", content=b"token=" + b"x" * 2 * FORM_BYTES_MAX).status_code == 401
    assert ask(ANYBODY, "POST", "/enter", content=b"token=x").status_code == 303


def test_life_is_shown_to_anybody_and_addresses_of_libraries_to_nobody() -> None:
    assert ask(HOLDERS, "GET", "/healthz", host="10.0.0.1").json() == {"status": "ok"}
    assert [ask(ANYBODY, "GET", path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3


def test_a_volume_that_was_never_seen_is_an_answer_too() -> None:
    answer = ask(ANYBODY, "GET", "/status.json", away=True)
    assert answer.status_code == 503
    assert answer.json()["message"] == "the metadata does not answer"


# ---- what is refused before anything is opened -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::"])
def test_off_this_machine_it_is_not_anonymous(host: str) -> None:
    with pytest.raises(ConfigurationError, match="status-token"):
        serve(Serving("sqlite:///nowhere/volume.db", host, 8900))


def test_a_place_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BusyError, match="cannot listen"):
            serve(Serving("sqlite:///nowhere/volume.db", "127.0.0.1", taken.getsockname()[1]))


def test_a_token_is_for_the_page_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    status_token(life=600, secret_file=secret, as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert check_token(made["token"], SECRET, SOURCE, time.time()).expires_s == made["expires_unix"]
    with pytest.raises(Refusal):
        check_token(made["token"], SECRET, "datasets/flights", time.time())
    secret.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="at least"):
        status_token(life=600, secret_file=secret, as_json=False)
