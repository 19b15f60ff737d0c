"""The local disk store: conformance, durability, identity, and disks that are full, read-only, gone or foreign."""

import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tieredfs.chunk import directory
from tieredfs.chunk.cells import header_of
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
from tieredfs.format.chunk import encode_header
from tieredfs.host import Host, LocalFiles, SystemClock, crash, local_host
from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES, STORE_FREE_RESERVE_BYTES
from tieredfs.model import Disk, DiskId, DiskState
from tieredfs.testing.chunk_faults import FaultyFiles
from tieredfs.testing.chunk_suite import ChunkStoreSuite, info_of, name_of, pattern, put, read
from tieredfs.testing.forgetful import ForgetfulFiles

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
            path.parent.mkdir(exist_ok=True)
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


# ---- fan-out directories ---------------------------------------------------------------------------------------------


class CountingFiles(LocalFiles):
    """`synced`: how often each directory was."""

    def __init__(self) -> None:
        self.synced: Counter[str] = Counter()

    def sync_directory(self, path: str) -> None:
        self.synced[path] += 1
        super().sync_directory(path)


class UnsyncedFiles(ForgetfulFiles):
    """The names in one directory cannot be made durable."""

    def __init__(self, root: str, unsynced: str) -> None:
        super().__init__(root)
        self.refused = 0
        self._unsynced = unsynced

    def sync_directory(self, path: str) -> None:
        if path == self._unsynced:
            self.refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_directory(path)


def fan_outs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "chunks").iterdir())


def on_forgetful(files: ForgetfulFiles, root: Path) -> DiskStore:
    return open_store(record(root), "volume-1", Host(SystemClock(), files, random.Random(1)))


def test_a_fan_out_directory_comes_with_its_first_chunk(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    assert fan_outs(tmp_path) == []
    for block in (0x1FF, 0x2FF, 0x300):
        put(store, name_of(block), pattern(CHUNK_ALIGNMENT_BYTES))
    store.delete(name_of(0x300))
    assert fan_outs(tmp_path) == ["00", "ff"]
    assert set(store.names()) == set(store.names_in("ff")) == {name_of(0x1FF), name_of(0x2FF)}
    assert list(store.names_in("00")) == list(store.names_in("7f")) == []


def test_a_disk_that_had_all_fan_out_directories_from_the_beginning_goes_on(tmp_path: Path) -> None:
    formatted(tmp_path)
    for at in range(256):
        (tmp_path / "chunks" / f"{at:02x}").mkdir()
    counted = CountingFiles()
    store = open_store(record(tmp_path), "volume-1", Host(SystemClock(), counted, random.Random(1)))
    for block in range(256):
        put(store, name_of(block), pattern(CHUNK_ALIGNMENT_BYTES))
    assert set(store.names()) == {name_of(block) for block in range(256)}
    assert counted.synced[f"{tmp_path}/chunks"] == 1


def test_a_fan_out_directory_that_was_removed_comes_again(tmp_path: Path) -> None:
    store = formatted(tmp_path)
    put(store, name_of(1), pattern(CELL_BYTES))
    store.delete(name_of(1))
    (tmp_path / "chunks" / "01").rmdir()
    put(store, name_of(1), pattern(CELL_BYTES, 2))
    assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES, 2)


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_after_a_put_loses_nothing_whoever_made_the_directory(tmp_path: Path, seed: int) -> None:
    formatted(tmp_path)
    files = ForgetfulFiles(str(tmp_path))
    mine, other = on_forgetful(files, tmp_path), on_forgetful(files, tmp_path)
    put(mine, name_of(1), pattern(CHUNK_ALIGNMENT_BYTES, 1))
    put(mine, name_of(2), pattern(CHUNK_ALIGNMENT_BYTES, 2))
    put(other, name_of(0x102), pattern(CHUNK_ALIGNMENT_BYTES, 3))
    put(other, name_of(3), pattern(CHUNK_ALIGNMENT_BYTES, 4))
    put(mine, name_of(0x103), pattern(CHUNK_ALIGNMENT_BYTES, 5))
    files.make_directory(f"{tmp_path}/chunks/04")  # another process has come so far, and no further
    put(mine, name_of(4), pattern(CHUNK_ALIGNMENT_BYTES, 6))
    store = on_forgetful(files.power_cut(random.Random(seed)), tmp_path)
    names = [name_of(1), name_of(2), name_of(0x102), name_of(3), name_of(0x103), name_of(4)]
    assert set(store.names()) == set(names)
    for number, name in enumerate(names, 1):
        assert read(store, name, 0, CHUNK_ALIGNMENT_BYTES) == pattern(CHUNK_ALIGNMENT_BYTES, number)


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_in_a_put_leaves_the_chunk_absent_or_whole(tmp_path: Path, seed: int) -> None:
    """The name of the directory could not be made durable: nothing was promised."""
    formatted(tmp_path)
    files = UnsyncedFiles(str(tmp_path), f"{tmp_path}/chunks")
    store = on_forgetful(files, tmp_path)
    with pytest.raises(UnavailableError):
        put(store, name_of(1), pattern(CELL_BYTES))
    assert files.refused == 1
    again = on_forgetful(files.power_cut(random.Random(seed)), tmp_path)
    assert list(again.names()) == []
    put(again, name_of(1), pattern(CELL_BYTES, 2))
    assert read(again, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES, 2)


def test_many_threads_make_the_same_fan_out_directories(tmp_path: Path) -> None:
    stores = [formatted(tmp_path) for _ in range(2)]
    blocks = [at % 16 + 256 * at for at in range(128)]
    with ThreadPoolExecutor(8) as threads:
        putting = [
            threads.submit(put, stores[at % 2], name_of(block), pattern(CHUNK_ALIGNMENT_BYTES, at))
            for at, block in enumerate(blocks)
        ]
        for one in putting:
            one.result()
    assert set(stores[0].names()) == set(map(name_of, blocks))
    assert fan_outs(tmp_path) == [f"{at:02x}" for at in range(16)]


@pytest.mark.parametrize("path", [".", "chunks"])
def test_a_mount_point_whose_disk_went_stays_empty(tmp_path: Path, path: str) -> None:
    store = formatted(tmp_path / "d")
    payload = memoryview(pattern(CHUNK_ALIGNMENT_BYTES))
    info, crcs = info_of(name_of(1), bytes(payload))
    header = header_of(info, bytes(crcs))
    incoming = store.receive(header, memoryview(encode_header(header)), aligned=False)
    incoming.write(payload, check=False)
    (tmp_path / "d" / path).rename(tmp_path / "elsewhere")
    (tmp_path / "d").mkdir(exist_ok=True)
    before = os.listdir(tmp_path / "d")
    with pytest.raises(UnavailableError):
        store.publish(incoming)
    assert os.listdir(tmp_path / "d") == before


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
