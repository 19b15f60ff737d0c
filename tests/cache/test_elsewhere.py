"""What is staged on one host and read on another: two host names, SSDs that the other one does not see, HTTP between them.

Each tier here has a clock that runs fast, so that what is waited for in vain is over soon.
"""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.cache.rigs import FastClock, Rig, in_threads, noise, opened, volume_folder, wait_until
from tests.nodes.rig import SECRET, secret_set
from tieredfs.cache import peer_protocol as protocol
from tieredfs.cache import peers
from tieredfs.cache.peer_server import PeerServer
from tieredfs.cache.staged_files import StagedFiles
from tieredfs.chunk.node_client import Call, NodeClient
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.core.capability import Right, Verb
from tieredfs.core.file_life import FileState
from tieredfs.errors import StaleError, UnavailableError
from tieredfs.limits import KIB, MIB, STAGED_PART_BYTES
from tieredfs.model import InodeId
from tieredfs.volume.peering import Listening, announce_again, served

BLOCK = 64 * KIB
DATA = noise(5 * BLOCK + 123)
NUMBERS = itertools.count()
LISTENING = Listening(("127.0.0.1", 0), SECRET.encode())


class Recorder(StagedFiles):
    """What was asked of a host. With a `gate`, parts wait for it."""

    def __init__(self, owner: Rig) -> None:
        super().__init__(owner.meta, owner.host)
        self.parts: list[tuple[int, int]] = []
        self.looks = 0
        self.gate: threading.Event | None = None

    def look(self, cache_uuid: str, inode: InodeId, version: int) -> protocol.Staged:
        self.looks += 1
        return super().look(cache_uuid, inode, version)

    def read_into(self, cache_uuid: str, inode: InodeId, version: int, offset: int, target: memoryview) -> int:
        self.parts.append((offset, len(target)))
        if self.gate is not None:
            assert self.gate.wait(20)
        return super().read_into(cache_uuid, inode, version, offset, target)


@contextmanager
def serving(owner: Rig) -> Iterator[tuple[PeerServer, Recorder]]:
    with served(owner.volume, LISTENING) as server:
        server.files = recorder = Recorder(owner)
        yield server, recorder


Hosts = tuple[Rig, Rig]
"""The owner, and the reader."""


@contextmanager
def two_hosts(*, drains: bool = True, **settings: Any) -> Iterator[Hosts]:
    with ExitStack() as stack:
        stack.enter_context(secret_set())
        root = stack.enter_context(volume_folder(**settings))
        owner = stack.enter_context(opened(root, cache="a", host="host-a", start=drains))
        reader = stack.enter_context(opened(root, cache="b", host="host-b", clock=FastClock()))
        owner.files.hidden.append(str(root / "b"))
        reader.files.hidden.append(str(root / "a"))
        yield owner, reader


@pytest.fixture(scope="module")
def pair() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


@pytest.fixture
def hosts(pair: Hosts) -> Iterator[Hosts]:
    """The owner drains nothing before `drain`."""
    owner, reader = pair
    owner.blocks.hold(lambda kind, _: kind == "write")
    reader.blocks.reads.clear()
    yield pair
    reader.blocks.open_all()
    drain(owner)


def drain(owner: Rig) -> None:
    owner.blocks.open_all()
    owner.flush()


def put(owner: Rig, data: bytes) -> InodeId:
    return owner.put(f"file-{next(NUMBERS)}", data)


def copies(reader: Rig, inode: InodeId) -> list[int]:
    """Versions of it on the reader's SSD."""
    return [name.version for name in reader.ssd.directory.contents() if name.inode == inode]


def filling(reader: Rig, inode: InodeId) -> list[str]:
    return [name for name in os.listdir(f"{reader.ssd.directory.path}/filling") if name.startswith(f"{inode:016x}")]


def test_a_closed_content_is_fetched_once_durable_there_and_kept_here(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner) as (_, asked):
        inode = put(owner, DATA)
        assert reader.get(inode) == DATA
        assert sorted(asked.parts) == [(at, min(BLOCK, len(DATA) - at)) for at in range(0, len(DATA), BLOCK)]
        path = owner.ssd.directory.content(inode, owner.meta.attributes(inode).version)
        assert path in owner.files.synced, "what another host has, no power cut takes back"
        before = len(asked.parts)
        assert reader.get(inode) == DATA
        assert (len(asked.parts), asked.looks) == (before, 1), "it is a copy now, of that version"
        drain(owner)
        assert reader.get(inode) == DATA
        assert reader.blocks.reads == [], "which the drain does not change"
        assert reader.tier.evict(inode)
        assert reader.get(inode) == DATA
        assert reader.blocks.reads, "then it comes from the store"


def test_who_closed_it_elsewhere_is_seen_by_the_next_opening(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner):
        inode = put(owner, DATA)
        assert reader.get(inode) == DATA
        for turn in range(5):
            owner.change(inode, b"turn %d" % turn)
            assert reader.get(inode) == b"turn %d" % turn + DATA[6:]
        assert copies(reader, inode) == [reader.meta.attributes(inode).version], "copies of before are gone"


def test_holes_do_not_travel(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner) as (_, asked):
        inode, file = owner.create(f"sparse-{next(NUMBERS)}")
        os.pwrite(file.descriptor, b"in the middle", 40 * MIB)
        os.ftruncate(file.descriptor, 80 * MIB)
        owner.tier.release(file, writer=True)
        found = reader.get(inode)
        assert len(found) == 80 * MIB
        assert found.strip(b"\0") == b"in the middle"
        assert found.index(b"in the middle") == 40 * MIB
        assert sum(length for _, length in asked.parts) <= BLOCK
        empty = put(owner, b"")
        assert reader.get(empty) == b""


def test_a_content_that_is_being_written_is_read_as_it_is_and_not_kept(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner):
        inode, file = owner.create(f"log-{next(NUMBERS)}")
        owner.files.write(file.descriptor, [DATA], 0)
        owner.tier.publish(file)
        assert reader.get(inode) == DATA
        assert copies(reader, inode) == []
        assert filling(reader, inode) == []
        owner.files.write(file.descriptor, [b"more"], len(DATA))
        owner.tier.publish(file)
        assert reader.get(inode) == DATA + b"more"
        owner.tier.release(file, writer=True)
        assert reader.get(inode) == DATA + b"more"
        assert copies(reader, inode) == [reader.meta.attributes(inode).version], "closed, it is kept"


def test_what_is_written_to_again_while_it_is_fetched_is_never_mixed(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner) as (_, asked):
        inode = put(owner, DATA)
        asked.gate = threading.Event()
        held = reader.tier.open_read(inode, fill_before=0)
        wait_until(lambda: asked.parts, "the host was asked")
        owner.change(inode, b"second")
        asked.gate.set()
        assert held.fill is not None
        with pytest.raises(StaleError, match="host-a"):
            held.fill.wait_whole()
        assert reader.get(inode) == b"second" + DATA[6:]
        reader.tier.release(held, writer=False)
        asked.gate = threading.Event()
        got: list[bytes] = []
        opener = threading.Thread(target=lambda: got.append(reader.get(inode)), daemon=True)
        reader.tier.evict(inode)
        asked.parts.clear()
        opener.start()
        wait_until(lambda: asked.parts, "a small file is fetched before its opening returns")
        owner.change(inode, b"third!")
        asked.gate.set()
        opener.join(20)
        assert got == [b"third!" + DATA[6:]], "so that one begins anew"


def test_an_opening_does_not_join_a_fetch_of_what_was_there_before(hosts: Hosts) -> None:
    owner, reader = hosts
    inode = put(owner, DATA)
    drain(owner)
    reader.blocks.hold(lambda kind, _: kind == "read")
    held = reader.tier.open_read(inode, fill_before=0)
    wait_until(lambda: reader.blocks.waiting, "the first fetch is under way")
    owner.change(inode, b"second")
    drain(owner)
    got: list[bytes] = []
    opener = threading.Thread(target=lambda: got.append(reader.get(inode)), daemon=True)
    opener.start()
    wait_until(lambda: len(filling(reader, inode)) == 2, "another one began")
    reader.blocks.open_all()
    opener.join(20)
    assert got == [b"second" + DATA[6:]]
    assert held.fill is not None
    held.fill.wait_whole()
    assert os.pread(held.descriptor, len(DATA), 0) == DATA, "whoever had it open has what it was"
    reader.tier.release(held, writer=False)
    assert copies(reader, inode) == [reader.meta.attributes(inode).version]


def test_the_store_takes_over_where_the_drain_was_faster(hosts: Hosts) -> None:
    owner, reader = hosts
    with ExitStack() as stack:
        _, asked = stack.enter_context(serving(owner))
        inode = put(owner, DATA)
        asked.gate = threading.Event()
        held = reader.tier.open_read(inode, fill_before=0)
        wait_until(lambda: asked.parts, "the host was asked")
        drain(owner)
        assert owner.tier.evict(inode)
        asked.gate.set()
        assert held.fill is not None
        held.fill.wait_whole()
        assert os.pread(held.descriptor, len(DATA), 0) == DATA
        reader.tier.release(held, writer=False)
        assert reader.blocks.reads
        assert reader.state(inode) is FileState.RESIDENT


def test_a_host_that_ends_in_the_middle_comes_back_elsewhere_and_the_reader_goes_on(hosts: Hosts) -> None:
    owner, reader = hosts
    inode = put(owner, DATA)
    with serving(owner) as (_, asked):
        asked.gate = threading.Event()
        held = reader.tier.open_read(inode, fill_before=0)
        wait_until(lambda: asked.parts, "the host was asked")
        gate = asked.gate
    with serving(owner) as (_, asked):
        gate.set()
        assert held.fill is not None
        held.fill.wait_whole()
        assert os.pread(held.descriptor, len(DATA), 0) == DATA
        assert asked.parts
    reader.tier.release(held, writer=False)


def test_without_a_server_a_reader_waits_for_the_drain_of_a_host_that_lives(hosts: Hosts) -> None:
    owner, reader = hosts
    inode = put(owner, DATA)
    got: list[bytes] = []
    opener = threading.Thread(target=lambda: got.append(reader.get(inode)), daemon=True)
    opener.start()
    opener.join(0.05)
    assert opener.is_alive()
    drain(owner)
    opener.join(20)
    assert got == [DATA]


@pytest.mark.allows_warnings("a reader was told")
def test_in_vain_it_is_told_which_host_has_it_and_what_helps() -> None:
    with two_hosts(drains=False) as (owner, reader):
        inode = put(owner, DATA)
        with pytest.raises(UnavailableError, match=r"host host-a and not stored yet.*TIEREDFS_PEER_LISTEN"):
            reader.get(inode)
        assert reader.tier.find(inode) is None
        owner.close()
        assert reader.ssd.elsewhere.wait_s(owner.tier.cache) == 0, "nobody of that host lives: no wait is worth while"
        with pytest.raises(UnavailableError, match="host-a"):
            reader.get(inode)
        again = Rig(owner.root, cache="a", host="host-a")
        try:
            again.flush()
            assert reader.get(inode) == DATA
        finally:
            again.close()
            owner.close = lambda: None  # type: ignore[method-assign]  # it is


@pytest.mark.allows_warnings("a reader was told")
def test_a_host_that_says_nothing_is_not_waited_for_for_long(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEER_SILENCE_S", 0.2)
    owner, reader = hosts
    with socket.create_server(("127.0.0.1", 0)) as silent:
        inode = put(owner, DATA)
        address = protocol.address_of("127.0.0.1", silent.getsockname()[1], tls=False)
        owner.meta.announce_peer(owner.volume.session, address)
        done = threading.Event()

        def open_it() -> None:
            with pytest.raises(UnavailableError, match="host-a"):
                reader.get(inode)
            done.set()

        threading.Thread(target=open_it, daemon=True).start()
        assert done.wait(30)


class Wire:
    """A relay to a server that flips a bit in each of the first `flips` large pieces of answers."""

    def __init__(self, target: int, flips: int) -> None:
        self._target = target
        self.flips = flips
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._relay, args=(source, sink, answers), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError), source, sink:  # the other direction ended
            while data := bytearray(source.recv(1 << 20)):
                if answers and self.flips and len(data) > 1000:
                    self.flips -= 1
                    data[-1] ^= 4
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.allows_warnings("a reader was told")
def test_bytes_that_did_not_arrive_as_they_were_sent_are_fetched_again_or_not_served(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner) as (server, asked):
        wire = Wire(server.server_address[1], 3)
        try:
            owner.meta.announce_peer(owner.volume.session, protocol.address_of("127.0.0.1", wire.port, tls=False))
            inode = put(owner, DATA)
            assert reader.get(inode) == DATA
            assert wire.flips == 0
            assert 6 < len(asked.parts) <= 6 + 3, "once more for each answer that was hit, some perhaps in two pieces"
            wire.flips = 1 << 30
            other = put(owner, DATA)
            with pytest.raises(UnavailableError, match="did not arrive as host host-a sent them"):
                reader.get(other)
            assert wire.flips < 1 << 30
        finally:
            wire.close()


@pytest.mark.allows_warnings("a reader was told")
def test_nothing_is_anonymous(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, reader = hosts
    with serving(owner) as (server, asked):
        inode = put(owner, DATA)
        volume, cache = owner.volume.config.uuid, owner.ssd.directory.uuid
        version = owner.meta.attributes(inode).version
        path = protocol.content_url(volume, cache, inode, version)
        name = protocol.content_name(inode, version)

        def ask(secret: str, right: Right) -> int:
            client = NodeClient(protocol.parse_address(server.address), secret.encode(), reader.host.clock)
            try:
                with client.call(Call("GET", path, right)) as answer:
                    return len(answer.read())
            finally:
                client.close()

        assert ask(SECRET, Right(Verb.STAGED, volume, cache, name)) > 0
        for secret, right in (
            ("not the secret of anybody", Right(Verb.STAGED, volume, cache, name)),
            (SECRET, Right(Verb.READ, volume, cache, name)),
            (SECRET, Right(Verb.STAGED, volume, cache, protocol.content_name(inode, version + 1))),
            (SECRET, Right(Verb.STAGED, "another", cache, name)),
            (SECRET, Right(Verb.HURRY, volume, cache)),
        ):
            with pytest.raises(UnavailableError):
                ask(secret, right)
        looks = asked.looks
        monkeypatch.delenv(SECRET_VARIABLE)
        with pytest.raises(UnavailableError, match=SECRET_VARIABLE):
            reader.get(inode)
        assert asked.looks == looks == 1


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /v1/staged/a/b/../../../etc/passwd HTTP/1.1\r\n\r\n",
        b"POST /v1/staged/a/b/bell HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"PUT /v1/staged/a/b/bell HTTP/1.1\r\n\r\n",
        b"GET /v1/staged/a/b/0000000000000001.1 HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
def test_what_makes_no_sense_is_refused_and_others_are_served(hosts: Hosts, request_head: bytes) -> None:
    owner, reader = hosts
    with serving(owner) as (server, _):
        with socket.create_connection(("127.0.0.1", server.server_address[1]), 10) as odd:
            odd.sendall(request_head)
            odd.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := odd.recv(1 << 16):
                answer += piece
        assert b" 4" in answer.split(b"\r\n")[0] or b" 501 " in answer or b"Error code: 400" in answer
        assert reader.get(put(owner, DATA)) == DATA


def test_who_wants_to_write_has_it_drained_there_at_once(hosts: Hosts) -> None:
    """The owner drains small files 5 s after they were closed."""
    owner, reader = hosts
    with serving(owner):
        owner.blocks.open_all()
        rung: list[float] = []
        hurry = owner.ssd.drainer.hurry
        owner.ssd._bell._on_ring = lambda: (rung.append(time.monotonic()), hurry())[1]
        inode = put(owner, DATA)
        reader.change(inode, b"by the reader")
        assert rung
        assert owner.get(inode)[:13] == b"by the reader"


def test_many_readers_of_one_host_and_parts_of_full_size() -> None:
    with two_hosts(drains=False, block_bytes=2 * STAGED_PART_BYTES) as (owner, reader), serving(owner) as (_, asked):
        data = noise(2 * STAGED_PART_BYTES + 5)
        inode = put(owner, data)
        assert in_threads([lambda: reader.get(inode)] * 6) == [data] * 6
        assert sorted(asked.parts) == [
            (0, STAGED_PART_BYTES),
            (STAGED_PART_BYTES, STAGED_PART_BYTES),
            (2 * STAGED_PART_BYTES, 5),
        ]


@pytest.mark.allows_warnings("this process did not run for so long")
def test_a_revived_session_is_found_again(hosts: Hosts) -> None:
    owner, reader = hosts
    with serving(owner) as (server, _):
        owner.meta.end_session(owner.volume.session)
        assert owner.meta.peers() == []
        announce_again(owner.volume, server)
        assert owner.meta.peers() == [], "not before the session is there"
        owner.volume._beat_once()
        announce_again(owner.volume, server)
        assert [peer.address for peer in owner.meta.peers()] == [server.address]
        assert reader.get(put(owner, DATA)) == DATA
