"""`ForgetfulFiles`: local files on a machine that loses power.

A layer over the real file system below one directory. It remembers what was made durable: a file's bytes by `sync`, a name
(created, renamed, removed) by `sync_directory`. `power_cut` then leaves on the disk what a journalling file system may leave:

- of the changes of names that were not synced, in their order, the first few (none to all);
- of each file's bytes what was last synced, or what it had in the end, or a mixture by pages, with zeros among them.

What existed before the layer was laid is durable. Files that are changed behind its back (by a database, say) are not its
business. Bytes may be written past it, through a descriptor that it opened: they count as not synced.
"""

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tieredfs.host.files import LocalFiles

PAGE_BYTES: Final = 4096


@dataclass(eq=False)
class _File:
    """`durable`: its bytes after the last `sync`. `last`: its bytes when its last name went."""

    durable: bytes = b""
    last: bytes | None = None


@dataclass(frozen=True, eq=False)
class _Change:
    """A change of names: `file` is at `path` afterwards, and not at `gone` (one of the two may be empty)."""

    file: _File
    path: str
    gone: str
    paths: frozenset[str] = field(default_factory=frozenset)


class ForgetfulFiles(LocalFiles):
    """Safe from any thread. After `power_cut` it is dead: nothing can be changed through it any more."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.lost_changes = 0
        """Of names, at the power cut."""
        self.lost_bytes = 0
        """Files that came out of the power cut with other bytes than went in."""
        self._lock = threading.RLock()
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._files: dict[int, _File] = {}
        self._changes: list[_Change] = []
        self._fresh_directories: set[str] = set()
        self._off = False

    # ---- what is noted -----------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        with self._lock:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self._check_power()
            self._adopt(path)
            descriptor = super().open(path, flags, mode)
            if not self._is_ours(path) or not os.path.isfile(path):
                return descriptor
            if path not in self._names:
                self._names[path] = _File()
                self._note(_Change(self._names[path], path, ""))
            self._files[os.fstat(descriptor).st_ino] = self._names[path]
            return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        self._check_power()
        return super().write(descriptor, buffers, offset)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._check_power()
        super().truncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        with self._lock:
            self._check_power()
            super().sync(descriptor)
            file = self._files.get(os.fstat(descriptor).st_ino)
            if file is not None:
                file.durable = _contents(f"/proc/self/fd/{descriptor}")

    def sync_directory(self, path: str) -> None:
        with self._lock:
            self._check_power()
            super().sync_directory(path)
            self._fresh_directories -= {fresh for fresh in self._fresh_directories if os.path.dirname(fresh) == path}
            touched = {change for change in self._changes if path in map(os.path.dirname, change.paths)}
            self._commit(self._with_causes(touched))

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            self._check_power()
            self._adopt(source)
            self._adopt(target)
            self._keep_last(target)
            super().rename(source, target)
            file = self._names.pop(source)
            self._names[target] = file
            self._note(_Change(file, target, source))

    def unlink(self, path: str) -> None:
        with self._lock:
            self._check_power()
            self._adopt(path)
            self._keep_last(path)
            super().unlink(path)
            self._note(_Change(self._names.pop(path), "", path))

    def make_directory(self, path: str) -> None:
        with self._lock:
            missing = path
            while self._is_ours(missing) and not os.path.isdir(missing):
                self._check_power()
                self._fresh_directories.add(missing)
                missing = os.path.dirname(missing)
            super().make_directory(path)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def _check_power(self) -> None:
        if self._off:
            raise OSError("the power is off")

    def _adopt(self, path: str) -> None:
        """A file that was there before the layer is durable as it is when it is first touched."""
        if self._is_ours(path) and path not in self._names and os.path.isfile(path):
            self._names[path] = self._durable_names[path] = _File(_contents(path))

    def _keep_last(self, path: str) -> None:
        if path in self._names:
            self._names[path].last = _contents(path)

    def _note(self, change: _Change) -> None:
        paths = frozenset(path for path in (change.path, change.gone) if path)
        self._changes.append(_Change(change.file, change.path, change.gone, paths))

    def _with_causes(self, changes: set[_Change]) -> list[_Change]:
        """In order; with each change the earlier ones of the same file and of the same names."""
        wanted = set(changes)
        files = {change.file for change in wanted}
        paths = {path for change in wanted for path in change.paths}
        for change in reversed(self._changes):
            if change in wanted or change.file in files or change.paths & paths:
                wanted.add(change)
                files.add(change.file)
                paths |= change.paths
        return [change for change in self._changes if change in wanted]

    def _commit(self, changes: list[_Change]) -> None:
        for change in changes:
            self._durable_names.pop(change.gone, None)
            if change.path:
                self._durable_names[change.path] = change.file
            self._changes.remove(change)

    # ---- the power cut -----------------------------------------------------------------------------------------------

    def power_cut(self, chance: random.Random) -> "ForgetfulFiles":
        """What the disk holds when power is back, laid down; returns the layer of the next life."""
        with self._lock:
            self._off = True
            kept = chance.randint(0, len(self._changes))
            self.lost_changes = len(self._changes) - kept
            self._commit(self._changes[:kept])
            survivors = {path: self._survivor(file, chance) for path, file in self._durable_names.items()}
            for path in self._names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            for directory in self._fresh_directories:
                shutil.rmtree(directory, ignore_errors=True)
            for path, contents in survivors.items():
                if os.path.isdir(os.path.dirname(path)):
                    with open(path, "wb") as file:
                        file.write(contents)
            return ForgetfulFiles(self.root)

    def _survivor(self, file: _File, chance: random.Random) -> bytes:
        current = next((_contents(path) for path, named in self._names.items() if named is file), file.last or b"")
        fate = chance.choice(["synced", "whole", "torn"])
        found = {"synced": file.durable, "whole": current, "torn": _torn(file.durable, current, chance)}[fate]
        self.lost_bytes += found != current
        return found


def _torn(durable: bytes, current: bytes, chance: random.Random) -> bytes:
    """Pages of either; a page that neither wrote out is zeros."""
    size = len(chance.choice([durable, current]))
    pages = []
    for start in range(0, size, PAGE_BYTES):
        page = chance.choice([durable, current])[start : start + PAGE_BYTES]
        pages.append(page.ljust(PAGE_BYTES, b"\0"))
    return b"".join(pages)[:size]


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
