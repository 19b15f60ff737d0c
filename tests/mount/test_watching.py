"""`stats` and `top` on real mounts: what programs do is what they say, and watching ends with who watches."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.mount import volumes
from tests.mount.volumes import WAIT_S, Lab, wait_until
from tieredfs.errors import BusyError
from tieredfs.fuse.control import CONNECTIONS_MAX, socket_address

LOOK = """
import os
while True:
    for _ in range(9):
        open({path!r}, "rb").close()
    os.listdir(os.path.dirname({path!r}))
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    with volumes.lab() as made:
        made.format()
        made.mount()
        (made.mnt / "data").mkdir()
        (made.mnt / "data" / "one").write_bytes(b"1" * 5000)
        made.ask("drain")
        yield made


def watching(lab: Lab, verb: str, **arguments: object) -> "Future[Any]":
    """The call, once the daemon watches."""
    pool = ThreadPoolExecutor(1)
    call = pool.submit(lambda: lab.ask(verb, interval_s=1.5, **arguments))
    pool.shutdown(wait=False)
    return call


def test_what_programs_do_is_counted_and_timed(shared: Lab) -> None:
    call = watching(shared, "activity")
    opens = 0
    while not call.done():
        (shared.mnt / "data" / "one").read_bytes()
        opens += 1
    found = call.result()
    counted = found["kinds"]["open"]["per_s"] * found["interval_s"]
    assert 1 <= round(counted) <= opens, "none that nobody did"
    assert found["kinds"]["open"]["mean_s"] > 0
    assert found["kinds"]["change"]["per_s"] == 0
    assert found["hit_ratio"] == 1.0
    assert found["process"] == shared.daemon_pid()
    assert found["resident_bytes"] > 0


def test_what_is_fetched_from_the_store_is_no_hit(shared: Lab) -> None:
    path = shared.mnt / "data" / "cold"
    path.write_bytes(os.urandom(100_000))
    shared.ask("drain")
    before = shared.ask("counters")
    assert shared.ask("evict", paths=["data/cold"])["evicted"] == 1
    assert len(path.read_bytes()) == 100_000
    after = shared.ask("counters")
    assert after["fills"] - before["fills"] == 1
    assert after["filled_bytes"] - before["filled_bytes"] == 100_000
    reads = {disk: counts["reads"] - before["disks"][disk]["reads"] for disk, counts in after["disks"].items()}
    assert sum(reads.values()) >= 1, "chunk I/O is counted by disk"
    assert sum(counts["written_bytes"] for counts in after["disks"].values()) > 100_000
    assert before["volume_uuid"] == shared.json("status", shared.url)["uuid"]


def test_top_names_processes_files_and_directories(shared: Lab) -> None:
    path = str(shared.mnt / "data" / "one")
    program = subprocess.Popen([sys.executable, "-c", LOOK.format(path=path)])
    try:
        found = shared.ask("top", interval_s=1.0)
    finally:
        program.kill()
        program.wait(WAIT_S)
    row = next(one for one in found["processes"] if one["process"] == program.pid)
    assert row["uid"] == os.geteuid()
    assert row["opens_per_s"] > 0
    assert row["command"].startswith(sys.executable)
    assert [one["path"] for one in found["files"][:2]] == ["/data/one", "/data/"]
    assert found["directories"][0]["path"] == "/data", "a directory is its own, not its parent's"


def test_stats_goes_on_with_the_next_daemon_and_ends_with_the_mount(shared: Lab) -> None:
    with volumes.lab() as lab:
        lab.format()
        lab.mount()
        stats = lab.start("stats", str(lab.mnt), "--json", "--interval", "0.2")
        assert stats.stdout is not None
        first = json.loads(stats.stdout.readline())
        assert first["process"] == lab.daemon_pid()
        os.kill(first["process"], signal.SIGKILL)
        later = first
        while later["process"] == first["process"]:
            later = json.loads(stats.stdout.readline())
        assert later["process"] == lab.daemon_pid()
        lab.unmount()
        _, said = stats.communicate(timeout=WAIT_S)
        assert (stats.returncode, said) == (0, f"tieredfs: {lab.mnt} is unmounted\n")


@pytest.mark.parametrize("verb", ["stats", "top"])
def test_a_key_stroke_ends_it(shared: Lab, verb: str) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever started the tests may have had it ignored
    try:
        watcher = shared.start(verb, str(shared.mnt), "--json", "--interval", "0.3")
    finally:
        signal.signal(signal.SIGINT, before)
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["mount_point"] == str(shared.mnt)
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=WAIT_S)
    assert (watcher.returncode, said) == (0, "")


def test_who_watches_and_leaves_is_watching_no_more(shared: Lab) -> None:
    """As many as the daemon serves at a time ask for ten minutes, and leave."""
    request = json.dumps({"verb": "activity", "arguments": {"interval_s": 600}}).encode() + b"\n"
    watchers: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        wait_until(
            lambda: len(watchers) == CONNECTIONS_MAX or _joins(shared, request, watchers, stack), "all have begun"
        )
        assert len(watchers) == CONNECTIONS_MAX
        with pytest.raises(BusyError):
            shared.ask("ping")
    wait_until(lambda: _answers(shared), "the daemon has time for others")


def _joins(lab: Lab, request: bytes, watchers: list[socket.socket], stack: contextlib.ExitStack) -> bool:
    """One more, unless the daemon still serves somebody who left just now. Whether those are all."""
    watcher = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    watcher.connect(socket_address(lab.mounts[-1].mount_id))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was heard
        watcher.sendall(request)
        if "progress" in json.loads(watcher.recv(4096)):
            watchers.append(watcher)
    return len(watchers) == CONNECTIONS_MAX


def _answers(lab: Lab) -> bool:
    try:
        return bool(lab.ask("ping"))
    except BusyError:
        return False
