"""Dumps of the metadata on storage nodes: the machine with the database is lost, and all comes back; and nodes on bad days."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests import web
from tests.mount import volumes
from tests.mount.volumes import Lab
from tests.nodes.rig import SECRET, WAIT_S, Node, node
from tieredfs.chunk import node_protocol
from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.node import NodeSite
from tieredfs.config import parse_code
from tieredfs.core.capability import Right, Verb, make_token
from tieredfs.errors import UnavailableError
from tieredfs.host import isal, local_host
from tieredfs.limits import DUMP_PIECE_BYTES, DUMPS_KEPT, MIB
from tieredfs.model import Durability
from tieredfs.testing.dump_suite import TAKEN_NS, content, put, read
from tieredfs.testing.wire_faults import FaultyWire, WireFault
from tieredfs.volume import FileSystem, Volume, format_volume
from tieredfs.volume import caretaker as caretaker_module


@pytest.fixture
def lab() -> Iterator[Lab]:
    with volumes.lab() as made:
        yield made


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        yield [stack.enter_context(node()) for _ in range(3)]


@pytest.fixture
def urls(lab: Lab, nodes: list[Node]) -> list[str]:
    """Those of a volume that any one node may be missing of."""
    found = [str(made.url()) for made in nodes]
    format_volume(lab.url, found, code=parse_code("rs:2+1"), durability=Durability.SSD, name="far", block_bytes=MIB)
    return found


def quiet(_done: int, _total: int, _unit: str) -> None:
    pass


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def write(volume: FileSystem, path: bytes, raw: bytes) -> None:
    with volume.create() as file:
        os.pwrite(file.descriptor, raw, 0)
        file.commit(path)


def read_all(lab: Lab, path: bytes) -> bytes:
    with FileSystem.at(lab.url, purpose="test") as volume, volume.open(path) as file:
        target = bytearray(file.attributes.size_bytes)
        assert file.read_into(0, memoryview(target)) == len(target)
    return bytes(target)


def lose_machine(lab: Lab) -> None:
    """The database, its log, and every SSD directory."""
    for path in lab.root.glob("volume.db*"):
        path.unlink()
    shutil.rmtree(lab.root / "clients", ignore_errors=True)  # `dump` and `load` alone make none


def dumps(made: Node) -> list[Path]:
    return sorted(made.path().glob("metadata/*"))


def test_the_machine_with_the_metadata_is_lost_and_all_comes_back(
    lab: Lab, nodes: list[Node], urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caretaker_module, "CARE_FIRST_S", 0.0)
    monkeypatch.setattr(caretaker_module, "ABANDONED_LOOK_S", 0.05)
    monkeypatch.setattr(caretaker_module, "DUMP_INTERVAL_S", 0.0)
    raw = os.urandom(3 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        write(volume, b"/f", raw)
        volume.flush(WAIT_S)
        wait_until(lambda: all(list(made.path().glob("metadata/*.dump")) for made in nodes))  # by itself
    status = lab.json("status", lab.url)["metadata_dump"]
    assert sorted(status["paths"]) == sorted(f"{url}/metadata/{dumps(nodes[0])[-1].name}" for url in urls)
    lose_machine(lab)
    nodes[1].stop(signal.SIGKILL)
    report = lab.json("load", lab.url, *urls)
    assert report["name"] == "far"
    assert list(report["away"]) == ["2"], "a node that is down is told, and the others suffice"
    assert len(report["unusable"]) == 1
    assert report["dump"] in status["paths"]
    assert read_all(lab, b"/f") == raw


def test_urls_to_load_from_are_written_as_those_to_format_with(lab: Lab) -> None:
    with node(2) as made:
        pattern = str(made.url()).replace("/d0", "/d{0..1}")
        done = lab.run("format", lab.url, "--data", pattern, "--code", "replica:2", "--name", "far")
        assert done.returncode == 0, done.stderr
        for _ in range(DUMPS_KEPT + 1):
            newest = lab.json("dump", lab.url)["paths"]
        assert [len(list(made.path(disk).glob("metadata/*"))) for disk in range(2)] == [DUMPS_KEPT] * 2
        lose_machine(lab)
        report = lab.json("load", lab.url, pattern)
        assert report["dump"] in newest
        assert (report["away"], report["unusable"]) == ({}, [])
        for disk in range(2):
            NodeSite(made.url(disk), local_host()).erase()
        assert list(made.root.glob("d*/metadata/*")) == []
        lose_machine(lab)
        done = lab.run("load", lab.url, str(made.url()))
        assert (done.returncode, "is not a disk of a volume" in done.stderr) == (2, True)


def test_a_node_that_is_away_is_told_and_the_others_have_the_dump(lab: Lab, nodes: list[Node], urls: list[str]) -> None:
    with Volume.open(lab.url, purpose="test") as volume:
        nodes[1].stop(signal.SIGKILL)
        report = volume.dump_to_disks(quiet)
        assert [path.partition("/metadata")[0] for path in report.paths] == [urls[0], urls[2]]
        assert len(report.problems) == 1
        assert str(nodes[1].port) in report.problems[0]
        newest = volume.metadata_dump()
        assert newest is not None
        assert newest.paths == report.paths
        for made in (nodes[0], nodes[2]):
            made.stop(signal.SIGKILL)
        with pytest.raises(UnavailableError, match="no dump was written"):
            volume.dump_to_disks(quiet)
        assert volume.metadata_dump() is None


def test_metadata_of_before_write_no_dump_where_those_of_after_are(
    lab: Lab, nodes: list[Node], urls: list[str]
) -> None:
    with Volume.open(lab.url, purpose="test") as old:
        old.dump_to_disks(quiet)
        before = [dumps(made) for made in nodes]
        new_url = lab.url.replace("volume.db", "new.db")
        assert lab.run("load", new_url, *urls).returncode == 0
        with pytest.raises(UnavailableError, match="no dump was written"):
            old.dump_to_disks(quiet)
        assert old.metadata_dump() is None
        assert [dumps(made) for made in nodes] == before
    with Volume.open(new_url, purpose="test") as new:
        assert len(new.dump_to_disks(quiet).paths) == 3


def test_a_damaged_dump_gives_way_to_an_older_one(lab: Lab, nodes: list[Node], urls: list[str]) -> None:
    with Volume.open(lab.url, purpose="test") as volume:
        older, newer = (volume.dump_to_disks(quiet) for _ in range(2))
    for made in nodes:
        path = dumps(made)[-1]
        path.write_bytes(path.read_bytes()[:-5])
    lose_machine(lab)
    report = lab.json("load", lab.url, *urls)
    assert report["dump"] in older.paths
    assert sorted(text.partition(": ")[0] for text in report["unusable"]) == sorted(newer.paths)


# ---- one shelf -------------------------------------------------------------------------------------------------------


def shelf_of(made: Node, port: int | None = None) -> DumpShelf:
    identity = DiskIdentity("v", "d")
    site = NodeSite(made.url(0, port), local_host())
    site.format(identity)
    return site.open(identity).dumps


def test_a_node_killed_in_a_dump_has_none_of_it() -> None:
    with node() as made:
        shelf = shelf_of(made)
        put(shelf, TAKEN_NS, content(100))
        made.stop()
        made.environment["TIEREDFS_CRASH_AT"] = "dump.written"
        made.start()
        with pytest.raises(UnavailableError):
            put(shelf, TAKEN_NS + 1, content(100))
        assert made.process is not None
        assert made.process.wait(WAIT_S) == -signal.SIGKILL, "the crash happened"
        del made.environment["TIEREDFS_CRASH_AT"]
        made.start()
        assert shelf.taken() == [TAKEN_NS]
        assert read(shelf, TAKEN_NS) == content(100)
        assert len(dumps(made)) == 1, "the leftover is gone"


@pytest.mark.parametrize("fault", [WireFault.RESET, WireFault.LOST])
def test_pieces_and_the_end_may_be_said_twice(shared_node: Node, fault: WireFault) -> None:
    wire = FaultyWire(shared_node.port)
    try:
        shelf = shelf_of(shared_node, wire.port)
        raw = content(2 * DUMP_PIECE_BYTES + 5)
        for method in ("PUT", "POST"):
            wire.fail(method, fault, times=1)
        put(shelf, TAKEN_NS, raw)
        assert wire.happened == {fault: 2}
        wire.fail("GET", fault, times=1)
        assert read(shelf, TAKEN_NS) == raw
        shelf.delete(TAKEN_NS)
        assert shelf.taken() == []
    finally:
        wire.close()


def test_only_a_token_for_this_dump_reaches_it_and_garbage_is_refused(shared_node: Node) -> None:
    shelf = shelf_of(shared_node)
    put(shelf, TAKEN_NS, content(100))
    name, other = f"{TAKEN_NS:016x}.dump", f"{TAKEN_NS + 1:016x}.dump"

    def ask(method: str, path: str, right: Right, raw: bytes = b"") -> int:
        token = make_token(SECRET.encode(), right, time.time())
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{shared_node.port}{path}"
        return web.request(method, url, headers=headers, content=raw, timeout=WAIT_S).status_code

    path = node_protocol.dump_path("v", "d", name)
    may_read, may_write = Right(Verb.READ, "v", "d", name), Right(Verb.WRITE, "v", "d", name)
    assert ask("GET", path, may_read) == 206
    for wrong in (may_write, replace(may_read, chunk=other), replace(may_read, chunk=""), replace(may_read, disk="x")):
        assert ask("GET", path, wrong) == 403
    assert ask("DELETE", path, may_read) == 403
    assert ask("GET", node_protocol.dumps_path("v", "d"), may_read) == 403
    piece = b"abc"
    good = node_protocol.dump_piece_path("v", "d", name, "ab", 0, isal.crc32c(piece))
    assert ask("PUT", good, may_read, piece) == 403
    assert ask("PUT", good, may_write, b"abd") == 422
    assert ask("PUT", good, may_write, b"x" * (DUMP_PIECE_BYTES + 1)) == 400
    for bad in (good.replace("offset=0", "offset=-1"), good.partition("?")[0], good.replace("crc32c=", "crc32c=z")):
        assert ask("PUT", bad, may_write, piece) == 400
    assert ask("PUT", path, may_write, piece) == 405
    assert ask("POST", node_protocol.dump_upload_path("v", "d", name, "cd", 3), may_write) == 404
    assert read(shelf, TAKEN_NS) == content(100)
    assert [path.name for path in dumps(shared_node)] == [name], "nothing is left of all that"
    shelf.delete(TAKEN_NS)
