"""The local disk store: conformance, durability, identity, and disks that are full, read-only, gone or foreign."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tieredfs.chunk import directory
from tieredfs.chunk.directory import DiskIdentity, format_disk
from tieredfs.chunk.disk import DiskStore, open_store
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    ForeignDataError,
    NewerFormatError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from tieredfs.host import Host, SystemClock, crash, local_host
from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES, STORE_FREE_RESERVE_BYTES
from tieredfs.model import Disk, DiskId, DiskState
from tieredfs.testing.chunk_faults import FaultyFiles
from tieredfs.testing.chunk_suite import ChunkStoreSuite, name_of, pattern, put, read

IDENTITY = DiskIdentity("volume-1", "disk-1")


def record(root: Path, uuid: str = "disk-1") -> Disk:
    return Disk(DiskId(1), uuid, f"disk://{root}", "rack", DiskState.ACTIVE)


def formatted(root: Path, host: Host | None = None) -> DiskStore:
    host = host or local_host()
    format_disk(host, str(root), IDENTITY)
    return open_store(record(root), "volume-1", host)


def path_of(store: ChunkStore, name: ChunkName) -> Path:
    assert isinstance(store, DiskStore)
    return Path(directory.chunk_path(store.root, name))


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[DiskStore, FaultyFiles]:
    files = FaultyFiles()
    return formatted(tmp_path / "d", Host(SystemClock(), files, random.Random(1))), files


class TestDiskStoreConforms(ChunkStoreSuite):
    def new_store(self, folder: Path) -> ChunkStore:
        return formatted(folder / "disk")

    def raw(self, store: ChunkStore, name: ChunkName) -> bytes | None:
        path = path_of(store, name)
        return path.read_bytes() if path.exists() else None

    def set_raw(self, store: ChunkStore, name: ChunkName, raw: bytes | None) -> None:
        """Behind the store's back, in a new file, as a restored backup would be; the descriptors are dropped."""
        path = path_of(store, name)
        path.unlink(missing_ok=True)
        if raw is not None:
            path.write_bytes(raw)
        store.close()


# ---- identity --------------------------------------------------------------------------------------------------------


def test_formatting_twice_is_harmless(tmp_path: Path) -> None:
    store = formatted(tmp_path / "d")
    put(store, name_of(1), pattern(CELL_BYTES))
    assert read(formatted(tmp_path / "d"), name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)


def test_a_directory_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ForeignDataError, match=r"thesis\.tex"):
        format_disk(local_host(), str(tmp_path), IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_chunks_without_an_identity_are_refused(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    put(store, name_of(1), pattern(CELL_BYTES))
    (tmp_path / directory.IDENTITY_NAME).unlink()
    with pytest.raises(ForeignDataError):
        format_disk(local_host(), str(tmp_path), DiskIdentity("volume-2", "disk-1"))


def test_an_interrupted_format_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "chunks" / "00").mkdir(parents=True)
    assert list(formatted(tmp_path).names()) == []


@pytest.mark.parametrize("identity", [DiskIdentity("volume-2", "disk-1"), DiskIdentity("volume-1", "disk-2")])
def test_a_disk_of_another_volume_or_place_is_refused(tmp_path: Path, identity: DiskIdentity) -> None:
    format_disk(local_host(), str(tmp_path), identity)
    with pytest.raises(ForeignDataError):
        open_store(record(tmp_path), "volume-1", local_host())
    with pytest.raises(ForeignDataError):
        format_disk(local_host(), str(tmp_path), IDENTITY)


def test_a_missing_disk_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        open_store(record(tmp_path / "nowhere"), "volume-1", local_host())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnavailableError):
        open_store(record(tmp_path / "empty"), "volume-1", local_host())


def test_identity_files_that_are_broken_or_newer_are_told_apart(tmp_path: Path) -> None:
    formatted(tmp_path)
    path = tmp_path / directory.IDENTITY_NAME
    path.write_text(json.dumps({"version": 99, "volume_uuid": "volume-1", "disk_uuid": "disk-1"}))
    with pytest.raises(NewerFormatError):
        open_store(record(tmp_path), "volume-1", local_host())
    for garbage in (b"", b"{}", b"\xff\x00", b"[1]"):
        path.write_bytes(garbage)
        with pytest.raises(CorruptError):
            open_store(record(tmp_path), "volume-1", local_host())


@pytest.mark.parametrize("url", ["disk://relative", "file:///x", "/x", ""])
def test_urls_that_are_no_disks_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        directory.path_of_url(url)


def test_erasing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    put(store, name_of(1), pattern(CELL_BYTES))
    (tmp_path / "chunks" / "01" / "note.txt").write_text("mine")
    directory.erase_disk(local_host(), str(tmp_path))
    assert (tmp_path / "chunks" / "01" / "note.txt").read_text() == "mine"
    assert not path_of(store, name_of(1)).exists()
    assert not (tmp_path / directory.IDENTITY_NAME).exists()


# ---- disks in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open_write", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EIO, UnavailableError),
        (errno.EROFS, UnavailableError),
    ],
)
def test_a_failed_put_leaves_no_file_and_the_old_chunk(
    faulty: tuple[DiskStore, FaultyFiles], call: str, number: int, expected: type[Exception]
) -> None:
    store, files = faulty
    put(store, name_of(1), pattern(CELL_BYTES, 1))
    files.fail(call, number)
    with pytest.raises(expected):
        put(store, name_of(1), pattern(CELL_BYTES, 2))
    assert files.happened[call] >= 1
    files.heal()
    assert os.listdir(f"{store.root}/incoming") == []
    fresh = open_store(record(Path(store.root)), "volume-1", local_host())
    left = read(fresh, name_of(1), 0, CELL_BYTES)
    assert left == pattern(CELL_BYTES, 2 if call == "sync_directory" else 1)


def test_a_full_disk_keeps_its_reserve(faulty: tuple[DiskStore, FaultyFiles]) -> None:
    store, files = faulty
    files.free = STORE_FREE_RESERVE_BYTES + CHUNK_ALIGNMENT_BYTES
    with pytest.raises(NoSpaceError):
        put(store, name_of(1), pattern(CHUNK_ALIGNMENT_BYTES))
    assert list(store.names()) == []


def test_a_disk_that_can_only_be_read_is_read(faulty: tuple[DiskStore, FaultyFiles]) -> None:
    store, files = faulty
    put(store, name_of(1), pattern(CELL_BYTES))
    for call in ("open_write", "rename", "unlink"):
        files.fail(call, errno.EROFS)
    again = open_store(record(Path(store.root)), "volume-1", Host(SystemClock(), files, random.Random(2)))
    assert read(again, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)
    with pytest.raises(UnavailableError):
        put(again, name_of(2), pattern(CELL_BYTES))
    with pytest.raises(UnavailableError):
        again.delete(name_of(1))
    assert files.happened["open_write"] == files.happened["unlink"] - 1 == 1  # put also tried to unlink its leftover


def test_a_disk_that_fails_to_read_is_unavailable(faulty: tuple[DiskStore, FaultyFiles]) -> None:
    store, files = faulty
    put(store, name_of(1), pattern(CELL_BYTES))
    files.fail("read_into", errno.EIO)
    with pytest.raises(UnavailableError):
        read(store, name_of(1), 0, 1)
    assert files.happened["read_into"] == 1
    files.heal()
    assert read(store, name_of(1), 0, 1) == pattern(1)


def test_a_disk_that_vanished_is_unavailable_not_empty(tmp_path: Path) -> None:
    store = formatted(tmp_path / "d")
    put(store, name_of(1), pattern(CELL_BYTES))
    (tmp_path / "d").rename(tmp_path / "elsewhere")
    for call in (
        lambda: read(store, name_of(2), 0, 1),
        lambda: store.info(name_of(1)),
        lambda: put(store, name_of(3), pattern(CELL_BYTES)),
        lambda: store.delete(name_of(1)),
        lambda: list(store.names()),
        store.space,
    ):
        with pytest.raises(UnavailableError):
            call()


def test_a_file_system_without_direct_io_is_written_through_the_cache(faulty: tuple[DiskStore, FaultyFiles]) -> None:
    import mmap

    store, files = faulty
    aligned = memoryview(mmap.mmap(-1, CELL_BYTES))
    aligned[:] = pattern(CELL_BYTES)
    files.fail("open_write", errno.EINVAL, times=1)
    put(store, name_of(1), aligned)  # type: ignore[arg-type]
    assert files.happened["open_write"] == 1
    assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)


# ---- foreign files and leftovers -------------------------------------------------------------------------------------


def test_files_that_are_no_chunks_are_not_listed(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    put(store, name_of(0x1FF), pattern(CHUNK_ALIGNMENT_BYTES))
    for name in ("README", "00000000000001ff.zz", "00000000000001fe.00", ".00000000000001ff.00.swp"):
        (tmp_path / "chunks" / "ff" / name).write_bytes(b"?")
    assert list(store.names()) == [name_of(0x1FF)]


def test_what_a_dead_process_was_writing_is_removed_at_open(tmp_path: Path) -> None:
    formatted(tmp_path)
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = int(child.stdout)
    incoming = tmp_path / "incoming"
    (incoming / f"{1:016x}.00.{dead}-abc").write_bytes(b"torn")
    (incoming / f"{2:016x}.00.{os.getpid()}-abc").write_bytes(b"being written")
    (incoming / f"{3:016x}.00.{os.getpid()}-abc").write_bytes(b"forgotten")
    os.utime(incoming / f"{3:016x}.00.{os.getpid()}-abc", (1, 1))
    (incoming / "note.txt").write_bytes(b"mine")
    formatted(tmp_path)
    assert sorted(path.name for path in incoming.iterdir()) == [f"{2:016x}.00.{os.getpid()}-abc", "note.txt"]


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_disk_store import formatted, name_of, pattern, put
from tieredfs.limits import CELL_BYTES
put(formatted(Path({root!r})), name_of(1), pattern(CELL_BYTES))
"""


@pytest.mark.parametrize(("point", "present"), [("chunk.written", False), ("chunk.published", True)])
def test_a_crash_leaves_the_chunk_absent_or_whole(tmp_path: Path, point: str, present: bool) -> None:
    source = CHILD.format(path=[os.path.dirname(__file__), *sys.path], root=str(tmp_path))
    environment = {**os.environ, crash.ENVIRONMENT: point}
    child = subprocess.run([sys.executable, "-c", source], env=environment, timeout=60, check=False)
    assert child.returncode == -9, "the crash happened"
    store = formatted(tmp_path)
    assert os.listdir(tmp_path / "incoming") == []
    if present:
        assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)
    else:
        with pytest.raises(NotFoundError):
            read(store, name_of(1), 0, 1)


# ---- the cache of open chunks ----------------------------------------------------------------------------------------


def test_descriptors_are_bounded_and_given_back(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for block in range(300):
        put(store, name_of(block), pattern(CHUNK_ALIGNMENT_BYTES))
        read(store, name_of(block), 0, 1)
    assert len(store._open_chunks) == 256
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 256
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
