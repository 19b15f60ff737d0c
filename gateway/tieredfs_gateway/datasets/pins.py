"""Pinned versions that outlive their gateway: a run goes on with the files that it began with, whatever became of them meanwhile.

A reader's snapshot holds contents for as long as its process lives. While a gateway serves a version it also keeps a *pin*: a
directory of the volume, with files by reference to the same blocks and a record of what they are, written last. A trainer that
comes back names its version; whichever gateway it comes to opens that one from a pin, if somebody keeps it.

    .tieredfs/dataset-pins/VERSION.HOLDER/hold-N    contents, one file after another
    .tieredfs/dataset-pins/VERSION.HOLDER/pin       the record (`pin_record`); its attribute is the beat

A pin is let go when the last session of its version ends. One that a killed gateway left is taken away by any other that has seen
its beat stand still for `KEEP_S`, by its own clock: so after a restart trainers have that long to come back, and what they read is
then kept by their new gateway, under a name of its own.

Making pins, beating and clearing away is the work of one thread: to open a dataset waits for none of it. What fails is logged, and
costs no more than that a restart does not find the version.
"""

import contextlib
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from tieredfs.errors import (
    IntegrityError,
    NewerFormatError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    StaleError,
    TieredError,
)
from tieredfs.host import Clock, SystemClock
from tieredfs.model import Durability, InodeId
from tieredfs.volume.contract import Part
from tieredfs.volume.filesystem import FileSystem
from tieredfs_gateway.datasets import pin_record
from tieredfs_gateway.datasets.pin_record import Pin

KEEP_S: Final = 600.0
BEAT_S: Final = 30.0
PIN_FILES_MAX: Final = 100_000
"""A version of more files is not kept: its record would be larger than 10 MB."""
FOLDER: Final = b".tieredfs/dataset-pins"
_RECORD: Final = b"pin"
_BEAT: Final = b"user.tieredfs.beat"
_PAGE: Final = 1000
_log: Final = logging.getLogger("tieredfs_gateway.datasets.pins")


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a reader asks to be kept. `holds`: its own files that have the contents."""

    pin: Pin
    holds: tuple[InodeId, ...]


class Pins:
    """Those of one gateway. Safe from any thread; a context manager around the serving: leaving it leaves the pins for whoever
    comes next."""

    def __init__(
        self, volume: FileSystem, *, clock: Clock | None = None, keep_s: float = KEEP_S, beat_s: float = BEAT_S
    ) -> None:
        self._volume = volume
        self._clock = clock or SystemClock()
        self._keep_s = keep_s
        self._beat_s = beat_s
        self._holder = secrets.token_hex(8).encode()
        self._changed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        """Versions whose readers came or went; None at the end."""
        self._wanted: dict[str, list[Kept]] = {}
        """By readers of each version. Under the lock."""
        self._made: set[str] = set()
        """Versions that have a pin of ours. The thread's."""
        self._seen: dict[bytes, tuple[bytes | None, float]] = {}
        """Of others: the beat, and since when it is that."""
        self._beats = 0
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="dataset-pins", daemon=True)

    # ---- what readers ask -------------------------------------------------------------------------------------------

    def keep(self, pin: Pin, holds: tuple[InodeId, ...]) -> Kept:
        """From a moment later on, until `let_go`, a restart finds that version. Does not wait."""
        kept = Kept(pin, holds)
        with self._lock:
            self._wanted.setdefault(pin.version, []).append(kept)
        self._changed.put(pin.version)
        return kept

    def let_go(self, kept: Kept) -> None:
        """The reader ends. If that is because its gateway does, the pin stays."""
        version = kept.pin.version
        with self._lock:
            if self._ended:
                return
            self._wanted[version].remove(kept)
            if not self._wanted[version]:
                del self._wanted[version]
        self._changed.put(version)

    def find(self, version: str, source: str, asked: str | None) -> tuple[Pin, tuple[InodeId, ...]] | None:
        """Of that dataset; and the files that hold it. None: nobody keeps it (any more)."""
        for name in self._names():
            if name.split(b".")[0] != version.encode() or self._was_let_go(name, version):
                continue
            try:
                pin = self._read(name)
                if (pin.version, pin.source, pin.asked) == (version, source, asked):
                    holds = [self._volume.stat(_hold(name, number)) for number in range(pin.hold_count)]
                    return pin, tuple(found.inode for found in holds)
            except (NotFoundError, NotDirectoryError):
                continue  # it is being taken away
            except (IntegrityError, NewerFormatError) as error:
                _log.warning("%s: %s", name.decode("ascii", "backslashreplace"), error)
        return None

    def _was_let_go(self, name: bytes, version: str) -> bool:
        """It is ours, and about to be taken away."""
        with self._lock:
            return name == self._name(version) and version not in self._wanted

    def _read(self, name: bytes) -> Pin:
        with self._volume.open(_path(name, _RECORD)) as reading:
            data = bytearray(reading.attributes.size_bytes)
            reading.read_into(0, memoryview(data))
        return pin_record.decode(bytes(data))

    def _names(self) -> list[bytes]:
        found: list[bytes] = []
        with contextlib.suppress(NotFoundError, NotDirectoryError):
            while page := self._volume.entries(FOLDER, found[-1] if found else b"", _PAGE):
                found += [entry.name for entry, _ in page]
        return found

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due_s = self._clock.monotonic_s()
        while True:
            try:
                version = self._changed.get(timeout=max(0.0, due_s - self._clock.monotonic_s()))
            except queue.Empty:
                due_s = self._clock.monotonic_s() + self._beat_s
                self._carefully("others' pins", self.look_after)
                continue
            if version is None:
                return
            self._carefully(f"version {version}", partial(self._settle, version))

    def _carefully(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (TieredError, OSError) as error:
            _log.warning("%s: a restart may not find it: %s", what, error)

    def _settle(self, version: str) -> None:
        """Make the pin that is wanted, take away the one that is not."""
        with self._lock:
            kept = next(iter(self._wanted.get(version, ())), None)
        if kept is None and version in self._made:
            self._made.remove(version)
            self._remove(self._name(version))
        elif kept is not None and version not in self._made:
            try:
                self._make(kept)
            except (NotFoundError, StaleError):
                with self._lock:
                    if kept in self._wanted.get(version, ()):
                        raise
                self._made.discard(version)
                self._remove(self._name(version))
                self._changed.put(version)  # its reader ended meanwhile; there may be another

    def _name(self, version: str) -> bytes:
        return version.encode() + b"." + self._holder

    def _make(self, kept: Kept) -> None:
        pin, name = kept.pin, self._name(kept.pin.version)
        if len(pin.files) > PIN_FILES_MAX:
            _log.info("%s: %d files are too many to be kept over a restart", pin.source, len(pin.files))
            return
        self._made.add(pin.version)
        for number, inode in enumerate(kept.holds):
            size = pin.hold_bytes(number)
            with self._volume.splice([Part(inode, 0, size)] if size else []) as hold:
                hold.commit(_hold(name, number))
        data = pin_record.encode(pin)
        with self._volume.create() as writing:
            os.pwrite(writing.descriptor, data, 0)
            writing.commit(_path(name, _RECORD), durability=Durability.STORE, xattrs={_BEAT: b"0"})

    def look_after(self) -> None:
        """Show that ours are alive, and take away those of others that are not."""
        self._beats += 1
        for version in self._made:
            with contextlib.suppress(NotFoundError):  # it was not made whole, or somebody took it away
                self._volume.set_xattr(_path(self._name(version), _RECORD), _BEAT, b"%d" % self._beats)
        before, self._seen = self._seen, {}
        now_s = self._clock.monotonic_s()
        for name in self._names():
            if name.endswith(b"." + self._holder):
                continue
            beat = self._beat(name)
            known, since_s = before.get(name, (None, now_s))
            self._seen[name] = beat, since_s if known == beat else now_s
            if now_s - self._seen[name][1] >= self._keep_s:
                _log.info("nobody came back for %s", name.decode("ascii", "backslashreplace"))
                self._remove(name)

    def _beat(self, name: bytes) -> bytes | None:
        try:
            return self._volume.get_xattr(_path(name, _RECORD), _BEAT)
        except (NotFoundError, NotDirectoryError, NoAttributeError):
            return None  # without a record: its maker died

    def _remove(self, name: bytes) -> None:
        """The record first: what has none is not found."""
        for path in (_path(name, _RECORD), FOLDER + b"/" + name):
            with contextlib.suppress(NotFoundError):
                self._volume.remove_tree(path)

    def close(self) -> None:
        """The pins stay. What was asked for before is done before."""
        with self._lock:
            self._ended = True
        self._changed.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _path(name: bytes, file: bytes) -> bytes:
    return b"/".join((FOLDER, name, file))


def _hold(name: bytes, number: int) -> bytes:
    return _path(name, b"hold-%d" % number)
