"""The machine below a benchmark: its facts, its page cache, the memory of a process tree.

Page cache: root drops it for the whole machine; without root each file is synced and dropped with posix_fadvise, which
empties the cache of clean pages of that file on ext4 and, through FUSE, only of the FUSE inode's own pages.
"""

import contextlib
import importlib.metadata
import mmap
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
LIBRARIES: Final = ("torch", "numpy", "pyeclib", "google-crc32c", "fuse-python", "juicefs", "tieredfs")
MEMORY_SAMPLE_S: Final = 0.1
_WARMED_BYTES: Final = 16 << 20


def facts(directory: Path) -> dict[str, str]:
    """What a reader needs to judge the figures. `directory` is where the benchmark writes."""
    source, kind = mount_of(directory)
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown",
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "file system": kind,
        "disk": f"{source}{_disk_model(source)}",
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "not root",
    }
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def mount_of(path: Path) -> tuple[str, str]:
    """(source, type) of the mount that holds `path`: the longest mount point that is a prefix of it."""
    real = os.path.realpath(path)
    best = ("", "unknown", "unknown")
    for source, point, kind in mounts():
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
            best = (point, source, kind)
    return best[1], best[2]


def mounts() -> Iterator[tuple[str, str, str]]:
    """(source, mount point, type) of every mount of this process."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        source, point, kind = line.split(" ")[:3]
        yield source, point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"), kind


def is_mounted(path: Path) -> bool:
    real = str(path.parent.resolve() / path.name)  # a dead FUSE mount point itself cannot be resolved
    return any(point == real for _, point, _ in mounts())


def _disk_model(source: str) -> str:
    """Virtual disks have no model, and what they say of rotation is not to be believed."""
    model = _text(Path(f"/sys/class/block/{os.path.basename(source)}/device/model"))
    return f" ({model})" if model else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def can_drop_caches() -> bool:
    return os.geteuid() == 0 and os.access(DROP_CACHES, os.W_OK)


def drop_page_cache(files: Iterable[Path], names_too: bool = False) -> None:
    """Forget cached file contents (`names_too`: and dentries and inodes, which only root can). Syncs first."""
    os.sync()
    if can_drop_caches():
        DROP_CACHES.write_text("3" if names_too else "1", encoding="ascii")
        return
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm_memory(size_bytes: int) -> None:
    """Let the next `size_bytes` that are allocated, as page cache or otherwise, be memory that this machine really has.

    A virtual machine may report memory that has been free for two seconds to its host, which takes it and gives it again page by
    page: writing 1 GiB to the page cache took 0.14 s of processor time right after as much had been freed, 2.1 s after
    six seconds of quiet. Without this, the side that follows a pause pays for it, and its ratio says nothing.
    """
    count = max(1, size_bytes // _WARMED_BYTES)
    zeros = bytes(_WARMED_BYTES)
    with mmap.mmap(-1, count * _WARMED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for _ in range(count):
            memory.write(zeros)


def await_quiet_disk(directory: Path) -> None:
    """Until the disk below has carried out nothing for half a second, or for half a minute.

    A file system may discard (TRIM) what was deleted behind everybody's back, 1.7 s for 1 GiB on one disk: a save of 16 MiB that
    met the discard of 4 GiB took 1.6 s, others 0.03.
    """
    device = os.stat(directory).st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not counters.exists():  # not a file system of one disk
        return
    before = ""
    for _ in range(60):
        now = counters.read_text()
        if now == before:
            return
        before = now
        time.sleep(0.5)


def held_bytes(directory: Path) -> int:
    """Bytes allocated below `directory` (sparse and punched files count what they hold)."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


# ---- processes ---------------------------------------------------------------------------------------------------


def process_tree(roots: Iterable[int]) -> set[int]:
    """`roots` that live, and all that descend from them."""
    children: dict[int, list[int]] = {}
    alive = set()
    for process, parent in _parents():
        alive.add(process)
        children.setdefault(parent, []).append(process)
    found: set[int] = set()
    pending = [process for process in roots if process in alive]
    while pending:
        process = pending.pop()
        if process not in found:
            found.add(process)
            pending.extend(children.get(process, []))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _text(Path(f"/proc/{entry}/stat")).rpartition(")")[2].split()
            if len(fields) > 1:
                yield int(entry), int(fields[1])


def processes_naming(*words: str) -> set[int]:
    """Processes (this one excepted) whose command line contains all of `words`."""
    found = set()
    for process, _ in _parents():
        line = _text(Path(f"/proc/{process}/cmdline")).replace("\0", " ")
        if process != os.getpid() and all(word in line for word in words):
            found.add(process)
    return found


def processes_holding(directory: Path) -> set[int]:
    """Processes (this one excepted) that have a file below `directory` open. Of other users: only root sees them."""
    found = set()
    for process, _ in _parents():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{process}/fd/{descriptor}").startswith(f"{directory}/"):
                        found.add(process)
    return found - {os.getpid()}


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a process tree. `own` is what it asked for: anonymous and shared-memory pages (and swap), each page
    counted once however many of the processes share it (PSS). `resident` is the sum of RSS, which counts the pages of
    libraries and of mapped files too, once per process: those are page cache, and the kernel takes them back."""

    own: int
    resident: int


def memory_use(processes: Iterable[int]) -> MemoryUse:
    own = resident = 0
    for process in processes:
        for line in _text(Path(f"/proc/{process}/smaps_rollup")).splitlines():
            name, _, rest = line.partition(":")
            if name in {"Pss_Anon", "Pss_Shmem", "SwapPss"}:
                own += int(rest.split()[0]) * 1024
            elif name == "Rss":
                resident += int(rest.split()[0]) * 1024
    return MemoryUse(own, resident)


class MemoryPeak:
    """The largest figures seen so far; `samples` proves that somebody looked."""

    def __init__(self) -> None:
        self.peak = MemoryUse(0, 0)
        self.samples = 0

    def add(self, use: MemoryUse) -> None:
        self.peak = MemoryUse(max(self.peak.own, use.own), max(self.peak.resident, use.resident))
        self.samples += 1


@contextmanager
def watch_memory(roots: Iterable[int]) -> Iterator[MemoryPeak]:
    """Sample the tree below `roots` from a thread, ten times a second, until the block ends."""
    peak, ended, roots = MemoryPeak(), threading.Event(), tuple(roots)

    def sample() -> None:
        while not ended.is_set():
            peak.add(memory_use(process_tree(roots)))
            ended.wait(MEMORY_SAMPLE_S)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join(5.0)


def lazy_unmount(point: Path) -> None:
    """Detach `point` if it is still mounted: the last resort of a clean-up. Never raises for what the mount did."""
    for command in (["fusermount", "-uz"], ["fusermount3", "-uz"], ["umount", "-l"]):
        if not is_mounted(point):
            return
        try:
            subprocess.run([*command, str(point)], check=False, capture_output=True, timeout=30)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
