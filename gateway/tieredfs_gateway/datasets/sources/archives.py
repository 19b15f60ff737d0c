"""The bytes of a file at any offset, unpacked: what archives are read from.

A compressed archive is unpacked once, when it is looked into, in pieces in scratch space.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from tieredfs.volume.contract import Reading
from tieredfs_gateway.datasets.arrow_files import ByteCount, arrow_file
from tieredfs_gateway.datasets.scratch import Scratch
from tieredfs_gateway.datasets.sources.protocol import PART_BYTES
from tieredfs_gateway.datasets.sources.text import compression_of, unreadable
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """Pieces of `PART_BYTES` in the scratch file, the last one shorter."""

    offsets: tuple[int, ...]
    size_bytes: int


class Archive:
    """One file, open. For as long as its context lasts."""

    def __init__(self, source: Reading | _Unpacked, scratch: Scratch, count: ByteCount) -> None:
        self._source = source
        self._scratch = scratch
        self._count = count
        self._descriptor = None if isinstance(source, _Unpacked) else source.descriptor
        self._counted = 0
        """Bytes that were read and not told yet: a row of a few bytes is not worth taking a lock for."""

    @property
    def size_bytes(self) -> int:
        source = self._source
        return source.size_bytes if isinstance(source, _Unpacked) else source.attributes.size_bytes

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fewer bytes than asked only at the end."""
        if self._descriptor is not None:
            done = os.preadv(self._descriptor, [target], offset)
            if done == len(target):  # whole on the SSD, and one call: 10 us for 100 KB, where the layers below add 5
                self._counted += done
                return done
        if not isinstance(self._source, _Unpacked):
            done = self._source.read_into(offset, target)
            self._counted += done
            return done
        done = 0
        length = max(0, min(len(target), self._source.size_bytes - offset))
        while done < length:
            piece, within = divmod(offset + done, PART_BYTES)
            step = min(length - done, PART_BYTES - within)
            found = self._scratch.read(self._source.offsets[piece] + within, step)
            target[done : done + step] = memoryview(found).cast("B")
            done += step
        return done

    def read_each(self, offsets: Sequence[int], targets: Sequence[memoryview]) -> int:
        """Fill targets from their offsets, one after another; how many could be filled."""
        for number, (offset, target) in enumerate(zip(offsets, targets, strict=True)):
            length = len(target)
            if self._descriptor is not None and os.preadv(self._descriptor, (target,), offset) == length:
                self._counted += length
            elif self.read_into(offset, target) != length:
                return number
        return len(targets)

    def tell_count(self) -> None:
        self._count.add(self._counted)
        self._counted = 0

    def read(self, offset: int, length: int) -> bytes:
        target = bytearray(max(0, min(length, self.size_bytes - offset)))
        self.read_into(offset, memoryview(target))
        return bytes(target)


class Archives:
    """Opens them. Safe from any thread."""

    def __init__(self, snapshot: Snapshot, scratch: Scratch, count: ByteCount) -> None:
        self._snapshot = snapshot
        self._scratch = scratch
        self._count = count
        self._lock = threading.Lock()
        self._unpacked: dict[bytes, _Unpacked] = {}

    @contextmanager
    def opened(self, file: PinnedFile) -> Iterator[Archive]:
        if compression_of(file.path) is not None:
            yield Archive(self._unpacked_once(file), self._scratch, self._count)
            return
        with self._snapshot.reading(file) as reading:
            archive = Archive(reading, self._scratch, self._count)
            try:
                yield archive
            finally:
                archive.tell_count()

    def _unpacked_once(self, file: PinnedFile) -> _Unpacked:
        with self._lock:
            found = self._unpacked.get(file.path)
        if found is None:
            found = self._unpack(file)
            with self._lock:
                self._unpacked[file.path] = found
        return found

    def _unpack(self, file: PinnedFile) -> _Unpacked:
        offsets, size = [], 0
        with (
            unreadable(file, "a compressed archive"),
            self._snapshot.reading(file) as reading,
            arrow_file(reading, self._count, file.size_bytes) as native,
        ):
            stream = pa.CompressedInputStream(native, compression_of(file.path))
            while piece := _whole_piece(stream):
                offsets.append(self._scratch.append(memoryview(piece)))
                size += len(piece)
        return _Unpacked(tuple(offsets), size)


def _whole_piece(stream: pa.NativeFile) -> bytes:
    """`PART_BYTES`, fewer at the end only: a stream may give less than it is asked for."""
    found = bytearray()
    while len(found) < PART_BYTES and (more := stream.read(PART_BYTES - len(found))):
        found += more
    return bytes(found)
