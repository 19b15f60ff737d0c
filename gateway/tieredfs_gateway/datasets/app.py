"""The gateway over HTTP: sessions and streams of batches; FastAPI, so `/docs` shows and tries all of it.

    POST   /v1/sessions                  open a dataset: selection and order -> session, version, schema
    GET    /v1/sessions                  who reads what, how far, how fast
    GET    /v1/sessions/{id}             one of them
    GET    /v1/sessions/{id}/count       rows and batches of an epoch (with a filter: reads its columns, once)
    GET    /v1/sessions/{id}/batches     batches as an Arrow IPC stream: ?epoch=0&batch=0&stride=1&limit=&codec=auto&joined=
    DELETE /v1/sessions/{id}             close it
    GET    /healthz, /metrics

Errors are JSON: `errors` is their table. Blocking work runs in the executor; the event loop waits and sends.
"""

import asyncio
import base64
import functools
import logging
import math
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from tieredfs.errors import TieredError
from tieredfs.limits import MIB
from tieredfs_gateway.datasets import documents, metrics, wire
from tieredfs_gateway.datasets.contract import Position
from tieredfs_gateway.datasets.errors import CODES, Refusal, told
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.sessions import Session, Sessions
from tieredfs_gateway.datasets.tokens import check_token

T = TypeVar("T")
POSITION_MAX: Final = (1 << 62) - 1
BODY_BYTES_MAX: Final = 4 * MIB
"""Of a request: some hundred thousand names of columns."""
BODY_WAIT_S: Final = 30.0
_log: Final = logging.getLogger("tieredfs_gateway.datasets")
SessionId = Annotated[str, Path(min_length=1, max_length=64)]
Count = Annotated[int, Query(ge=0, le=POSITION_MAX)]


@dataclass(frozen=True, slots=True)
class Authorizer:
    """Who may read what. Without a secret (loopback only) everybody may."""

    secret: bytes | None

    def __call__(self, token: str | None, source: str | None) -> None:
        """Raises Refusal."""
        if self.secret is not None:
            check_token(token, self.secret, source, time.time())


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the routes stand on."""

    sessions: Sessions
    authorize: Authorizer
    metrics: metrics.Metrics
    executor: Executor
    local: documents.LocalOffer | None

    async def run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self.executor, call)

    def may_read(self, token: str | None, source: str) -> bool:
        try:
            self.authorize(token, source)
        except Refusal:
            return False
        return True

    def session(self, name: str, token: str | None) -> Session:
        self.authorize(token, None)
        session = self.sessions.get(name)
        self.authorize(token, session.opened.spec.source)
        return session


_scheme: Final = HTTPBearer(
    scheme_name="token",
    description="Of `tieredfs gateway-token`; asked for by a gateway with a secret.",
    auto_error=False,
)


def bearer(found: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]) -> str | None:
    return None if found is None else found.credentials.strip()


Token = Annotated[str | None, Depends(bearer)]

_OF_CALLERS: Final = ("bad_request", "token_missing", "token_invalid", "token_expired", "token_scope", "internal")
_OF_SESSIONS: Final = documents.failures(*_OF_CALLERS, "session_unknown")
_OF_READING: Final = documents.failures(*CODES)
"""Opening and reading meet whatever can happen to a volume."""
_STREAM: Final[documents.Responses] = {
    200: {
        "description": "The batches.",
        "content": {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_OPENED: Final[documents.Responses] = {
    408: {"model": documents.ErrorAnswer, "description": "bad_request: it did not come in time."},
    201: {
        "links": {
            name: {"operationId": name, "parameters": {"session": "$response.body#/session"}}
            for name in ("show_session", "count", "batches", "close_session")
        }
    },
}


def bounded(receive: wire.Receive, bytes_max: int = BODY_BYTES_MAX, wait_s: float = BODY_WAIT_S) -> wire.Receive:
    """ASGI's `receive`, of a body that is small and comes in time from the first look. It raises HTTPException 408, 413."""
    received_bytes, ended, deadline_s = 0, False, math.inf

    async def bounded_receive() -> MutableMapping[str, Any]:
        nonlocal received_bytes, ended, deadline_s
        if ended:  # from here on it waits for the client to go
            return await receive()
        deadline_s = min(deadline_s, time.monotonic() + wait_s)
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"The request did not come within {wait_s:.0f} s") from error
        received_bytes, ended = received_bytes + len(message.get("body", b"")), not message.get("more_body", False)
        if received_bytes > bytes_max:
            raise HTTPException(413, f"A request has at most {bytes_max} bytes")
        return message

    return bounded_receive


class App(FastAPI):
    """Its schema says what it does: what does not validate is 400 as any other bad request, not FastAPI's 422."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, bounded(receive) if scope["type"] == "http" else receive, send)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def create_app(gateway: Gateway) -> App:
    app = App(title="TieredFS dataset gateway", redoc_url=None, generate_unique_id_function=lambda route: route.name)
    _add_probes(app, gateway)
    _add_sessions(app, gateway)
    _add_batches(app, gateway)
    _add_failures(app)
    return app


def _add_probes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> documents.Health:
        return documents.Health()

    @app.get("/metrics", response_class=PlainTextResponse, responses=documents.failures("internal"))
    async def show_metrics() -> Response:
        return Response(await gateway.run(gateway.metrics.text), media_type=metrics.CONTENT_TYPE)


def _add_sessions(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/sessions", status_code=201, responses=_OPENED | _OF_READING)
    async def open_session(asked: documents.SessionRequest, token: Token, request: Request) -> documents.SessionAnswer:
        gateway.authorize(token, asked.source)
        client = request.client.host if request.client else "-"
        opening = functools.partial(gateway.sessions.open, asked.key(), client, asked.version, fresh=asked.fresh)
        session = await gateway.run(opening)
        schema = base64.b64encode(session.opened.schema.serialize()).decode()
        skipped = await gateway.run(session.opened.reader.skipped)
        version = session.opened.reader.version
        return documents.SessionAnswer(
            session=session.id, version=version, schema_ipc=schema, local=gateway.local, skipped=skipped
        )

    @app.get("/v1/sessions", responses=documents.failures(*_OF_CALLERS))
    async def list_sessions(token: Token) -> list[documents.SessionShown]:
        """Those of datasets that the token is for."""
        gateway.authorize(token, None)
        shown = [documents.SessionShown.model_validate(one) for one in gateway.sessions.listed()]
        return [one for one in shown if gateway.may_read(token, one.source)]

    @app.get("/v1/sessions/{session}", responses=_OF_SESSIONS)
    async def show_session(session: SessionId, token: Token) -> documents.SessionShown:
        return documents.SessionShown.model_validate(gateway.sessions.described(gateway.session(session, token)))

    @app.delete("/v1/sessions/{session}", status_code=204, responses=_OF_SESSIONS)
    async def close_session(session: SessionId, token: Token) -> None:
        found = gateway.session(session, token)
        await gateway.run(gateway.sessions.close, found.id)


def _add_batches(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/sessions/{session}/count", responses=_OF_READING)
    async def count(session: SessionId, token: Token) -> documents.CountAnswer:
        reader = gateway.session(session, token).opened.reader
        rows = await gateway.run(reader.row_count)
        return documents.CountAnswer(rows=rows, batches=await gateway.run(reader.batch_count))

    @app.get("/v1/sessions/{session}/batches", response_class=Response, responses=_STREAM | _OF_READING)
    async def batches(
        session: SessionId,
        token: Token,
        request: Request,
        epoch: Count = 0,
        batch: Count = 0,
        stride: Annotated[int, Query(ge=1, le=1 << 31)] = 1,
        limit: Annotated[int | None, Query(ge=1)] = None,
        codec: Codec = Codec.AUTO,
        joined: bool = False,
    ) -> Response:
        """An Arrow IPC stream of batches `batch`, `batch + stride` ... of the epoch, in their order.

        `joined` (counts only without `limit`): neighbours may come as one message; its metadata `tieredfs.rows` says how many rows
        each has, with commas between."""
        found = gateway.session(session, token)
        client = request.client.host if request.client else None
        link = wire.Link.to(client, codec, joins=joined and limit is None)
        stream = gateway.sessions.follow(found, Position(epoch, batch), stride, link.packing.form, client or "-")
        try:
            first = await gateway.run(wire.next_piece, stream, link)
        except BaseException:
            await gateway.run(stream.close)
            raise
        return wire.BatchResponse(stream, found.opened.share.head, first, link, limit, gateway.executor)


def _add_failures(app: FastAPI) -> None:
    def answered(refusal: Refusal, status: int | None = None) -> JSONResponse:
        headers = {"www-authenticate": "Bearer"} if refusal.answer.status == 401 else None
        return JSONResponse(refusal.document(), status or refusal.answer.status, headers)

    @app.exception_handler(Refusal)
    @app.exception_handler(TieredError)
    async def domain(_: Request, error: Exception) -> JSONResponse:
        return answered(told(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return answered(Refusal("bad_request", "; ".join(found)))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 413: "too_large"}.get(error.status_code, "bad_request")
        answer = answered(Refusal(code, f"{error.detail}; /docs lists what there is"), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return answered(told(error))
