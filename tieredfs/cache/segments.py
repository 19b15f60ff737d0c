"""Segments: files of an SSD directory in which small contents that were written together lie one behind another.

A file for each would cost more than everything else in a small upload: it is made, written, synced and removed. Here a group is
one write and one sync, into a file that has its length and its blocks already, so that the sync has nothing to do for the file
system's journal. `tieredfs.format.segment` says what lies there.

**A place in use** is one that a staged record names, or will when the transaction under way has committed. It is given up when no
record names it any more, *and that is durable*: after the sync behind a drain's commit, or behind a deletion. So a power cut
brings back no record whose place was given to another content. A segment without a place in use is used again from its beginning,
or removed.

**Whoever reads a place verifies it** against inode, version and checksums. So anybody may read one that he heard of, also
from another process, and notices when it was given away meanwhile. A drain keeps what it reads (`hold`).

Nothing is ever written into a page of the file that has a content in use: each group begins at a page. After a restart a segment is
not appended to, only emptied. One whose write or sync failed is not, either: what it has there is unknown.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tieredfs.cache.layout import CacheDirectory, segment_path
from tieredfs.errors import CorruptError, NotFoundError
from tieredfs.format.segment import HEADER_BYTES, PackedHeader, decode_header, encode_header, record_bytes
from tieredfs.host import Files, Host, isal
from tieredfs.host.files import Buffer
from tieredfs.host.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from tieredfs.limits import MIB, SEGMENT_BYTES, SEGMENT_CONTENT_BYTES_MAX, SEGMENT_QUIET_S, SEGMENTS_IDLE_MAX
from tieredfs.model import InodeId, Place

_PAGE_BYTES: Final = 4096
_ZEROS: Final = bytes(MIB)


@dataclass(frozen=True, slots=True)
class Whole:
    """A content to be written."""

    inode: InodeId
    version: int
    content: Buffer


@dataclass(eq=False, slots=True)
class _Segment:
    """`used`: length of what lies at each offset in use. `end`: where the next group begins. `kept`: it is filled now, or being
    read. `held_bytes`: what it takes of the SSD. `spoiled`: it goes when it is empty. `descriptor`: only of the one that is
    filled, for there may be thousands while the store takes nothing."""

    number: int
    held_bytes: int
    descriptor: int = -1
    end: int = 0
    kept: int = 0
    spoiled: bool = False
    punched: int | None = None
    """How many were in use when it got its holes."""
    used: dict[int, int] = field(default_factory=dict)


def segment_bytes(capacity_bytes: int) -> int:
    """Of an SSD tier with so much room: few segments must not be much of it."""
    return max(2 * SEGMENT_CONTENT_BYTES_MAX, min(SEGMENT_BYTES, capacity_bytes // 128 // MIB * MIB))


class Segments:
    """Of one cache directory in use. Safe from any thread.

    Order of locks: `_filling` (over the write and sync of a group), then `_lock` (over look-ups and what follows from them).
    """

    def __init__(self, directory: CacheDirectory, host: Host, segment_bytes: int) -> None:
        self._directory = directory
        self._files = host.files
        self._clock = host.clock
        self._segment_bytes = segment_bytes
        self._segments: dict[int, _Segment] = {}
        self._idle: list[_Segment] = []
        self._current: _Segment | None = None
        self._next = 1 + max(directory.segment_numbers(), default=0)
        self._filling = threading.Lock()
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._written_s = 0.0

    # ---- writing ----------------------------------------------------------------------------------------------------

    def write(self, wholes: Sequence[Whole]) -> list[Place]:
        """Where each is, durable, until it is released. Raises OSError: none of them is."""
        places: list[Place] = []
        with self._filling:
            try:
                for run, segment in self._runs(wholes):
                    places += self._write_run(segment, run)
            except BaseException:
                self._end_current(spoiled=True)
                self.release(places)
                raise
        return places

    def _runs(self, wholes: Sequence[Whole]) -> Iterator[tuple[list[Whole], _Segment]]:
        """What goes into one segment together. The segment is asked for when what was before it is written."""
        run: list[Whole] = []
        segment = self._segment_with_room(_PAGE_BYTES)
        length = 0
        for whole in wholes:
            assert len(whole.content) <= SEGMENT_CONTENT_BYTES_MAX
            more = record_bytes(len(whole.content))
            if segment.end + length + more > self._segment_bytes:
                if run:
                    yield run, segment
                segment, run, length = self._segment_with_room(self._segment_bytes), [], 0
            run.append(whole)
            length += more
        if run:
            yield run, segment

    def _write_run(self, segment: _Segment, run: Sequence[Whole]) -> list[Place]:
        start = offset = segment.end
        buffers: list[Buffer] = []
        places: list[Place] = []
        lengths: list[int] = []
        for whole in run:
            size = len(whole.content)
            header = PackedHeader(whole.inode, whole.version, size, isal.crc32c(whole.content))
            length = record_bytes(size)
            buffers += (encode_header(header), whole.content, _ZEROS[: length - HEADER_BYTES - size])
            places.append(Place(segment.number, offset))
            lengths.append(length)
            offset += length
        self._files.write(segment.descriptor, buffers, start)
        self._files.sync(segment.descriptor)
        self._written_s = self._clock.monotonic_s()
        segment.end = offset + -offset % _PAGE_BYTES
        with self._lock:
            segment.used |= {place.offset: length for place, length in zip(places, lengths, strict=True)}
            self._used_bytes += sum(lengths)
        return places

    def _segment_with_room(self, size_bytes: int) -> _Segment:
        """The one that is being filled, or another in its place. Raises OSError."""
        current = self._current
        if current is not None:
            if current.end + size_bytes <= self._segment_bytes:
                return current
            self._end_current()
        with self._lock:
            chosen = self._idle.pop() if self._idle else None
        if chosen is None:
            chosen = self._make()
        else:
            chosen.descriptor = self._files.open(self._path(chosen.number), os.O_RDWR)
        with self._lock:
            chosen.kept, chosen.end = 1, 0
            self._segments[chosen.number] = self._current = chosen
        return chosen

    def _end_current(self, *, spoiled: bool = False) -> None:
        """Nothing is written into the one that is being filled any more. `spoiled`: what it has from `end` on is unknown."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None:
            self._files.close(current.descriptor)
            current.spoiled |= spoiled
            self._settle([current], kept=-1)

    def _path(self, number: int) -> str:
        return segment_path(self._directory.path, number)

    def _make(self) -> _Segment:
        """With its length, its blocks and its name durable; once for some thousand contents."""
        number, self._next = self._next, self._next + 1
        path = self._path(number)
        descriptor = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            for offset in range(0, self._segment_bytes, len(_ZEROS)):
                self._files.write(descriptor, [_ZEROS[: self._segment_bytes - offset]], offset)
            self._files.sync(descriptor)
            self._files.sync_directory(self._directory.segments)
        except BaseException:
            self._files.close(descriptor)
            with contextlib.suppress(OSError):
                self._files.unlink(path)
            raise
        return _Segment(number, self._segment_bytes, descriptor)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read(self, place: Place, inode: InodeId, version: int) -> bytes:
        """Raises CorruptError (the SSD has not what was written), OSError. For a place in use."""
        return _read(self._files, self._path(place.segment), place, inode, version)

    @contextmanager
    def held(self, place: Place) -> Iterator[None]:
        """The place is not given away meanwhile, whoever releases it."""
        self.hold(place)
        try:
            yield
        finally:
            self.let_go(place)

    def hold(self, place: Place) -> None:
        with self._lock:
            self._segments[place.segment].kept += 1

    def let_go(self, place: Place) -> None:
        self._settle([self._segments[place.segment]], kept=-1)

    # ---- giving up --------------------------------------------------------------------------------------------------

    def release(self, places: Iterable[Place]) -> None:
        """No staged record names them, and that is durable (or none ever did)."""
        touched: dict[int, _Segment] = {}
        with self._lock:
            for place in places:
                segment = self._segments.get(place.segment)
                if segment is None:  # it was closed
                    continue
                touched[place.segment] = segment
                self._used_bytes -= segment.used.pop(place.offset)
        self._settle(list(touched.values()))

    def _settle(self, segments: Sequence[_Segment], kept: int = 0) -> None:
        """Those that nobody needs any more are kept to be used again, or go. `kept`: a change of how many keep them."""
        going: list[_Segment] = []
        with self._lock:
            for segment in segments:
                segment.kept += kept
                if segment.used or segment.kept or self._segments.get(segment.number) is not segment:
                    continue
                del self._segments[segment.number]
                if segment.spoiled or len(self._idle) >= SEGMENTS_IDLE_MAX:
                    going.append(segment)
                else:
                    self._idle.append(segment)
        for segment in going:
            self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        """What cannot be removed now, the next recovery removes."""
        with contextlib.suppress(OSError):
            self._files.unlink(self._path(segment.number))

    # ---- room -------------------------------------------------------------------------------------------------------

    def spare_bytes(self) -> int:
        """What segments take of the SSD beyond the contents in them, and beyond what is ready for the next ones."""
        with self._lock:
            held = sum(segment.held_bytes for segment in (*self._segments.values(), *self._idle))
            return max(0, held - self._used_bytes - self._ready_bytes())

    def ready_bytes(self) -> int:
        """What may be written without taking more of the SSD: the rest of the one that is being filled."""
        with self._lock:
            return self._ready_bytes()

    def _ready_bytes(self) -> int:
        current = self._current
        if current is None:
            return 0
        return self._segment_bytes - (current.end if current.used else 0)

    def shrink(self) -> None:
        """Room is short: empty segments go, and of others those pages that have nothing in use. The one that is being filled is
        left alone while somebody fills it: to end it would cost more room, that of another, than its rest gives. Does not wait
        for a group that is being written."""
        if self._filling.acquire(blocking=False):
            try:
                if self._clock.monotonic_s() - self._written_s >= SEGMENT_QUIET_S:
                    self._end_current()
            finally:
                self._filling.release()
        with self._lock:
            idle, self._idle = self._idle, []
            full = [segment for segment in self._segments.values() if segment is not self._current]
            for segment in full:
                segment.kept += 1
        for segment in idle:
            self._remove(segment)
        for segment in full:
            self._punch(segment)
        self._settle(full, kept=-1)

    def _punch(self, segment: _Segment) -> None:
        """Nothing where the file system cannot. Nobody writes here any more, so a hole is at nobody's place."""
        with self._lock:
            used = sorted(segment.used.items())
            if segment.punched == len(used):
                return
            segment.spoiled, segment.punched = True, len(used)
        position, mode = 0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        with contextlib.suppress(OSError):
            descriptor = self._files.open(self._path(segment.number), os.O_RDWR)
            try:
                for offset, length in [*used, (self._segment_bytes, 0)]:
                    hole_end = offset // _PAGE_BYTES * _PAGE_BYTES
                    if hole_end > position:
                        self._files.allocate(descriptor, mode, position, hole_end - position)
                    end = offset + length
                    position = end + -end % _PAGE_BYTES
                segment.held_bytes = self._files.stat(descriptor).st_blocks * 512
            finally:
                self._files.close(descriptor)

    # ---- coming and going -------------------------------------------------------------------------------------------

    def adopt(self, place: Place, inode: InodeId, version: int) -> int | None:
        """Recovery: take a place into use that a staged record names; the length of the content. None: it is not there."""
        path = self._path(place.segment)
        try:
            content = _read(self._files, path, place, inode, version)
            held_bytes = self._files.stat_path(path).st_blocks * 512
        except (FileNotFoundError, CorruptError):
            return None
        segment = self._segments.setdefault(place.segment, _Segment(place.segment, held_bytes, spoiled=True))
        with self._lock:
            segment.used[place.offset] = record_bytes(len(content))
            self._used_bytes += segment.used[place.offset]
        return len(content)

    def adopted(self) -> int:
        """Recovery: all that is in use is known. What is not goes; the number of segments that did."""
        self._settle(list(self._segments.values()))
        left = [number for number in self._directory.segment_numbers() if number not in self._segments]
        for number in left:
            self._files.unlink(self._path(number))
        return len(left)

    def close(self) -> None:
        """What is in use stays, for recovery; what is released from now on is given up by that."""
        self._end_current()
        with self._lock:
            idle, self._idle = self._idle, []
            self._segments.clear()
        for segment in idle:
            self._remove(segment)


def read_packed(files: Files, root: str, place: Place, inode: InodeId, version: int) -> bytes:
    """A content in a segment of the cache directory `root`, whoever uses it. Raises NotFoundError (it is not there, or not any
    more), OSError."""
    try:
        return _read(files, segment_path(root, place.segment), place, inode, version)
    except FileNotFoundError:
        raise NotFoundError(f"segment {place.segment} is not in {root}, or not any more") from None
    except CorruptError as error:
        raise NotFoundError(f"{error}; perhaps not any more") from error


def _read(files: Files, path: str, place: Place, inode: InodeId, version: int) -> bytes:
    """Raises CorruptError, FileNotFoundError, OSError."""
    descriptor = files.open(path, os.O_RDONLY)
    try:
        return _read_at(files, descriptor, place, inode, version)
    finally:
        files.close(descriptor)


def _read_at(files: Files, descriptor: int, place: Place, inode: InodeId, version: int) -> bytes:
    """Raises CorruptError, OSError."""
    first = bytearray(2 * _PAGE_BYTES)
    count = files.read_into(descriptor, memoryview(first), place.offset)
    header = decode_header(bytes(first[: min(count, HEADER_BYTES)]))
    if (header.inode, header.version) != (inode, version):
        raise CorruptError(f"segment {place.segment} has another content at {place.offset}")
    if header.size_bytes > SEGMENT_CONTENT_BYTES_MAX:
        raise CorruptError(f"segment {place.segment} has a content of {header.size_bytes} bytes")
    end = HEADER_BYTES + header.size_bytes
    if end > len(first):
        first += bytes(end - len(first))
        rest = memoryview(first)[count:]
        count += files.read_into(descriptor, rest, place.offset + count)
        rest.release()
    content = bytes(memoryview(first)[HEADER_BYTES : min(end, count)])
    if len(content) != header.size_bytes or isal.crc32c(content) != header.crc32c:
        raise CorruptError(f"the content at {place.offset} of segment {place.segment} fails its checksum")
    return content
