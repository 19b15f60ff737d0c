"""Arrow Flight beside HTTP: the same sessions, positions, tokens and errors, for whoever has a Flight client.

    GetFlightInfo(command)   command: JSON of `FlightRequest` -> schema, rows of the epoch, one endpoint per rank that is asked for
    DoGet(ticket)            that rank's batches from that position on; metadata: their numbers (8 bytes, little-endian)
    DoExchange(command)      a part of a job that several gateways serve (`jobs`): this gateway's batches, in ranges that it leases;
                             the client acknowledges by metadata (numbers, 8 bytes each), and is done when END_OF_JOB comes
    DoAction("close", id)    close a session; it ends by itself when nobody uses it

A ticket names the session that GetFlightInfo opened, and everything to open it again: a gateway that was restarted, or another
one over the same volume, serves it as well, or says that the version is gone. A batch is made once, whoever asks for it and how.

Dictionary columns travel as such, each batch with a dictionary of its own. In DoGet Arrow sends no dictionaries with batches that
have metadata; so there, and only where the schema has dictionaries, a batch comes without metadata and its number right behind it,
with an empty batch. Whoever does not care for numbers reads the same rows.

Tokens travel as `authorization: Bearer ...`. Errors are those of HTTP (`errors`), as the Flight status that fits, with the JSON
document as extra information.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Final, Self

import pyarrow as pa
import pyarrow.flight as fl
from pydantic import Field, ValidationError

from tieredfs.errors import TieredError
from tieredfs.host import SystemClock
from tieredfs.volume.register import Register
from tieredfs_gateway.addresses import is_loopback
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.contract import Position
from tieredfs_gateway.datasets.documents import SessionRequest
from tieredfs_gateway.datasets.errors import CODES, Refusal, told
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.jobs import LEASE_S, JobShare
from tieredfs_gateway.datasets.sessions import Session, Sessions, Stream
from tieredfs_gateway.datasets.wire import Link, next_piece

POSITION_MAX: Final = (1 << 62) - 1
WORLD_MAX: Final = 1 << 20
ENDPOINTS_MAX: Final = 4096
CLOSE_WAIT_S: Final = 10.0
END_OF_JOB: Final = (1 << 64) - 1
_BEARER: Final = "bearer"
_log: Final = logging.getLogger("tieredfs_gateway.datasets.flight")

Registers = Callable[[str, int], Register]
"""Where the leases of a job's epoch are."""
Authorize = Callable[[str | None, str | None], None]


class FlightRequest(SessionRequest):
    """A session, a place in an epoch, and whose batches: `rank` None for those of all ranks, an endpoint each."""

    epoch: Annotated[int, Field(ge=0, le=POSITION_MAX)] = 0
    batch: Annotated[int, Field(ge=0, le=POSITION_MAX, description="Consumed by all ranks together.")] = 0
    rank: Annotated[int | None, Field(ge=0)] = None
    world_size: Annotated[int, Field(ge=1, le=WORLD_MAX)] = 1
    session: Annotated[str | None, Field(max_length=64)] = None

    job: Annotated[str | None, Field(max_length=255, description="For DoExchange.")] = None

    def first_batch(self) -> int:
        """Batch i is of rank i % world_size."""
        return self.batch + ((self.rank or 0) - self.batch) % self.world_size


STATUSES: Final[Mapping[int, type[fl.FlightError]]] = {
    401: fl.FlightUnauthenticatedError,
    403: fl.FlightUnauthorizedError,
    429: fl.FlightUnavailableError,
    503: fl.FlightUnavailableError,
}
"""What else there is, is a `FlightServerError`."""


def failure(refusal: Refusal) -> fl.FlightError:
    """As Flight says it. The document has the code."""
    kind = STATUSES.get(CODES[refusal.code].status, fl.FlightServerError)
    return kind(f"{refusal.code}: {refusal.message}", json.dumps(refusal.document()).encode())


@contextmanager
def _told() -> Iterator[None]:
    """The edge: whatever happens is told as Flight tells it."""
    try:
        yield
    except (Refusal, TieredError, TimeoutError) as error:
        raise failure(told(error)) from error


class _Bearer(fl.ServerMiddleware):  # type: ignore[misc]
    """The token of one call."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self.token = token


class _BearerFactory(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    def __init__(self, authorize: Authorize) -> None:
        super().__init__()
        self._authorize = authorize

    def start_call(self, info: Any, headers: Mapping[str, Sequence[str]]) -> _Bearer:
        """Refuses who has no valid token before anything is looked at."""
        del info
        values = next((values for name, values in headers.items() if name.lower() == "authorization"), ())
        kind, _, token = (values[0] if values else "").partition(" ")
        found = token.strip() if kind.lower() == "bearer" else None
        with _told():
            self._authorize(found, None)
        return _Bearer(found)


class _Service(fl.FlightServerBase):  # type: ignore[misc]
    """Calls come in threads of gRPC's."""

    def __init__(
        self,
        sessions: Sessions,
        authorize: Authorize,
        place: tuple[str, int],
        jobs: tuple[Registers | None, float],
        **options: Any,
    ) -> None:
        host, port = place
        self._registers, self._lease_s = jobs
        scheme = "grpc+tls" if "tls_certificates" in options else "grpc"
        super().__init__(f"{scheme}://{host}:{port}", middleware={_BEARER: _BearerFactory(authorize)}, **options)
        self._sessions = sessions
        self._authorize = authorize

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """See the module."""
        with _told():
            asked = _parsed(descriptor.command)
            session = self._session(context, asked)
            opened = session.opened
            rows = -1 if opened.spec.transforms else opened.reader.row_count()
            if asked.rank is None and asked.world_size > ENDPOINTS_MAX:
                raise Refusal("bad_request", f"{ENDPOINTS_MAX} endpoints at most; name a rank")
            ranks = range(asked.world_size) if asked.rank is None else (asked.rank,)
            known: dict[str, object] = {"session": session.id, "version": opened.reader.version}
            tickets = [asked.model_copy(update=known | {"rank": rank}).model_dump_json() for rank in ranks]
            return fl.FlightInfo(
                opened.schema,
                descriptor,
                [fl.FlightEndpoint(ticket.encode(), []) for ticket in tickets],
                rows,
                -1,
            )

    def do_get(self, context: Any, ticket: Any) -> Any:
        """See the module."""
        with _told():
            asked = _parsed(ticket.ticket)
            session = self._session(context, asked)
            client = _host_of(context.peer())
            position = Position(asked.epoch, asked.first_batch())
            stream = self._sessions.follow(session, position, asked.world_size, Codec.NONE.value, client)
        compression = None if is_loopback(client) else "lz4"
        options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=False)
        link = Link.to("127.0.0.1", Codec.NONE)
        return fl.GeneratorStream(session.opened.schema, _batches(stream, link), options)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """See the module."""
        with _told():
            asked = _parsed(descriptor.command)
            session = self._session(context, asked)
            opened = session.opened
            if self._registers is None or asked.job is None or opened.spec.transforms:
                raise Refusal("not_supported", "DoExchange is for a `job`, of a dataset without transforms")
            register, clock = self._registers(asked.job, asked.epoch), SystemClock()
            client = _host_of(context.peer())
            with (
                self._sessions.follow(session, Position(asked.epoch, 0), 1, Codec.NONE.value, client) as stream,
                JobShare(register, clock, opened.reader, asked.key(), asked.epoch, lease_s=self._lease_s) as share,
                _acknowledging(share, reader),
            ):
                writer.begin(opened.schema)
                for batch in share.batches():
                    stream.check_open()
                    writer.write_with_metadata(batch.rows, _numbered(batch.index))
                    stream.sent(batch.index, batch.rows.num_rows, batch.rows.nbytes)
                writer.write_metadata(_numbered(END_OF_JOB))

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """See the module."""
        with _told():
            if action.type != "close":
                raise Refusal("bad_request", f"there is no action {action.type!r}; there is `close`")
            session = self._sessions.get(action.body.to_pybytes().decode("ascii", "replace"))
            self._authorize(_token(context), session.opened.spec.source)
            self._sessions.close(session.id)
        return iter(())

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        del context
        return [("close", "Close the session with this id.")]

    def _session(self, context: Any, asked: FlightRequest) -> Session:
        """The one that is named if it is still there, else another of the same."""
        self._authorize(_token(context), asked.source)
        if asked.session is not None:
            try:
                session = self._sessions.get(asked.session)
            except Refusal:
                session = None
            if session is not None and (session.opened.spec, session.opened.order) == asked.key():
                return session
        return self._sessions.open(asked.key(), _host_of(context.peer()), asked.version, fresh=asked.fresh)


class FlightServer(AbstractContextManager["FlightServer"]):
    """Serves from its making until `close`, in threads of its own."""

    def __init__(
        self,
        sessions: Sessions,
        authorize: Authorize,
        host: str,
        port: int,
        tls: tuple[bytes, bytes] | None = None,
        registers: Registers | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        """`tls`: certificate and key, PEM. Port 0: any that is free (`port` says which). `registers`: of jobs; None: no jobs."""
        options: dict[str, Any] = {"tls_certificates": [tls]} if tls else {}
        self._sessions = sessions
        self._service = _Service(sessions, authorize, (host, port), (registers, lease_s), **options)
        self.port: int = self._service.port

    def close(self) -> None:
        """Streams end with the sessions. Who does not even read their end is left behind after `CLOSE_WAIT_S`."""
        self._sessions.close_all()
        ending = threading.Thread(target=self._service.shutdown, name="flight-shutdown", daemon=True)
        ending.start()
        ending.join(CLOSE_WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parsed(text: Any) -> FlightRequest:
    try:
        asked = FlightRequest.model_validate_json(bytes(text) if text else b"")
    except ValidationError as error:
        found = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        raise Refusal("bad_request", "; ".join(found)) from None
    if asked.rank is not None and asked.rank >= asked.world_size:
        raise Refusal("bad_position", f"rank {asked.rank} of {asked.world_size}")
    return asked


def _batches(stream: Stream, link: Link) -> Iterator[object]:
    """What `fl.GeneratorStream` sends. In a thread of gRPC's, one at a time."""
    head, schema = stream.session.opened.share.head, stream.session.opened.schema
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    with stream, _told():
        while (piece := next_piece(stream, link)) is not None:
            whole = pa.py_buffer(b"".join((head, piece.body, frames.END)))
            with pa.ipc.open_stream(whole) as reader:
                rows = reader.read_next_batch()
            if any(pa.types.is_dictionary(field.type) for field in schema):
                yield pa.RecordBatchReader.from_batches(schema, [rows])
                yield empty, _numbered(piece.index)
            else:
                yield rows, _numbered(piece.index)
            stream.sent(piece.index, piece.rows, len(piece.body))


@contextmanager
def _acknowledging(share: JobShare, reader: Any) -> Iterator[None]:
    """A thread hears what the client has. It ends when the client has no more to say, or is gone, and the share with it."""

    def hear() -> None:
        try:
            while True:
                said = reader.read_chunk().app_metadata
                for at in range(0, said.size if said is not None else 0, 8):
                    share.acknowledge(int.from_bytes(said[at : at + 8].to_pybytes(), "little"))
        except (StopIteration, pa.ArrowException, OSError):
            share.close()

    hearing = threading.Thread(target=hear, name="flight-acknowledgements", daemon=True)
    hearing.start()
    try:
        yield
    finally:
        hearing.join()  # gRPC ends it with the call: by the client's last word, its death, or the server's shutdown


def _numbered(index: int) -> pa.Buffer:
    return pa.py_buffer(index.to_bytes(8, "little"))


def _token(context: Any) -> str | None:
    found = context.get_middleware(_BEARER)
    return found.token if found is not None else None


def _host_of(peer: str) -> str:
    """Of gRPC's `ipv4:127.0.0.1:4711`, `ipv6:[::1]:4711`, `unix:...`."""
    kind, _, rest = peer.replace("%5B", "[").replace("%5D", "]").partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else "localhost"
