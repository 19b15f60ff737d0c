"""Who reads what: readers that are shared, and the sessions of trainers on them.

A *dataset in use* (`Opened`) is one reader of one pinned version, with its share and its transforms. Sessions that ask for
the same selection and order get the same one, for as long as any of them lives: so the ranks of a run that begin one after
the other see one version. Who names a version gets that one or `version_gone`; who asks for a fresh look gets the newest.

A session is a name for an `Opened` and a place for numbers; for a trainer that asked for views, for a second `Opened` beside it, of
the same version, whose batches have them. Trainers hold nothing else: a gateway that forgot a session (it was
restarted, or nobody had used it for `IDLE_S`) answers `session_unknown`, and the trainer opens it again, naming its version.

Blocking; safe from any thread.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import pyarrow as pa

from tieredfs.errors import ConfigurationError, NotFoundError, NotSupportedError, TieredError
from tieredfs_gateway.datasets.contract import DatasetSpec, NumberedBatch, OrderSpec, Position, Reader, Views
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.parcels import Encoders, Form
from tieredfs_gateway.datasets.sharing import Follower, Share

SESSIONS_MAX: Final = 1024
STREAMS_MAX: Final = 256
READERS_MAX: Final = 8
"""Each may keep decoded rows up to its part of the gateway's memory. Past it, one that nobody reads at the moment is closed. Those
with views count with those that they are beside, which decode nothing meanwhile."""
IDLE_S: Final = 600.0
OPEN_WAIT_S: Final = 300.0

OpenReader = Callable[[DatasetSpec, OrderSpec, str | None], Reader]
"""With the version that is wanted, if it can be had; None: the newest."""
Key = tuple[DatasetSpec, OrderSpec]


class Transforming(Protocol):
    """What applies a dataset's transforms. Raises Refusal `transform_unknown`, `transform_failed`."""

    def schema(self, names: Sequence[str], before: pa.Schema) -> pa.Schema: ...
    def apply(self, names: Sequence[str], batches: Iterator[NumberedBatch]) -> Iterator[NumberedBatch]: ...


class Opened:
    """A reader in use, and what all its sessions share."""

    def __init__(
        self, key: Key, reader: Reader, transforms: Transforming, encoders: Encoders, window_bytes: int
    ) -> None:
        self.spec, self.order = key
        self.reader = reader
        self.users = 0
        names = self.spec.transforms
        self.schema: pa.Schema = reader.schema
        if names:
            self.schema = transforms.schema(names, reader.schema).remove_metadata()

        def batches(position: Position, stride: int) -> Iterator[NumberedBatch]:
            plain = reader.batches(position, stride)
            return _as_promised(self.schema, names, transforms.apply(names, plain)) if names else plain

        self.share = Share(self.schema, batches, encoders, window_bytes, lambda: reader.is_at_hand and not names)

    def close(self) -> None:
        self.share.close()
        self.reader.close()


@dataclass(slots=True)
class Progress:
    """How far one stream of a session is."""

    client: str
    form: str
    epoch: int
    batch: int
    stride: int
    batches: int = 0
    rows: int = 0
    sent_bytes: int = 0
    waited_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Session:
    """One trainer's. `streams`: what it reads at the moment, by number."""

    id: str
    client: str
    opened: Opened
    used_s: float
    streams: dict[int, Progress] = field(default_factory=dict)
    batches: int = 0
    rows: int = 0
    closed: bool = False
    viewed: Opened | None = None
    has_views: bool = True
    """As far as is known."""

    @property
    def readers(self) -> tuple[Opened, ...]:
        return (self.opened,) if self.viewed is None else (self.opened, self.viewed)


class Sessions:
    """All sessions of a gateway."""

    def __init__(
        self,
        open_reader: OpenReader,
        transforms: Transforming,
        encoders: Encoders,
        window_bytes: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.encoders = encoders
        self._open_reader = open_reader
        self._transforms = transforms
        self._window_bytes = window_bytes
        self._now = now
        self._opened: list[Opened] = []
        self._opening: dict[Key, Future[Opened]] = {}
        self._sessions: dict[str, Session] = {}
        self._stream_number = 0
        self._lock = threading.Lock()
        encoders.slabs.make_room = self.trim

    # ---- opening and closing ------------------------------------------------------------------------------------------

    def open(self, key: Key, client: str, version: str | None = None, *, fresh: bool = False) -> Session:
        """Raises Refusal, and what opening a reader raises."""
        _check(key)
        self.expire()
        self._make_room()
        opened = self._shared(key, version, fresh)
        session = Session(secrets.token_hex(16), client, opened, self._now())
        with self._lock:
            self._sessions[session.id] = session
        return session

    def _make_room(self) -> None:
        """Close the session that was idle longest, when there are too many: datasets that are dropped are not always closed. A
        trainer that had it opens it again."""
        with self._lock:
            if len(self._sessions) < SESSIONS_MAX:
                return
            idle = [session for session in self._sessions.values() if not session.streams]
            if not idle:
                raise Refusal("too_many_sessions", f"{SESSIONS_MAX} sessions are being read")
            oldest = min(idle, key=_used_s)
        self.close(oldest.id)

    def _shared(self, key: Key, version: str | None, fresh: bool) -> Opened:
        """One that has one more user."""
        with self._lock:
            fresh = fresh and version is None
            found = None if fresh else self._find(key, version)
            if found is not None:
                found.users += 1
                return found
            waiting = None if fresh else self._opening.get(key)
            mine: Future[Opened] = Future()
            if waiting is None:
                self._opening[key] = mine
        if waiting is not None:  # somebody opens the same at this moment
            waiting.result(OPEN_WAIT_S)
            return self._shared(key, version, fresh=False)
        try:
            opened = self._opened_anew(key, version)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(opened)
            return opened
        finally:
            with self._lock:
                if self._opening.get(key) is mine:
                    del self._opening[key]

    def _find(self, key: Key, version: str | None) -> Opened | None:
        for opened in reversed(self._opened):
            if (opened.spec, opened.order) == key and version in (None, opened.reader.version):
                return opened
        return None

    def _opened_anew(self, key: Key, version: str | None) -> Opened:
        if not key[0].views:
            self._make_place()
        try:
            reader = self._open_reader(*key, version)
        except NotFoundError as error:
            raise NotFoundError(f"{key[0].source}: nothing of the volume is named so ({error})") from error
        try:
            _check_version(reader, version, key[0].source)
            made = Opened(key, reader, self._transforms, self.encoders, self._window_bytes)
        except BaseException:
            reader.close()
            raise
        with self._lock:
            same = self._find(key, reader.version)
            chosen = same or made
            chosen.users += 1
            if same is None:
                self._opened.append(made)
        if same is not None:
            made.close()
        return chosen

    def _make_place(self) -> None:
        """Close the sessions of the reader that was idle longest, when there are too many. Their trainers open them again."""
        with self._lock:
            plain = [opened for opened in self._opened if not opened.spec.views]
            if len(plain) < READERS_MAX:
                return
            sessions = sorted(self._sessions.values(), key=_used_s)
            busy = {id(opened) for session in sessions if session.streams for opened in session.readers}
            used_s = {id(opened): session.used_s for session in sessions for opened in session.readers}
            idle = [opened for opened in plain if id(opened) not in busy]
            if not idle:
                raise Refusal("too_many_sessions", f"{READERS_MAX} different datasets or orders are being read")
            oldest = min(idle, key=lambda opened: used_s.get(id(opened), 0.0))
            names = [session.id for session in sessions if oldest in session.readers]
        for name in names:
            self.close(name)

    def get(self, name: str) -> Session:
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                raise Refusal("session_unknown", "there is no such session: it ended, or the gateway was restarted")
            session.used_s = self._now()
            return session

    def close(self, name: str) -> None:
        """Its streams end. Closing twice is no error."""
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is None:
                return
            session.closed = True
            readers = session.readers
        for opened in readers:
            self._leave(opened)

    def views_of(self, session: Session) -> Opened:
        """What it reads with views, opened if it is not; what it reads without them where there can be none, or where it cannot be
        opened at the moment. Raises Refusal."""
        with self._lock:
            if session.viewed is not None or not session.has_views:
                return session.viewed or session.opened
        spec, order = session.opened.spec, session.opened.order
        if spec.filter is not None or spec.transforms or pa.binary() not in session.opened.schema.types:
            session.has_views = False
            return session.opened
        try:
            made = self._shared((replace(spec, views=True), order), session.opened.reader.version, fresh=False)
        except (TieredError, Refusal) as error:
            session.has_views = not isinstance(error, NotSupportedError)
            return session.opened
        with self._lock:
            surplus = made if session.viewed is not None or session.closed else None
            if surplus is None:
                session.viewed = made
            found = session.viewed
        if surplus is not None:
            self._leave(surplus)
        if found is None:
            raise Refusal("session_unknown", "the session was closed")
        return found

    def _leave(self, opened: Opened) -> None:
        with self._lock:
            opened.users -= 1
            if opened.users > 0:
                return
            self._opened.remove(opened)
        opened.close()
        pa.default_memory_pool().release_unused()  # 350 MB are left of 470, after flights

    def expire(self) -> int:
        """Close what nobody reads and nobody asked for since `IDLE_S`."""
        with self._lock:
            now = self._now()
            idle = [s.id for s in self._sessions.values() if not s.streams and now - s.used_s > IDLE_S]
        for name in idle:
            self.close(name)
        return len(idle)

    def close_all(self) -> None:
        with self._lock:
            names = list(self._sessions)
        for name in names:
            self.close(name)

    def trim(self) -> None:
        with self._lock:
            opened = list(self._opened)
        for one in opened:
            one.share.trim()

    # ---- streams ---------------------------------------------------------------------------------------------------------

    def follow(
        self, session: Session, position: Position, stride: int, form: Form, client: str, *, views: bool = False
    ) -> "Stream":
        """`views`: with values where they lie, where there are such. Raises Refusal."""
        if position.epoch < 0 or position.batches < 0 or not 1 <= stride < 1 << 32 or max(_parts(position)) >= 1 << 62:
            raise Refusal("bad_position", f"{position}, stride {stride}: epoch and batch count from 0, stride from 1")
        opened = self.views_of(session) if views else session.opened
        with self._lock:
            if session.closed:
                raise Refusal("session_unknown", "the session was closed")
            if sum(len(other.streams) for other in self._sessions.values()) >= STREAMS_MAX:
                raise Refusal("busy", f"{STREAMS_MAX} trainers are being served; try again")
            self._stream_number += 1
            number = self._stream_number
            progress = Progress(client, form, position.epoch, position.batches, stride)
            session.streams[number] = progress
            session.used_s = self._now()
        follower = opened.share.follow(position, stride, form)
        return Stream(self, session, number, progress, follower, opened.reader.views)

    def end(self, session: Session, number: int) -> None:
        with self._lock:
            progress = session.streams.pop(number, None)
            session.used_s = self._now()
            if progress is not None:
                session.batches += progress.batches
                session.rows += progress.rows

    def listed(self) -> list[dict[str, object]]:
        """For people and scripts: every session, how far it is, how fast."""
        with self._lock:
            return [self._described(session) for session in self._sessions.values()]

    def described(self, session: Session) -> dict[str, object]:
        with self._lock:
            return self._described(session)

    def _described(self, session: Session) -> dict[str, object]:
        opened, now = session.opened, time.monotonic()
        streams = [
            {
                "client": one.client,
                "form": one.form,
                "epoch": one.epoch,
                "batch": one.batch,
                "stride": one.stride,
                "rows": one.rows,
                "rows_per_s": round(one.rows / max(1e-9, now - one.began_s)),
                "sent_bytes": one.sent_bytes,
                "gateway_waited_s": round(one.waited_s, 3),
            }
            for one in session.streams.values()
        ]
        return {
            "session": session.id,
            "client": session.client,
            "source": opened.spec.source,
            "version": opened.reader.version,
            "batches": session.batches + sum(one.batches for one in session.streams.values()),
            "rows": session.rows + sum(one.rows for one in session.streams.values()),
            "idle_s": round(self._now() - session.used_s, 3),
            "streams": streams,
        }

    def reader_counters(self) -> dict[str, int]:
        """Of all readers that are open, together."""
        with self._lock:
            opened = list(self._opened)
        total: dict[str, int] = {}
        for one in opened:
            for name, count in one.reader.counters().items():
                total[name] = total.get(name, 0) + count
        return total

    def sizes(self) -> dict[str, int]:
        with self._lock:
            streams = sum(len(session.streams) for session in self._sessions.values())
            return {"sessions": len(self._sessions), "streams": streams, "readers": len(self._opened)}


class Stream:
    """A follower whose progress shows. `views`: of its batches. For one thread at a time; a context manager."""

    def __init__(
        self,
        sessions: Sessions,
        session: Session,
        number: int,
        progress: Progress,
        follower: Follower,
        views: Views | None = None,
    ) -> None:
        self.session = session
        self.views = views
        self.progress = progress
        self.follower = follower
        self._sessions = sessions
        self._number = number

    def sent(self, index: int, rows: int, size_bytes: int, batches: int = 1) -> None:
        """`index`: of the last one."""
        self.progress.batch = index
        self.progress.batches += batches
        self.progress.rows += rows
        self.progress.sent_bytes += size_bytes

    def check_open(self) -> None:
        if self.session.closed:
            raise Refusal("session_unknown", "the session was closed")

    def close(self) -> None:
        self.follower.close()
        self._sessions.end(self.session, self._number)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_promised(schema: pa.Schema, names: Sequence[str], batches: Iterator[NumberedBatch]) -> Iterator[NumberedBatch]:
    """What comes out of transforms, under the schema that trainers were told: theirs may carry metadata of each batch. Of other
    columns or types it would be read as what it is not."""
    try:
        for batch in batches:
            found = batch.rows.schema
            if found.names != schema.names or found.types != schema.types:
                kinds = ", ".join(f"{field.name}: {field.type}" for field in found)
                promised = ", ".join(f"{field.name}: {field.type}" for field in schema)
                raise Refusal(
                    "transform_failed",
                    f"transform {', '.join(names)}: batch {batch.index} has ({kinds}); of no rows it was ({promised})",
                )
            yield NumberedBatch(batch.index, pa.RecordBatch.from_arrays(batch.rows.columns, schema=schema))
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _used_s(session: Session) -> float:
    return session.used_s


def _parts(position: Position) -> tuple[int, int]:
    return position.epoch, position.batches


def _check(key: Key) -> None:
    """What no reader should be asked for."""
    spec, order = key
    if not spec.source.strip("/"):
        raise ConfigurationError("source is empty; it is a path, a directory or a glob within the volume")
    if order.batch_size < 1:
        raise ConfigurationError(f"batch_size is {order.batch_size}; it must be at least 1")


def _check_version(reader: Reader, wanted: str | None, source: str) -> None:
    if wanted not in (None, reader.version):
        raise Refusal(
            "version_gone", f"{source}: its files have changed: version {wanted} is wanted, {reader.version} is there"
        )
