"""Reading what another cache has staged, before it is stored: close-to-open needs no waiting for the drain.

In another process's directory *on this machine*, its file is opened. *On another host*, that host is asked (`peers`): a content
that is closed is fetched as one from the store is, and kept; one that somebody may go on writing is fetched for whoever opened
it, and goes with him. The store takes over when the drain has been faster.

A host may be down, or not serve; a content may move from one state to the next while it is asked for. So who opens looks again
for a while (`Patience`), and is then told which host has it, and what helps.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

from tieredfs.cache.fill import Filler
from tieredfs.cache.layout import bell_path, content_path, is_here
from tieredfs.cache.peer_protocol import Staged
from tieredfs.cache.peers import BELIEVED_S, LISTEN_VARIABLE, Peers
from tieredfs.cache.segments import read_packed
from tieredfs.cache.stored import StoredSource, stored_source
from tieredfs.core.spans import Span, cut
from tieredfs.errors import CorruptError, NotFoundError, StaleError, TieredError, UnavailableError
from tieredfs.host import Clock, Host
from tieredfs.host.bell import ring
from tieredfs.host.files import in_memory
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import SESSION_TIMEOUT_S, STAGED_PART_BYTES, STAGED_WAIT_S
from tieredfs.meta.metadata import Metadata
from tieredfs.model import NO_CACHE, Attributes, CacheId, CacheRecord

_log: Final = logging.getLogger("tieredfs.cache.elsewhere")
_TELL_S: Final = 10.0
"""How often the log says that readers wait in vain."""
_PAUSE_FIRST_S: Final = 0.01
_PAUSE_LAST_S: Final = 0.25
_FAILURES: Final = (UnavailableError, NotFoundError, CorruptError)


class Patience:
    """The wait of one caller: `note` each failure, `pause` before the next try. `Elsewhere.patience` makes them."""

    __slots__ = ("_clock", "_deadline_s", "_noted", "_on_end", "_pause_s")

    def __init__(self, clock: Clock, on_end: Callable[[TieredError], None]) -> None:
        """`on_end` is told of an error that is raised."""
        self._clock = clock
        self._on_end = on_end
        self._deadline_s: float | None = None
        self._pause_s = _PAUSE_FIRST_S
        self._noted = False

    def note(self, error: TieredError, wait_s: float = STAGED_WAIT_S) -> None:
        """Raises it when that went on for `wait_s`."""
        now_s = self._clock.monotonic_s()
        if self._deadline_s is None:
            self._deadline_s = now_s + wait_s
        if now_s >= self._deadline_s:
            self._on_end(error)
            raise error
        self._noted = True

    def pause(self) -> None:
        """Nothing when nothing was noted since."""
        if not self._noted:
            return
        self._noted = False
        about_to_wait()
        self._clock.sleep(self._pause_s)
        self._pause_s = min(_PAUSE_LAST_S, 2 * self._pause_s)


class Elsewhere:
    """What other caches have staged, as one cache sees it. Safe from any thread."""

    def __init__(self, metadata: Metadata, host: Host, peers: Peers, filler: Filler) -> None:
        self._metadata = metadata
        self._host = host
        self._peers = peers
        self._filler = filler
        self._near: dict[CacheId, bool] = {}
        self._near_s = self._rung_s = -BELIEVED_S
        self._told_s = -_TELL_S
        self._lock = threading.Lock()

    def close(self) -> None:
        self._peers.close()

    def patience(self) -> Patience:
        """For one opening, or one part."""
        return Patience(self._host.clock, self._given_up)

    def _given_up(self, error: TieredError) -> None:
        """A program on a mount sees a number only: the log says why, now and then."""
        now_s = self._host.clock.monotonic_s()
        with self._lock:
            if now_s - self._told_s < _TELL_S:
                return
            self._told_s = now_s
        _log.warning("a reader was told after waiting: %s", error)

    def is_near(self, cache: CacheId) -> bool:
        """Whether its directory is on this machine, so that nothing has to be fetched."""
        now_s = self._host.clock.monotonic_s()
        with self._lock:
            if now_s - self._near_s < BELIEVED_S and cache in self._near:
                return self._near[cache]
        found = {record.cache: is_here(record, self._host) for record in self._metadata.caches()}
        with self._lock:
            self._near, self._near_s = found, now_s
        return found.get(cache, False)

    def host_of(self, cache: CacheId) -> str:
        """Its name; empty: nobody knows that cache."""
        record = self._record(cache)
        return "" if record is None else record.host

    def wait_s(self, cache: CacheId) -> float:
        """How long it is worth while to wait for what is staged there: not at all when nobody of its host lives."""
        record = self._record(cache)
        oldest_ns = self._host.clock.wall_ns() - int(SESSION_TIMEOUT_S * 1e9)
        lives = record is not None and any(
            session.heartbeat_ns >= oldest_ns and session.host == record.host for session in self._metadata.sessions()
        )
        return STAGED_WAIT_S if lives else 0.0

    def hurry(self, cache: CacheId) -> None:
        """Somebody waits for what is staged there: it is drained without delay, if its host hears it. May be called often."""
        record = self._record(cache)
        if record is None:
            return
        if is_here(record, self._host):
            ring(bell_path(record.path))
            return
        now_s = self._host.clock.monotonic_s()
        with self._lock:
            if now_s - self._rung_s < BELIEVED_S:
                return
            self._rung_s = now_s
        try:
            self._peers.ring(record)
        except _FAILURES:
            return  # it is drained in its own time

    def open(self, attributes: Attributes) -> "int | StagedSource":
        """A descriptor of the staged file, for reading, or where to fetch it from.

        Raises NotFoundError, CorruptError, UnavailableError: not there now; looking at the attributes again may help.
        """
        record = self._record(attributes.staged_in)
        if record is None:
            raise UnavailableError("the file is staged in a cache that nobody knows any more")
        if is_here(record, self._host):
            path = content_path(record.path, attributes.inode, attributes.version)
            try:
                return self._host.files.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return self._open_packed(record, attributes)
        about_to_wait()
        try:
            staged = self._peers.look(record, attributes.inode, attributes.version)
        except _FAILURES as problem:
            raise _explained(record, problem) from problem
        return StagedSource(self._metadata, self._peers, self._filler, record, attributes, staged, self.patience)

    def _open_packed(self, record: CacheRecord, attributes: Attributes) -> int:
        """A descriptor of a content in a segment there, with the bytes in memory. Raises UnavailableError."""
        staged = self._metadata.staged_as(record.cache, attributes.inode)
        if staged is None or staged.version != attributes.version or staged.place is None:
            raise UnavailableError(f"the staged file is not in {record.path}, or not any more")
        try:
            return in_memory(read_packed(self._host.files, record.path, staged.place, staged.inode, staged.version))
        except NotFoundError as error:
            raise UnavailableError(str(error)) from error

    def _record(self, cache: CacheId) -> CacheRecord | None:
        return next((record for record in self._metadata.caches() if record.cache == cache), None)


class StagedSource:
    """`tieredfs.cache.fill.Source` for a content that is staged on another host. What comes is of that version, or StaleError."""

    def __init__(
        self,
        metadata: Metadata,
        peers: Peers,
        filler: Filler,
        record: CacheRecord,
        attributes: Attributes,
        staged: Staged,
        patience: Callable[[], Patience],
    ) -> None:
        self.size_bytes = staged.size_bytes
        self.closed = staged.closed
        self.spans: Sequence[Span] = tuple(cut(staged.data, min(STAGED_PART_BYTES, filler.buffer_bytes)))
        self._metadata = metadata
        self._patience = patience
        self._peers = peers
        self._filler = filler
        self._record = record
        self._inode = attributes.inode
        self._version = attributes.version
        self._stored: StoredSource | None = None

    def copy(self, span: Span, descriptor: int) -> None:
        """Raises StaleError (written to again, or deleted), UnavailableError, and what the store raises once it has it."""
        patience = self._patience()
        while True:
            stored = self._stored
            if stored is not None:
                stored.copy(span, descriptor)
                return
            try:
                self._fetch(span, descriptor)
            except _FAILURES as problem:
                if not self._is_stored_now():
                    patience.note(_explained(self._record, problem))
                    patience.pause()
            else:
                return

    def _fetch(self, span: Span, descriptor: int) -> None:
        with self._filler.lend() as buffer:
            target = buffer[: span.length]
            assert len(target) == span.length, "spans were cut to fit"
            self._peers.fetch_into(self._record, self._inode, self._version, span.offset, target)
            self._filler.write(descriptor, target, span.offset)

    def _is_stored_now(self) -> bool:
        """Look why it could not be fetched. Raises StaleError."""
        try:
            now = self._metadata.attributes(self._inode)
            if now.version == self._version and now.staged_in == NO_CACHE:
                stored = stored_source(self._metadata, self._filler, now)
                now = self._metadata.attributes(self._inode)
                self._stored = stored if now.version == self._version else None
        except NotFoundError:
            raise StaleError(f"the file was deleted on host {self._record.host} before it was stored") from None
        if now.version != self._version:
            raise StaleError(
                f"the file was written to again on host {self._record.host} while it was being fetched from there: open it again"
            )
        return self._stored is not None


def _explained(record: CacheRecord, problem: TieredError) -> TieredError:
    """What helps."""
    return UnavailableError(
        f"the file is staged on host {record.host} and not stored yet ({problem}); it can be read when that host has stored it, "
        f"or serves it ({LISTEN_VARIABLE}, or `tieredfs peer` there)"
    )
