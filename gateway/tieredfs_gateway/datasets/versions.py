"""Pinning: which files a dataset is, and that they stay what they are while somebody reads them.

A `Snapshot` holds the contents by reference: files without a name, made by `FileSystem.splice` of up to 4,096 files each, refer to
the same blocks. No byte is moved, and no block is deleted, whatever becomes of the names. A file is read through its own
inode, hence from the copy that the SSD has of it, as long as that has the pinned version; once it is overwritten or deleted,
from a file of its own made out of the hold.

The holds belong to this process's session in the metadata. `close` lets them go. After a crash the session's heartbeat stops, and
whoever collects garbage next (a mount's caretaker, `tieredfs gc`) reclaims them. Nothing has to be cleaned up by hand. What is to
outlive the process is kept by `pins`; `Snapshot.of_holds` goes on from there.
"""

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final, Protocol, Self, TypeVar

from tieredfs.errors import ConflictError, InvalidRequestError, NotFoundError, StaleError, UnavailableError
from tieredfs.model import NO_CACHE, Attributes, InodeId
from tieredfs.volume.contract import Part, Reading, Writing
from tieredfs.volume.filesystem import FileSystem
from tieredfs_gateway.datasets.pin_record import PinnedFile, shown

__all__ = ["PinnedFile", "Snapshot", "shown", "version_of"]

HOLD_FILES_MAX: Final = 4096
OPEN_FILES_MAX: Final = 64
OPEN_BYTES_SHARE: Final = 1 / 16
"""Of the SSD, for files that are open and not being read."""
DECODERS_MAX: Final = 8
"""That are kept, of all files: what reads in order needs one for each of its threads."""
_RACES_MAX: Final = 5


class Decoder(Protocol):
    """What reads an open file, and costs more to make than to use again."""

    def close(self) -> None: ...


D = TypeVar("D", bound=Decoder)


def version_of(files: Sequence[PinnedFile]) -> str:
    """32 hex digits: equal for equal names with equal contents of a volume, whoever asks."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        found = file.attributes
        digest.update(b"%d:%s %d %d %d\n" % (len(file.path), file.path, found.inode, found.version, found.size_bytes))
    return digest.hexdigest()


class Snapshot:
    """Files, pinned. Safe from any thread."""

    def __init__(self, volume: FileSystem, found: Sequence[tuple[bytes, Attributes]]) -> None:
        """Raises NotFoundError (one vanished), DeadlineError (one is being written, and is not stored within a minute)."""
        self._volume = volume
        self._holds: list[Writing] = []
        self._own: dict[bytes, Writing] = {}
        self._open: OrderedDict[bytes, _Shared] = OrderedDict()
        self._decoders: list[tuple[_Shared, Hashable, Any]] = []
        """That nobody uses, of files that are open; the longest idle first."""
        self._lock = threading.Lock()
        self._closed = False
        self._open_bytes_max = int(volume.cache_bytes * OPEN_BYTES_SHARE)
        self._pinned: dict[bytes, PinnedFile] = {}
        try:
            self.files = tuple(self.add(found))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_holds(
        cls, volume: FileSystem, files: Sequence[PinnedFile], more: int, holds: Sequence[tuple[InodeId, int]]
    ) -> Self:
        """Those files, the last `more` of which the others name, as they are held by other files: inodes and sizes. Raises
        NotFoundError: they are not any more."""
        made = cls(volume, ())
        try:
            for inode, size in holds:
                made._holds.append(volume.splice([Part(inode, 0, size)] if size else []))
        except BaseException:
            made.close()
            raise
        made.files = tuple(files[: len(files) - more])
        made._pinned = {file.path: file for file in files}
        return made

    @property
    def held(self) -> tuple[tuple[PinnedFile, ...], tuple[InodeId, ...]]:
        """Everything that is pinned, `files` first, and the files that hold it."""
        with self._lock:
            first = {file.path for file in self.files}
            more = [file for path, file in self._pinned.items() if path not in first]
            return (*self.files, *more), tuple(hold.inode for hold in self._holds)

    def pinned(self, path: bytes) -> PinnedFile | None:
        """The file of that name, if it is pinned already."""
        with self._lock:
            return self._pinned.get(path)

    def add(self, found: Sequence[tuple[bytes, Attributes]]) -> list[PinnedFile]:
        """Pin more files: those that the first ones name. Raises what `__init__` raises."""
        files: list[PinnedFile] = []
        for start in range(0, len(found), HOLD_FILES_MAX):
            files += self._hold(found[start : start + HOLD_FILES_MAX])
        with self._lock:
            self._pinned |= {file.path: file for file in files}
        return files

    @property
    def version(self) -> str:
        """Of everything that is pinned: see `version_of`."""
        with self._lock:
            return version_of([file for _, file in sorted(self._pinned.items())])

    def _hold(self, found: Sequence[tuple[bytes, Attributes]]) -> list[PinnedFile]:
        """One unnamed file that refers to all of them; those that changed meanwhile are looked at again."""
        current = list(found)
        for _ in range(_RACES_MAX):
            parts = [Part(seen.inode, 0, seen.size_bytes) for _, seen in current if seen.size_bytes]
            try:
                hold = self._volume.splice(parts)
            except (InvalidRequestError, StaleError, NotFoundError, ConflictError):
                current = [(path, self._volume.stat(path)) for path, _ in current]
                continue
            now = self._latest(current)
            if [_content(seen) for _, seen in now] == [_content(seen) for _, seen in current]:
                with self._lock:
                    self._holds.append(hold)
                    return _placed(now, len(self._holds) - 1)
            hold.discard()
            current = now
        raise ConflictError("the files of the dataset change faster than they can be pinned")

    def _latest(self, found: Sequence[tuple[bytes, Attributes]]) -> list[tuple[bytes, Attributes]]:
        """As they are now. A stored content has one version for ever; what was staged may have grown since it was listed."""
        versions = self._volume.versions([seen.inode for _, seen in found])
        return [
            (path, seen)
            if seen.staged_in == NO_CACHE and versions.get(seen.inode) == seen.version
            else (path, self._looked_up(path, seen))
            for path, seen in found
        ]

    def _looked_up(self, path: bytes, seen: Attributes) -> Attributes:
        try:
            return self._volume.attributes(seen.inode)
        except (NotFoundError, StaleError):
            return self._volume.stat(path)

    # ---- reading ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self, file: PinnedFile) -> Iterator[Reading]:
        """The file, open, as it was when it was pinned. A few files stay open between uses."""
        shared = self._enter(file)
        try:
            yield shared.reading(lambda: self._opened(file))
        finally:
            self._leave(shared)

    @contextlib.contextmanager
    def decoding(self, file: PinnedFile, kind: Hashable, make: Callable[[Reading], D]) -> Iterator[D]:
        """What `make` makes of the file, open as in `reading`, for one user at a time. Of a file that is whole on this SSD it is
        kept for the next one who asks for that `kind`, at most as long as the file is open; after a failure it is not."""
        shared = self._enter(file)
        try:
            reading = shared.reading(lambda: self._opened(file))
            is_whole = reading.descriptor is not None
            with contextlib.ExitStack() as stack:
                decoder = self._idle_decoder(shared, kind) or make(reading)
                closing = stack.enter_context(contextlib.closing(decoder))
                yield closing
                if is_whole:
                    stack.pop_all()
                    self._keep_decoder(shared, kind, decoder)
        finally:
            self._leave(shared)

    def _idle_decoder(self, shared: "_Shared", kind: Hashable) -> Any:
        with self._lock:
            for number, (of, its_kind, decoder) in enumerate(self._decoders):
                if of is shared and its_kind == kind:
                    del self._decoders[number]
                    return decoder
        return None

    def _keep_decoder(self, shared: "_Shared", kind: Hashable, decoder: Decoder) -> None:
        with self._lock:
            self._decoders.append((shared, kind, decoder))
            surplus = self._decoders if self._closed else self._decoders[:-DECODERS_MAX]
            self._decoders = self._decoders[len(surplus) :]
        for _, _, each in surplus:
            each.close()

    def _enter(self, file: PinnedFile) -> "_Shared":
        with self._lock:
            if self._closed:
                raise InvalidRequestError("the dataset is closed")
            shared = self._open.get(file.path)
            if shared is None:
                shared = self._open[file.path] = _Shared()
            self._open.move_to_end(file.path)
            shared.users += 1
            return shared

    def _leave(self, shared: "_Shared") -> None:
        """Idle files stay open while that is few files, and little of the SSD: what is open cannot be evicted."""
        with self._lock:
            shared.users -= 1
            idle = [(path, each) for path, each in self._open.items() if not each.users]
            held = sum(each.held_bytes for _, each in idle)
            surplus = len(self._open) - OPEN_FILES_MAX
            closing = []
            for path, each in idle:
                if each.is_kept and surplus <= 0 and held <= self._open_bytes_max:
                    continue
                held -= each.held_bytes
                surplus -= 1
                closing.append(self._open.pop(path))
            decoders = self._decoders_of(closing) if closing else ()
        for decoder in decoders:
            decoder.close()
        for each in closing:
            each.close()

    def _decoders_of(self, closing: "Sequence[_Shared]") -> list[Decoder]:
        """Under the lock: they are not kept any more."""
        ended = [decoder for of, _, decoder in self._decoders if of in closing]
        self._decoders = [one for one in self._decoders if one[0] not in closing]
        return ended

    def _opened(self, file: PinnedFile) -> Reading:
        with self._lock:
            own = self._own.get(file.path)
        if own is None:
            try:
                return self._volume.open_version(file.attributes)
            except (NotFoundError, StaleError, UnavailableError):
                own = self._made_own(file)
        return self._volume.open_version(self._volume.attributes(own.inode))

    def _made_own(self, file: PinnedFile) -> Writing:
        """A file of its own, out of the hold: its inode shows something else now."""
        parts = [Part(self._holds[file.hold].inode, file.offset, file.size_bytes)] if file.size_bytes else []
        made = self._volume.splice(parts)
        with self._lock:
            kept = self._own.setdefault(file.path, made)
        if kept is not made:
            made.discard()
        return kept

    def close(self) -> None:
        """Nobody reads any more. Blocks that nothing else refers to may go from now on."""
        with self._lock:
            self._closed = True
            shared, self._open = list(self._open.values()), OrderedDict()
            decoders, self._decoders = self._decoders, []
            held, self._holds, self._own = [*self._own.values(), *self._holds], [], {}
        for _, _, decoder in decoders:
            decoder.close()
        for each in shared:
            each.close()
        for hold in held:
            hold.discard()


class _Shared:
    """One opening for several users; the first opens it."""

    def __init__(self) -> None:
        self.users = 0
        """Under the snapshot's lock."""
        self._reading: Reading | None = None
        self._lock = threading.Lock()

    def reading(self, opened: Callable[[], Reading]) -> Reading:
        with self._lock:
            if self._reading is None:
                self._reading = opened()
            return self._reading

    @property
    def is_kept(self) -> bool:
        """Worth keeping open between uses: a whole file on this SSD."""
        reading = self._reading
        return reading is not None and reading.descriptor is not None

    @property
    def held_bytes(self) -> int:
        """Of the SSD, while it is open."""
        reading = self._reading
        return reading.attributes.size_bytes if reading is not None else 0

    def close(self) -> None:
        with self._lock:
            reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()


def _placed(found: Sequence[tuple[bytes, Attributes]], hold: int) -> list[PinnedFile]:
    placed, offset = [], 0
    for path, attributes in found:
        placed.append(PinnedFile(path, attributes, hold, offset))
        offset += attributes.size_bytes
    return placed


def _content(attributes: Attributes) -> tuple[int, int, int]:
    return attributes.inode, attributes.version, attributes.size_bytes
