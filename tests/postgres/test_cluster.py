"""The whole of it together: metadata in PostgreSQL, chunks on three storage nodes, two hosts, and a node that dies."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.nodes.rig import Node, node, secret_set
from tests.postgres.server import Server
from tests.whole_files import get, put
from tieredfs.config import parse_code
from tieredfs.host import local_host
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, clone, destroy_volume, format_volume

WAIT_S = 60.0
NODES = 3


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        stack.enter_context(secret_set())
        yield [stack.enter_context(node(2)) for _ in range(NODES)]


@pytest.fixture
def url(server: Server, database: str, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("TIEREDFS_STATE_DIR", str(tmp_path / "state"))
    made = server.url(database)
    data = [str(one.url(disk)) for one in nodes for disk in range(2)]
    format_volume(made, data, code=parse_code("rs:4+2"), durability=Durability.STORE, name="cluster", block_bytes=MIB)
    return made


def test_two_hosts_share_a_volume_on_nodes_through_the_death_of_one(
    url: str, nodes: list[Node], tmp_path: Path
) -> None:
    here, there = (replace(local_host(), name=name) for name in ("here", "there"))
    with (
        FileSystem.at(url, purpose="test", host=here, cache_dir=str(tmp_path / "here")) as first,
        FileSystem.at(url, purpose="test", host=there, cache_dir=str(tmp_path / "there")) as second,
    ):
        contents = {b"run/%d" % number: os.urandom(2 * MIB + number) for number in range(3)}
        for path, content in contents.items():
            put(first, path, content)  # durability `store`: on the nodes when it returns
            assert get(second, path) == content
        nodes[1].stop(9)
        contents[b"run/meanwhile"] = os.urandom(3 * MIB)
        put(second, b"run/meanwhile", contents[b"run/meanwhile"])
        clone(first, b"run", b"copy", lambda *_: None)
        for path, content in contents.items():
            first.evict(path)
            assert get(first, path.replace(b"run", b"copy")) == content
            assert get(second, path) == content
        nodes[1].start()
    with FileSystem.at(url, purpose="test", cache_dir=str(tmp_path / "third")) as third:
        assert third.volume.problems == {}
        third.volume.check(repair=True, progress=lambda *_: None)
        assert third.volume.check(repair=False, progress=lambda *_: None).clean
        nodes[0].stop(9)  # another one: whole only if what the first missed was made anew
        for path, content in contents.items():
            assert get(third, path) == content
        nodes[0].start()
    destroy_volume(url)
    assert [chunk for one in nodes for chunk in one.root.rglob("chunks/*/*")] == []
