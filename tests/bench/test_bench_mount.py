"""The benchmark's arguments, its workloads on a plain directory, and its clean-up."""

import argparse
import mmap
import os
from pathlib import Path

import pytest

from bench import machine, mount, rows, workloads
from bench.workspace import workspace


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("512MiB", 512 << 20), ("2G", 2 << 30), ("64 KiB", 64 << 10), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert mount.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "2gib", "GiB", "1PiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        mount.parse_size(text)


def test_rows_by_key_and_by_prefix() -> None:
    assert mount.parse_rows("warm,cold") == {"warm", "cold"}
    assert mount.parse_rows("small") == {key for key in rows.KEYS if key.startswith("small-")}
    with pytest.raises(argparse.ArgumentTypeError, match="no row"):
        mount.parse_rows("write,nothing")


def test_row_keys_are_unique() -> None:
    assert len(set(rows.KEYS)) == len(rows.KEYS)


def test_written_file_has_its_size_and_no_piece_twice(tmp_path: Path) -> None:
    path = tmp_path / "file"
    size = 66 * workloads.PIECE_BYTES + 100  # past the end of the buffer, and not a multiple of a piece
    workloads.write_file(path, size)
    contents = path.read_bytes()
    assert len(contents) == size
    pieces = {contents[i : i + workloads.PIECE_BYTES] for i in range(0, size, workloads.PIECE_BYTES)}
    assert len(pieces) == 67
    workloads.read_file(path)
    workloads.read_mapped(path)


def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    with pytest.raises(EOFError):
        workloads.read_file(path, 6)
    with pytest.raises(EOFError):
        workloads.read_spread([path, path], 11)


def test_spread_reads_and_copies_count_every_byte(tmp_path: Path) -> None:
    source = tmp_path / "source"
    workloads.write_file(source, 3 * workloads.PIECE_BYTES)
    targets = [tmp_path / f"copy-{i}" for i in range(6)]
    workloads.copy_spread(source, targets, workloads.PIECE_BYTES + 5)
    assert {path.stat().st_size for path in targets} == {workloads.PIECE_BYTES + 5}
    workloads.read_spread(targets, 6 * (workloads.PIECE_BYTES + 5))


def test_small_files_come_and_go(tmp_path: Path) -> None:
    for work in rows.SMALL_OPERATIONS.values():
        assert work(tmp_path, 7) >= 0
    assert list(tmp_path.iterdir()) == []


def test_streams_remove_what_they_wrote(tmp_path: Path) -> None:
    workloads.stream(tmp_path / "rank-0", 8 * workloads.PIECE_BYTES)
    assert list((tmp_path / "rank-0").iterdir()) == []


def test_workspace_stops_what_was_started_and_removes_its_files(tmp_path: Path) -> None:
    stopped: list[str] = []

    def interrupted() -> None:
        with workspace(tmp_path, "test-") as (directory, stack):
            stack.callback(stopped.append, "target")
            (directory / "file").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stopped == ["target"]
    assert list(tmp_path.iterdir()) == []


def test_memory_of_a_process_is_seen() -> None:
    assert os.getpid() in machine.process_tree([os.getpid()])
    before = machine.memory_use([os.getpid()])
    held = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # new pages, whatever the heap has left over
    held.write(b"\1" * len(held))
    after = machine.memory_use([os.getpid()])
    assert after.own - before.own > len(held) // 2
    assert machine.memory_use([]) == machine.MemoryUse(0, 0)


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def test_warmed_memory_was_really_held_and_is_given_back() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS:")
    machine.warm_memory(96 << 20)
    assert resident_bytes("VmHWM:") - before > 80 << 20
    assert resident_bytes("VmRSS:") - before < 48 << 20


def test_facts_name_the_file_system(tmp_path: Path) -> None:
    found = machine.facts(tmp_path)
    assert found["file system"] != "unknown"
    assert {"cpu", "cores", "memory", "kernel", "disk", "python", "date"} <= set(found)
