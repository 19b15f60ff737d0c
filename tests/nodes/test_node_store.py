"""A storage node as a chunk store: conformance over a real process, who may, garbage, deaths, stalls and swapped directories."""

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import web
from tests.nodes.rig import SECRET, WAIT_S, Node, node
from tieredfs.chunk import node_client
from tieredfs.chunk.directory import DiskIdentity, chunk_path
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.node import NodeObjects, NodeSite
from tieredfs.chunk.node_client import Call, NodeClient
from tieredfs.chunk.node_protocol import ERROR_OF, STATUS_OF
from tieredfs.chunk.node_protocol import chunk_path as url_of
from tieredfs.chunk.remote import RemoteStore
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.core.capability import LIFE_S, SKEW_S, Right, Verb, make_token
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    ForeignDataError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    domain_errors,
)
from tieredfs.format.chunk import encode_header
from tieredfs.host import local_host
from tieredfs.limits import CELL_BYTES, CHUNK_HEADER_BYTES, MIB
from tieredfs.testing.chunk_suite import ChunkStoreSuite, info_of, name_of, pattern, put, read
from tieredfs.testing.dump_suite import DumpShelfSuite
from tieredfs.testing.wire_faults import FaultyWire, WireFault
from tieredfs_gateway.node.refusals import refusal_of

IDENTITY = DiskIdentity("volume-1", "disk-1")
_next = itertools.count()


def formatted(made: Node, disk: int, identity: DiskIdentity = IDENTITY, port: int | None = None) -> RemoteStore:
    site = NodeSite(made.url(disk, port), local_host())
    site.format(identity)
    store = site.open(identity)
    assert isinstance(store, RemoteStore)
    return store


def fresh(made: Node, port: int | None = None) -> tuple[int, DiskIdentity, RemoteStore]:
    """A directory of the shared node that no test has used."""
    disk = next(_next)
    identity = DiskIdentity("volume-1", f"disk-{disk}")
    return disk, identity, formatted(made, disk, identity, port)


class TestNodeStoreConforms(ChunkStoreSuite):
    @pytest.fixture(autouse=True)
    def remote(self, shared_node: Node) -> None:
        self.node = shared_node

    def new_store(self, folder: Path) -> ChunkStore:
        self.disk, _, store = fresh(self.node)
        return store

    def _path(self, name: ChunkName) -> Path:
        return Path(chunk_path(str(self.node.path(self.disk)), name))

    def raw(self, store: ChunkStore, name: ChunkName) -> bytes | None:
        path = self._path(name)
        return path.read_bytes() if path.exists() else None

    def set_raw(self, store: ChunkStore, name: ChunkName, raw: bytes | None) -> None:
        self._path(name).unlink(missing_ok=True)
        if raw is not None:
            self._path(name).parent.mkdir(exist_ok=True)
            self._path(name).write_bytes(raw)


class TestNodeDumpsConform(DumpShelfSuite):
    @pytest.fixture(autouse=True)
    def remote(self, shared_node: Node) -> None:
        self.node = shared_node

    def new_shelf(self, folder: Path) -> DumpShelf:
        self.disk, self.identity, store = fresh(self.node)
        return store.dumps

    def raw(self, shelf: DumpShelf, name: str) -> bytes | None:
        path = self.node.path(self.disk) / "metadata" / name
        return path.read_bytes() if path.exists() else None

    def set_raw(self, shelf: DumpShelf, name: str, raw: bytes | None) -> None:
        path = self.node.path(self.disk) / "metadata" / name
        path.unlink(missing_ok=True)
        if raw is not None:
            path.write_bytes(raw)

    def give_away(self, shelf: DumpShelf) -> None:
        site = NodeSite(self.node.url(self.disk), local_host())
        site.give(DiskIdentity("volume-9", self.identity.disk_uuid))


# ---- places ----------------------------------------------------------------------------------------------------------


def test_only_what_is_served_can_be_made_a_disk(shared_node: Node, tmp_path: Path) -> None:
    from dataclasses import replace

    url = replace(shared_node.url(0), path=str(tmp_path))
    for call in (NodeSite(url, local_host()).identity, lambda: NodeSite(url, local_host()).format(IDENTITY)):
        with pytest.raises(ConfigurationError, match="does not serve"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_of_another_volume_is_refused(shared_node: Node) -> None:
    disk, identity, store = fresh(shared_node)
    put(store, name_of(1), pattern(4096))
    with pytest.raises(ForeignDataError):
        formatted(shared_node, disk, DiskIdentity("volume-2", "x"))
    with pytest.raises(UnavailableError, match="no disk"):
        NodeSite(shared_node.url(disk), local_host()).open(DiskIdentity("volume-2", identity.disk_uuid))
    assert NodeSite(shared_node.url(disk), local_host()).identity() == identity


def test_a_disk_is_given_to_another_volume_by_its_own_name_only(shared_node: Node) -> None:
    disk, identity, store = fresh(shared_node)
    put(store, name_of(1), pattern(4096))
    site, new = NodeSite(shared_node.url(disk), local_host()), DiskIdentity("volume-9", identity.disk_uuid)
    with pytest.raises(ForeignDataError):
        site.give(DiskIdentity("volume-9", "another disk"))
    site.give(new)
    assert read(site.open(new), name_of(1), 0, 4096) == pattern(4096)
    with pytest.raises(UnavailableError, match="no disk"):
        read(store, name_of(1), 0, 4096)


def test_erasing_names_whose_it_is(shared_node: Node) -> None:
    disk, _, store = fresh(shared_node)
    put(store, name_of(1), pattern(4096))
    (shared_node.path(disk) / "note.txt").write_text("mine")
    NodeSite(shared_node.url(disk), local_host()).erase()
    assert not list(shared_node.path(disk).glob("chunks/*/*"))
    assert (shared_node.path(disk) / "note.txt").exists()
    with pytest.raises(UnavailableError, match="no disk"):
        read(store, name_of(1), 0, 1)


# ---- who may ---------------------------------------------------------------------------------------------------------


def ask(made: Node, method: str, path: str, token: str | None, content: bytes = b"") -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return web.request(method, f"http://127.0.0.1:{made.port}{path}", headers=headers, content=content, timeout=WAIT_S)


@pytest.fixture
def chunk(shared_node: Node) -> tuple[str, Right]:
    """The address of a chunk that is there, and the right to read it."""
    _, identity, store = fresh(shared_node)
    put(store, name_of(1), pattern(CELL_BYTES))
    path = url_of(identity.volume_uuid, identity.disk_uuid, name_of(1))
    return path, Right(Verb.READ, identity.volume_uuid, identity.disk_uuid, f"{1:016x}.00")


def test_a_right_token_works_and_nothing_else_does(shared_node: Node, chunk: tuple[str, Right]) -> None:
    from dataclasses import replace

    path, right = chunk
    now_s, secret = time.time(), SECRET.encode()
    good = make_token(secret, right, now_s)
    assert len(ask(shared_node, "GET", path, good).content) == CHUNK_HEADER_BYTES + CELL_BYTES
    wrong: dict[int, list[str | None]] = {
        401: [
            None,
            "nonsense",
            "v1.e30.e30",
            good[:-3] + "abc",
            good.replace("v1.", "v2."),
            "x" * 7000,
            make_token(b"another secret altogether", right, now_s),
            make_token(secret, right, now_s - LIFE_S - SKEW_S - 5),
            make_token(secret, right, now_s + LIFE_S + SKEW_S + 60),
        ],
        403: [
            make_token(secret, replace(right, verb=Verb.WRITE), now_s),
            make_token(secret, replace(right, chunk=f"{2:016x}.00"), now_s),
            make_token(secret, replace(right, disk="disk-x"), now_s),
            make_token(secret, replace(right, volume="volume-2"), now_s),
        ],
    }
    for status, tokens in wrong.items():
        for token in tokens:
            answer = ask(shared_node, "GET", path, token)
            assert (answer.status_code, answer.json()["error"]) == (status, "refused"), token
    assert ask(shared_node, "DELETE", path, good).status_code == 403
    assert ask(shared_node, "PUT", path, good, b"x" * 10000).status_code == 403
    assert len(ask(shared_node, "GET", path, good).content) == CHUNK_HEADER_BYTES + CELL_BYTES


def test_a_client_with_another_secret_is_told(shared_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    _, identity, _ = fresh(shared_node)
    monkeypatch.setenv("TIEREDFS_NODE_SECRET", "some other secret of somebody")
    with pytest.raises(UnavailableError, match="secret") as raised:
        NodeSite(shared_node.url(0), local_host()).open(identity)
    assert "somebody" not in str(raised.value)
    monkeypatch.delenv("TIEREDFS_NODE_SECRET")
    with pytest.raises(ConfigurationError, match="TIEREDFS_NODE_SECRET"):
        NodeSite(shared_node.url(0), local_host())


def test_the_log_of_a_node_has_no_secret(shared_node: Node) -> None:
    assert SECRET not in shared_node.log.read_text()


# ---- garbage ---------------------------------------------------------------------------------------------------------


def test_garbage_is_refused_clearly(shared_node: Node, chunk: tuple[str, Right]) -> None:
    from dataclasses import replace

    path, right = chunk
    now_s, secret = time.time(), SECRET.encode()
    write = make_token(secret, replace(right, verb=Verb.WRITE), now_s)
    payload = pattern(2 * CELL_BYTES)
    info, crcs = info_of(name_of(1), payload)
    from tieredfs.chunk.cells import header_of

    header = encode_header(header_of(info, bytes(crcs)))
    other_info, other_crcs = info_of(name_of(2), payload)
    other = encode_header(header_of(other_info, bytes(other_crcs)))
    flipped = bytearray(payload)
    flipped[CELL_BYTES + 7] ^= 1
    for content, status in (
        (b"", 400),
        (b"x", 400),
        (b"x" * 100_000, 422),
        (header, 400),
        (header + payload[:-4096], 400),
        (header + payload + b"x" * 4096, 400),
        (other + payload, 400),
        (header + bytes(flipped), 422),
        (b"\0" * len(header) + payload, 422),
    ):
        answer = ask(shared_node, "PUT", path, write, content)
        assert answer.status_code == status, answer.text
    read_token = make_token(secret, right, now_s)
    for text in ("bytes=5-3", "bytes=-5", "pages=1-2", "bytes=a-b"):
        headers = {"Authorization": f"Bearer {read_token}", "Range": text}
        answer = web.get(f"http://127.0.0.1:{shared_node.port}{path}", headers=headers)
        assert answer.status_code == 400, text
    for strange in (
        "/v1/disks",
        "/v1/disks/a/b/chunks/xyz",
        "/v1/places",
        "/v1/places?path=" + "a" * 5000,
        "/%00",
        "/..",
    ):
        assert 400 <= ask(shared_node, "GET", strange, read_token).status_code < 500, strange
    assert ask(shared_node, "PUT", "/v1/places?path=/x", read_token, b"{" * 50_000).status_code == 400
    assert ask(shared_node, "POST", path, read_token).status_code == 405
    whole = ask(shared_node, "GET", path, read_token).content
    assert whole[CHUNK_HEADER_BYTES:] == pattern(CELL_BYTES), "it is what it was"


def test_no_garbage_is_left_in_the_directory(shared_node: Node) -> None:
    assert [path for disk in range(next(_next)) for path in shared_node.path(disk).glob("incoming/*")] == []


def test_bytes_that_are_no_http_end_the_connection_only(shared_node: Node) -> None:
    for garbage in (os.urandom(4096), b"GET / HTTP/9.9\r\n\r\n", b"PUT /v1 HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", shared_node.port), timeout=WAIT_S) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert shared_node.answers()


def test_an_upload_that_breaks_off_leaves_nothing(shared_node: Node) -> None:
    disk, identity, store = fresh(shared_node)
    info, crcs = info_of(name_of(1), pattern(8 * MIB))
    from tieredfs.chunk.cells import header_of

    path = url_of(identity.volume_uuid, identity.disk_uuid, name_of(1))
    right = Right(Verb.WRITE, identity.volume_uuid, identity.disk_uuid, f"{1:016x}.00")
    token = make_token(SECRET.encode(), right, time.time())
    length = CHUNK_HEADER_BYTES + 8 * MIB
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
    incoming = shared_node.path(disk) / "incoming"
    with socket.create_connection(("127.0.0.1", shared_node.port), timeout=WAIT_S) as connection:
        connection.sendall(head.encode() + encode_header(header_of(info, bytes(crcs))) + pattern(5 * MIB))
        wait_for(lambda: list(incoming.iterdir()) != [])
    wait_for(lambda: list(incoming.iterdir()) == [])
    assert list(store.names()) == []


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# ---- wires on bad days -----------------------------------------------------------------------------------------------


@pytest.fixture
def wire(shared_node: Node) -> Iterator[FaultyWire]:
    made = FaultyWire(shared_node.port)
    yield made
    made.close()


@pytest.mark.parametrize("fault", [WireFault.RESET, WireFault.LOST])
def test_a_kept_connection_that_fails_is_replaced(shared_node: Node, wire: FaultyWire, fault: WireFault) -> None:
    _, _, store = fresh(shared_node, wire.port)
    for method, call in (
        ("PUT", lambda: put(store, name_of(1), pattern(CELL_BYTES))),
        ("GET", lambda: read(store, name_of(1), 0, CELL_BYTES)),
        ("DELETE", lambda: store.delete(name_of(1))),
    ):
        wire.fail(method, fault, times=1)
        call()
    assert wire.happened == {fault: 3}
    wire.fail("PUT", fault)
    with pytest.raises(UnavailableError):
        put(store, name_of(1), pattern(CELL_BYTES))


def test_an_answer_that_breaks_off_is_unavailable_not_damaged(shared_node: Node, wire: FaultyWire) -> None:
    _, _, store = fresh(shared_node, wire.port)
    put(store, name_of(1), pattern(4 * CELL_BYTES))
    wire.fail("GET", WireFault.TORN, after_bytes=2 * CELL_BYTES)
    with pytest.raises(UnavailableError):
        read(store, name_of(1), 0, 4 * CELL_BYTES)
    wire.fail("GET", WireFault.BUSY)
    with pytest.raises(UnavailableError, match="no storage node"):
        read(store, name_of(1), 0, 4 * CELL_BYTES)
    wire.heal()
    assert read(store, name_of(1), 0, 4 * CELL_BYTES) == pattern(4 * CELL_BYTES)


def test_what_says_nothing_is_left(shared_node: Node, wire: FaultyWire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_client, "REMOTE_SILENCE_S", 0.5)
    _, identity, store = fresh(shared_node, wire.port)
    put(store, name_of(1), pattern(CELL_BYTES))
    wire.fail("GET", WireFault.HANG)
    assert isinstance(store.objects, NodeObjects)
    client = NodeClient(shared_node.url(0, wire.port), SECRET.encode(), local_host().clock)
    path = url_of(identity.volume_uuid, identity.disk_uuid, name_of(1))
    right = Right(Verb.READ, identity.volume_uuid, identity.disk_uuid, f"{1:016x}.00")
    with pytest.raises(UnavailableError), client.call(Call("GET", path, right, silence_s=0.5)):
        pass
    assert wire.happened == {WireFault.HANG: 1}, "a call that waited is not sent again"


def test_connections_are_kept_and_a_whole_chunk_is_one_request(shared_node: Node, wire: FaultyWire) -> None:
    _, _, store = fresh(shared_node, wire.port)
    for block in range(5):
        put(store, name_of(block), pattern(2 * CELL_BYTES))
    wire.requests.clear()
    for block in range(5):
        assert read(store, name_of(block), 0, 2 * CELL_BYTES) == pattern(2 * CELL_BYTES)
    assert wire.requests == {"GET": 5}
    assert wire.connections == 1


# ---- nodes on bad days -----------------------------------------------------------------------------------------------


def test_a_node_that_was_killed_is_unavailable_until_it_is_back() -> None:
    with node() as made:
        store = formatted(made, 0)
        put(store, name_of(1), pattern(CELL_BYTES))
        made.stop(signal.SIGKILL)
        for call in (
            lambda: read(store, name_of(1), 0, 1),
            lambda: put(store, name_of(2), pattern(CELL_BYTES)),
            lambda: store.delete(name_of(1)),
            lambda: list(store.names()),
            lambda: store.info(name_of(1)),
        ):
            with pytest.raises(UnavailableError):
                call()
        made.start()
        assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)
        put(store, name_of(2), pattern(CELL_BYTES))


def test_a_node_killed_in_a_put_leaves_the_chunk_absent_or_whole() -> None:
    with node() as made:
        for point, present in (("chunk.written", False), ("chunk.published", True)):
            made.stop()
            made.environment["TIEREDFS_CRASH_AT"] = point
            made.start()
            store = formatted(made, 0)
            with pytest.raises(UnavailableError):
                put(store, name_of(1), pattern(CELL_BYTES))
            assert made.process is not None
            assert made.process.wait(WAIT_S) == -signal.SIGKILL, "the crash happened"
            del made.environment["TIEREDFS_CRASH_AT"]
            made.start()
            assert (list(store.names()) == [name_of(1)]) is present
            assert list((made.path() / "incoming").iterdir()) == []
            if present:
                assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)


def test_a_node_that_has_another_directory_now_is_not_read_from() -> None:
    with node(2) as made:
        first, second = formatted(made, 0, DiskIdentity("v", "a")), formatted(made, 1, DiskIdentity("v", "b"))
        put(first, name_of(1), pattern(CELL_BYTES, 1))
        put(second, name_of(1), pattern(CELL_BYTES, 2))
        made.path(0).rename(made.root / "aside")
        made.path(1).rename(made.path(0))
        with pytest.raises(UnavailableError, match="no disk a"):
            read(first, name_of(1), 0, CELL_BYTES)
        assert read(second, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES, 2), "a disk is found by what it is"
        made.stop()
        (made.root / "aside").rename(made.path(1))
        made.start()
        assert read(first, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES, 1)


def test_the_table_of_errors_is_whole_and_goes_both_ways() -> None:
    for error, (status, code) in STATUS_OF.items():
        assert ERROR_OF[code] is error
        assert 400 <= status < 600
    for kind in domain_errors():
        refusal = refusal_of(kind("why"))
        assert (refusal.status, refusal.code) == STATUS_OF.get(kind, (500, "failed"))
        assert ERROR_OF[refusal.code] in {
            *(NotFoundError, UnavailableError, NoSpaceError, CorruptError),
            *(ForeignDataError, ConfigurationError),
            *STATUS_OF,
        }
    assert (
        json.loads(refusal_of(ValueError("a secret of ours")).body())["message"] == "the node failed; its log says why"
    )


def test_many_threads_at_once_have_connections_of_their_own(shared_node: Node) -> None:
    _, _, store = fresh(shared_node)
    wrong: list[int] = []

    def work(block: int) -> None:
        put(store, name_of(block), pattern(CELL_BYTES, block))
        if read(store, name_of(block), 0, CELL_BYTES) != pattern(CELL_BYTES, block):
            wrong.append(block)

    threads = [threading.Thread(target=work, args=(block,)) for block in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong
    assert len(list(store.names())) == 24
