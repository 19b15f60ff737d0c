"""Filling: a content comes from the store, or from the host that has it staged, in parallel, while its first readers are served.

A `Fill` knows which ranges have arrived. Readers wait for theirs, and what they wait for is fetched next. From the store the unit
is one extent, hence at most one block: decoding around a lost chunk needs the whole block anyway, and from six directories on
one SSD a block of 64 MiB takes under 0.1 s.
"""

import errno
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

from tieredfs.block.loans import BlockLoans
from tieredfs.block.store import BlockStore
from tieredfs.core.spans import Span
from tieredfs.errors import DeadlineError, NoSpaceError, TieredError, UnavailableError
from tieredfs.host import Files, crash
from tieredfs.host.buffers import BufferPool
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import FILL_WAIT_S
from tieredfs.model import Block


class Source(Protocol):
    """Where a content comes from. `copy` from several threads at once."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def spans(self) -> Sequence[Span]:
        """What is not a hole, in order, in the parts that it is fetched in."""
        ...

    def copy(self, span: Span, descriptor: int) -> None:
        """Bring one part into the local file. Raises TieredError, OSError."""
        ...


class Fill:
    """The arrival of one content. `wait` from any thread.

    `descriptor` is the fill's own, closed by its last worker: so a late write never meets a number that was reused.
    """

    def __init__(self, source: Source, descriptor: int) -> None:
        self.source = source
        self.spans = tuple(source.spans)
        self.descriptor = descriptor
        self.whole = not self.spans
        self.error: TieredError | None = None
        self._starts = [span.offset for span in self.spans]
        self._arrived = [False] * len(self.spans)
        self._pending = deque(range(len(self.spans)))
        self._missing = len(self.spans)
        self._workers = 0
        self._changed = threading.Condition()

    def next_part(self) -> int | None:
        """Take the index of the part to fetch next; None when there is no more to take."""
        with self._changed:
            if self.error is not None or not self._pending:
                return None
            return self._pending.popleft()

    def arrived(self, part: int) -> bool:
        """A part is in the local file; True if it was the last."""
        with self._changed:
            self._arrived[part] = True
            self._missing -= 1
            self._changed.notify_all()
            return self._missing == 0

    def worker_came(self) -> None:
        with self._changed:
            self._workers += 1

    def worker_left(self) -> bool:
        """True for the last one."""
        with self._changed:
            self._workers -= 1
            return self._workers == 0

    def finish(self) -> None:
        """The local file has its final name; from now on it is whole."""
        with self._changed:
            self.whole = True
            self._changed.notify_all()

    def fail(self, error: TieredError) -> bool:
        """Everybody who waits gets `error`; False if it had failed before."""
        with self._changed:
            first, self.error = self.error is None, self.error or error
            self._changed.notify_all()
            return first

    def abandon(self) -> None:
        """Nobody waits for it any more: nothing further is fetched."""
        with self._changed:
            if not self.whole:
                self.error = self.error or DeadlineError("the file was closed before it was whole")

    def wait(self, offset: int, length: int, timeout_s: float = FILL_WAIT_S) -> None:
        """Returns when the bytes are in the local file. Raises what the fill failed with, or DeadlineError."""
        if self.whole:
            return
        about_to_wait()
        wanted = self._parts(offset, length)
        with self._changed:
            self._hasten(wanted)
            done = self._changed.wait_for(
                lambda: self.error is not None or all(self._arrived[part] for part in wanted), timeout_s
            )
            if self.error is not None and not all(self._arrived[part] for part in wanted):
                raise self.error
            if not done:
                raise DeadlineError(f"{length} bytes at {offset} did not come in {timeout_s:.0f} s")

    def wait_whole(self, timeout_s: float = FILL_WAIT_S) -> None:
        """Returns when the whole content is local, under its final name."""
        if not self.whole:
            about_to_wait()
        with self._changed:
            done = self._changed.wait_for(lambda: self.error is not None or self.whole, timeout_s)
            if self.error is not None:
                raise self.error
            if not done:
                raise DeadlineError(f"the file did not come in {timeout_s:.0f} s")

    def _parts(self, offset: int, length: int) -> list[int]:
        first = max(0, bisect_right(self._starts, offset) - 1)
        last = bisect_right(self._starts, offset + length - 1)
        return [part for part in range(first, last) if self.spans[part].end > offset]

    def _hasten(self, wanted: Sequence[int]) -> None:
        late = [part for part in wanted if not self._arrived[part]]
        for part in reversed(late):
            if self._pending and self._pending[0] != part and part in self._pending:
                self._pending.remove(part)
                self._pending.appendleft(part)


def _domain_error(error: TieredError | OSError) -> TieredError:
    if isinstance(error, TieredError):
        return error
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError("the SSD is full of data that is not stored yet: there is no room to fetch a file")
    return UnavailableError(f"the SSD failed: {error}")


class Filler:
    """Threads that carry fills out. One per tier."""

    def __init__(self, blocks: BlockStore, files: Files, buffer_bytes: int, worker_count: int) -> None:
        self._blocks = blocks
        self._files = files
        self.buffer_bytes = buffer_bytes
        self._buffers = BlockLoans(BufferPool(buffer_bytes, worker_count))
        self._worker_count = worker_count
        self._executor = ThreadPoolExecutor(worker_count, "fill")
        self._counting = threading.Lock()
        self.fills = 0
        """Contents that were fetched, or began to be, and bytes of them that came."""
        self.filled_bytes = 0

    def start(self, fill: Fill, on_whole: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Begin; exactly one of the callbacks runs, in a filling thread, when the last part arrived or the first failed."""
        count = min(self._worker_count, len(fill.spans))
        with self._counting:
            self.fills += count > 0
        for _ in range(count):
            fill.worker_came()
        for _ in range(count):
            self._executor.submit(self._work, fill, on_whole, on_failed)

    def start_private(self, path: str, source: Source) -> tuple[Fill, int]:
        """Fetch into a file that has no name once this returns; the fill, and a descriptor to read from. Raises OSError."""
        descriptor = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self._files.truncate(descriptor, source.size_bytes)
            reading = self._files.open(path, os.O_RDONLY)
        except BaseException:
            self._files.close(descriptor)
            raise
        finally:
            self._files.unlink(path)
        fill = Fill(source, descriptor)
        if fill.spans:
            self.start(fill, lambda: None, lambda: None)
        else:
            self._files.close(descriptor)
        return fill, reading

    def reading(self, block: Block, offset: int, length: int) -> AbstractContextManager[memoryview]:
        """A range of a block, past the SSD: see `BlockStore.reading`. `length` up to a block."""
        return self._blocks.reading(block, offset, length, self._buffers, FILL_WAIT_S)

    def lend(self) -> AbstractContextManager[memoryview]:
        """Memory of `buffer_bytes`, for what comes from elsewhere. Raises DeadlineError."""
        return self._buffers.lend(FILL_WAIT_S)

    def write(self, descriptor: int, content: memoryview, offset: int) -> None:
        """Into a local file that is being filled. Raises OSError."""
        self._files.write(descriptor, [content], offset)

    def _work(self, fill: Fill, on_whole: Callable[[], None], on_failed: Callable[[], None]) -> None:
        try:
            self._fetch_parts(fill, on_whole, on_failed)
        finally:
            if fill.worker_left():
                self._files.close(fill.descriptor)

    def _fetch_parts(self, fill: Fill, on_whole: Callable[[], None], on_failed: Callable[[], None]) -> None:
        while (part := fill.next_part()) is not None:
            try:
                fill.source.copy(fill.spans[part], fill.descriptor)
                with self._counting:
                    self.filled_bytes += fill.spans[part].length
                crash.here("fill.part-written")
            except (TieredError, OSError) as error:
                if fill.fail(_domain_error(error)):
                    on_failed()
                return
            if fill.arrived(part):
                on_whole()
                fill.finish()
                crash.here("fill.whole")

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
