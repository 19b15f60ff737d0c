"""`RemoteStore`: a chunk store over whatever keeps objects elsewhere: a bucket, a storage node.

An object is what a disk has in a file: header, checksums, payload. `Objects` brings and takes bytes; what they are worth is
judged here, at the reader's end of the wire, so neither the far side nor what lies between has to be believed. Headers
are remembered, bounded; every answer also says how long the object is, so one that was cut short since is recognised.

Reading a chunk whose header is not known costs one request if it is read from the start, else two; otherwise one per run of
cells. Safe from any thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from tieredfs.chunk.cells import check_cells, check_length, check_range, header_of, info_of, read_cells, recognise
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.store import ChunkInfo, ChunkName, StoreSpace
from tieredfs.errors import TieredError, UnavailableError
from tieredfs.format.chunk import ChunkHeader, encode_header
from tieredfs.host import Clock
from tieredfs.limits import (
    CELL_BYTES,
    CHUNK_HEADER_BYTES,
    REMOTE_HEADERS_MAX,
    REMOTE_SPACE_FRESH_S,
    REMOTE_SPACE_STALE_S,
    REMOTE_SPACE_WAIT_S,
)


class Objects(Protocol):
    """Objects by the names of chunks. Safe from any thread; each call is bounded in time.

    Raises UnavailableError, NoSpaceError, CorruptError, and NotFoundError only while the place itself is there and ours.
    """

    @property
    def where(self) -> str:
        """For messages: no secret in it."""
        ...

    def fetch(self, name: ChunkName, start: int, views: Sequence[memoryview]) -> int:
        """Fill `views`, one after another, with the object's bytes from `start`; returns the length of the whole object.

        Raises CorruptError when the object ends before they are full; also if it is empty.
        """
        ...

    def store(self, name: ChunkName, header: bytes, payload: memoryview, payload_crc32c: int) -> None:
        """Durable, and whole or not at all. Repeating it is harmless, also after an answer that was lost."""
        ...

    def remove(self, name: ChunkName) -> None: ...
    def names(self) -> Iterator[ChunkName]: ...
    def space(self) -> StoreSpace:
        """Asks the far side, also whether the place is still ours."""
        ...

    def close(self) -> None: ...


class RemoteStore:
    """The chunk store of `objects`, which it closes. `dumps`: of the same place, by the same connections."""

    def __init__(self, objects: Objects, dumps: DumpShelf, clock: Clock) -> None:
        self.objects = objects
        self.dumps = dumps
        self._where = objects.where
        self._headers: OrderedDict[ChunkName, ChunkHeader] = OrderedDict()
        self._lock = threading.Lock()
        self._space = SpaceWatch(objects.space, clock, self._where)

    def put(self, info: ChunkInfo, payload: memoryview, cell_crcs: memoryview) -> None:
        assert len(payload) == info.payload_bytes
        header = encode_header(header_of(info, bytes(cell_crcs)))
        try:
            self.objects.store(info.name, header, payload, info.crc32c)
        finally:
            self._forget(info.name)

    def read_into(self, name: ChunkName, offset: int, target: memoryview) -> None:
        assert offset >= 0
        with self._lock:
            header = self._headers.get(name)
        try:
            if header is None:
                header, done = self._first(name, offset, target)
                self._remember(name, header)
            else:
                done = 0
            self._read(name, header, offset + done, target[done:])
        except TieredError:
            self._forget(name)
            raise

    def info(self, name: ChunkName) -> ChunkInfo:
        return info_of(name, self._fetch_header(name, []))

    def delete(self, name: ChunkName) -> None:
        self._forget(name)
        self.objects.remove(name)

    def names(self) -> Iterator[ChunkName]:
        return self.objects.names()

    def space(self) -> StoreSpace:
        return self._space.look()

    def close(self) -> None:
        self.objects.close()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _first(self, name: ChunkName, offset: int, target: memoryview) -> tuple[ChunkHeader, int]:
        """The header, and how much of the target came with it."""
        if offset or not len(target):
            return self._fetch_header(name, []), 0
        header = self._fetch_header(name, [target])
        check_range(header, len(target), self._where)
        whole = len(target) if len(target) == header.payload_bytes else len(target) - len(target) % CELL_BYTES
        check_cells(header, self._where, 0, target[:whole])
        return header, whole

    def _fetch_header(self, name: ChunkName, more: Sequence[memoryview]) -> ChunkHeader:
        raw = bytearray(CHUNK_HEADER_BYTES)
        stored_bytes = self.objects.fetch(name, 0, [memoryview(raw), *more])
        header = recognise(bytes(raw), name, self._where)
        check_length(header, stored_bytes, self._where)
        return header

    def _read(self, name: ChunkName, header: ChunkHeader, offset: int, target: memoryview) -> None:
        def fill(start: int, view: memoryview) -> None:
            check_length(header, self.objects.fetch(name, CHUNK_HEADER_BYTES + start, [view]), self._where)

        read_cells(header, self._where, offset, target, fill)

    def _remember(self, name: ChunkName, header: ChunkHeader) -> None:
        with self._lock:
            self._headers[name] = header
            self._headers.move_to_end(name)
            while len(self._headers) > REMOTE_HEADERS_MAX:
                self._headers.popitem(last=False)

    def _forget(self, name: ChunkName) -> None:
        with self._lock:
            self._headers.pop(name, None)


class SpaceWatch:
    """What the far side said of its space, asked again beside the work, so that placing a block waits for nobody.

    A side that is being asked for longer than `REMOTE_SPACE_WAIT_S` does not answer. The thread that asks ends with its
    call, which is bounded.
    """

    def __init__(self, ask: Callable[[], StoreSpace], clock: Clock, where: str) -> None:
        self._ask = ask
        self._clock = clock
        self._where = where
        self._changed = threading.Condition()
        self._known: StoreSpace | UnavailableError | None = None
        self._known_s = 0.0
        self._asking_since_s: float | None = None

    def look(self) -> StoreSpace:
        """Raises UnavailableError."""
        with self._changed:
            now_s = self._clock.monotonic_s()
            age_s = now_s - self._known_s
            if self._asking_since_s is None and (self._known is None or age_s > REMOTE_SPACE_FRESH_S):
                self._asking_since_s = now_s
                threading.Thread(target=self._refresh, name="space", daemon=True).start()
            if self._known is None or age_s > REMOTE_SPACE_STALE_S:
                self._changed.wait_for(lambda: self._asking_since_s is None, REMOTE_SPACE_WAIT_S)
            waits_s = 0.0 if self._asking_since_s is None else self._clock.monotonic_s() - self._asking_since_s
            known = self._known
        if isinstance(known, UnavailableError):
            raise UnavailableError(str(known))
        if known is None or waits_s > REMOTE_SPACE_WAIT_S:
            raise UnavailableError(f"{self._where} does not answer")
        return known

    def _refresh(self) -> None:
        answer: StoreSpace | UnavailableError
        try:
            answer = self._ask()
        except UnavailableError as error:
            answer = error
        except TieredError as error:  # an identity that is rotten, or somebody else's: not our disk any more
            answer = UnavailableError(str(error))
        with self._changed:
            self._known, self._known_s, self._asking_since_s = answer, self._clock.monotonic_s(), None
            self._changed.notify_all()
