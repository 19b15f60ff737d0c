"""What a node tells of itself: metrics, its access log, and how uploads pass through it."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import web
from tests.nodes.rig import SECRET, WAIT_S, Node, node
from tests.nodes.test_node_store import formatted
from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.node_protocol import chunk_path, disk_path, dump_path, dump_upload_path, dumps_path, place_path
from tieredfs.errors import NotFoundError
from tieredfs.host import local_host
from tieredfs.limits import CELL_BYTES, CHUNK_HEADER_BYTES
from tieredfs.testing.chunk_suite import name_of, pattern, put, read
from tieredfs_gateway.node import disk_watch
from tieredfs_gateway.node.disk_watch import DiskState, DiskWatch
from tieredfs_gateway.node.disks import NodeDisks
from tieredfs_gateway.node.exchange import OneBehind
from tieredfs_gateway.node.metrics import CALLS, OTHER, call_of

Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape(made: Node) -> Samples:
    answer = web.get(f"http://127.0.0.1:{made.port}/metrics", timeout=WAIT_S)
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_calls_bytes_and_disks_are_told() -> None:
    with node(3) as made:
        store = formatted(made, 0)
        for _ in range(2):
            put(store, name_of(1), pattern(CELL_BYTES))
        read(store, name_of(1), 0, CELL_BYTES)
        with pytest.raises(NotFoundError):
            store.info(name_of(2))
        web.get(f"http://127.0.0.1:{made.port}{chunk_path('v', 'd', name_of(1))}", timeout=WAIT_S)
        formatted(made, 1, DiskIdentity("v", "other"))
        (made.path(1) / "tieredfs-disk.json").write_bytes(b"{")
        found = scrape(made)
        whole = CHUNK_HEADER_BYTES + CELL_BYTES
        requests = {labels: value for (name, labels), value in found.items() if name == "tieredfs_node_requests_total"}
        assert requests["write_chunk", "204"] == 2
        assert requests["read_chunk", "206"] == 1
        assert requests["read_chunk", "404"] == 1
        assert requests["read_chunk", "401"] == 1
        assert requests["format", "200"] == 2
        assert found["tieredfs_node_request_duration_seconds_count", ("write_chunk",)] == 2
        assert found["tieredfs_node_received_bytes_total", ()] >= 2 * whole
        assert whole <= found["tieredfs_node_sent_bytes_total", ()] < 2 * whole
        assert found["tieredfs_node_requests_running", ()] == 0
        states = {
            made.path(disk).name: state.value
            for disk in range(3)
            for state in DiskState
            if found["tieredfs_node_disk_state", (str(made.path(disk)), state.value)]
        }
        assert states == {"d0": "disk", "d1": "failing", "d2": "waiting"}
        space = os.statvfs(made.path(0))
        assert found["tieredfs_node_disk_total_bytes", (str(made.path(0)),)] == space.f_blocks * space.f_frsize
        assert found["tieredfs_node_disk_free_bytes", (str(made.path(0)),)] > 0
        assert ("tieredfs_node_disk_free_bytes", (str(made.path(2)),)) not in found, "it is not there"
        lines = [line for line in made.log.read_text().splitlines() if "tieredfs_gateway.node.access" in line]
        path = chunk_path("volume-1", "disk-1", name_of(1))
        assert sum(f"127.0.0.1 write_chunk PUT {path} 204 in={whole} out=0 " in line for line in lines) == 2
        assert sum(f"127.0.0.1 read_chunk GET {path} 206 in=0 out={whole} " in line for line in lines) == 1
        assert not any("/metrics" in line or "/healthz" in line for line in lines)
        assert SECRET not in made.log.read_text()


def test_without_an_access_log_there_is_none() -> None:
    with node(1, "--no-access-log") as made:
        put(formatted(made, 0), name_of(1), pattern(CELL_BYTES))
        assert scrape(made)["tieredfs_node_requests_total", ("write_chunk", "204")] == 1
        assert "node.access" not in made.log.read_text()


def test_every_call_has_a_name() -> None:
    name = f"{1:016x}.dump"
    asked = {
        ("GET", disk_path("v", "d") + "/space"): "space",
        ("GET", disk_path("v", "d") + "/chunks"): "list_chunks",
        ("GET", chunk_path("v", "d", name_of(1))): "read_chunk",
        ("PUT", chunk_path("v", "d", name_of(1))): "write_chunk",
        ("DELETE", chunk_path("v", "d", name_of(1))): "delete_chunk",
        ("GET", dumps_path("v", "d")): "list_dumps",
        ("GET", dump_path("v", "d", name)): "read_dump",
        ("DELETE", dump_path("v", "d", name)): "delete_dump",
        **{
            (method, dump_upload_path("v", "d", name, "ab", 1).partition("?")[0]): call
            for method, call in (("PUT", "write_dump"), ("POST", "publish_dump"), ("DELETE", "discard_dump"))
        },
        **{
            (method, place_path("/d").partition("?")[0]): call
            for method, call in (("GET", "identify"), ("PUT", "format"), ("POST", "give"), ("DELETE", "erase"))
        },
    }
    assert {call: call_of(*request) for request, call in asked.items()} == {call: call for call in CALLS.values()}
    for strange in ("/", "/v1", "/v1/disks/a", "/v1/disks/v/d/chunks/x/y/z", "/v1/places/x", "/etc/passwd"):
        assert call_of("GET", strange) == OTHER
    assert call_of("TRACE", "/v1/places") == OTHER


def test_a_disk_that_says_nothing_is_told_and_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "REMOTE_SPACE_WAIT_S", 0.05)
    disks = NodeDisks([str(tmp_path / "hangs"), str(tmp_path / "well")], local_host())
    released, asked = threading.Event(), []
    is_disk = disks.is_disk

    def slow(path: str) -> bool:
        asked.append(path)
        if path.endswith("hangs"):
            released.wait(WAIT_S)
        return is_disk(path)

    monkeypatch.setattr(disks, "is_disk", slow)

    async def looks() -> list[list[DiskState]]:
        watch = DiskWatch(disks)
        try:
            found = [[look.state for look in await watch.look()] for _ in range(2)]
            assert asked.count(str(tmp_path / "hangs")) == 1
            released.set()
            deadline_s = time.monotonic() + WAIT_S
            while found[-1][0] is DiskState.SILENT:
                assert time.monotonic() < deadline_s
                found.append([look.state for look in await watch.look()])
            return found
        finally:
            released.set()
            watch.close()

    found = asyncio.run(looks())
    assert found[0] == found[1] == [DiskState.SILENT, DiskState.WAITING]
    assert found[-1] == [DiskState.WAITING, DiskState.WAITING]


# ---- one behind ------------------------------------------------------------------------------------------------------


def test_a_call_behind_goes_on_while_its_caller_does_and_its_error_is_told_once() -> None:
    released = threading.Event()
    happened: list[str] = []

    def fail() -> None:
        raise ValueError("why")

    async def story() -> None:
        with ThreadPoolExecutor(1) as executor:
            behind = OneBehind(executor)
            await behind.done()
            behind.begin(lambda: happened.append("written") if released.wait(WAIT_S) else None)
            happened.append("went on")
            released.set()
            await behind.done()
            behind.begin(fail)
            with pytest.raises(ValueError, match="why"):
                await behind.done()
            await behind.ended()
            behind = OneBehind(executor)
            behind.begin(fail)
            await behind.ended()  # nobody asks how it went

    asyncio.run(story())
    assert happened == ["went on", "written"]
