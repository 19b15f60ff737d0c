"""The status page over HTTP.

    GET  /               the page; it fetches itself again every two seconds and puts in what changed
    GET  /status.json    the same as data (`document.Document`)
    POST /enter          a token, from the form that somebody without one gets; answered with a cookie
    GET  /healthz        this process answers

Off this machine a token is asked for: as `Authorization: Bearer ...`, or in the cookie that the form sets. Without a secret the
page is anonymous and on loopback only, and then it answers to names of loopback alone: a web site that has its own name point to
127.0.0.1 (DNS rebinding) reads nothing.
"""

import asyncio
import dataclasses
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel

from tieredfs.errors import TieredError
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.tokens import check_token
from tieredfs_gateway.status.document import Document
from tieredfs_gateway.status.page import SERVED_POLICY, entrance, served_page
from tieredfs_gateway.status.place import SOURCE

COOKIE: Final = "tieredfs-status"
FORM_BYTES_MAX: Final = 8192
FORM_WAIT_S: Final = 10.0
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": SERVED_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Health(BaseModel):
    """This process answers."""

    status: Literal["ok"] = "ok"


@dataclass(frozen=True, slots=True)
class Door:
    """Who may look. `secret`: None for everybody on this machine. `secure`: HTTPS is spoken, so the cookie is for that only."""

    secret: bytes | None
    secure: bool = False

    def check(self, request: Request) -> None:
        """Raises Refusal."""
        if self.secret is None:
            if not is_loopback_name(request.headers.get("host", "")):
                raise Refusal("token_scope", "without tokens, this page is for this machine only: ask for 127.0.0.1")
            return
        self.check_token(_bearer(request.headers) or request.cookies.get(COOKIE))

    def check_token(self, token: str | None) -> int:
        """Until when it is good, in seconds since 1970. Raises Refusal."""
        assert self.secret is not None
        return check_token(token, self.secret, SOURCE, time.time()).expires_s


def _bearer(headers: Mapping[str, str]) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def is_loopback_name(host: str) -> bool:
    """Of a Host header: `localhost`, or a loopback address; any port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def create_app(look: Callable[[], Document], door: Door) -> FastAPI:
    """`look` may take a while, and raises TieredError where nothing was ever seen."""
    app = FastAPI(title="TieredFS status", docs_url=None, redoc_url=None, openapi_url=None)
    _add_pages(app, look, door)
    _add_entrance(app, door)

    @app.exception_handler(TieredError)
    async def away(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "unavailable", "message": str(error)}, 503, _HEADERS)

    return app


def _add_pages(app: FastAPI, look: Callable[[], Document], door: Door) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> Response:
        try:
            door.check(request)
        except Refusal as refusal:
            return HTMLResponse(entrance(refusal.message), refusal.answer.status, _HEADERS)
        return HTMLResponse(served_page(await asyncio.to_thread(look)), headers=_HEADERS)

    @app.get("/status.json")
    async def data(request: Request) -> Response:
        try:
            door.check(request)
        except Refusal as refusal:
            return JSONResponse(refusal.document(), refusal.answer.status, _HEADERS)
        return JSONResponse(as_data(await asyncio.to_thread(look)), headers=_HEADERS)

    @app.get("/healthz")
    async def healthz() -> Health:
        return Health()


def _add_entrance(app: FastAPI, door: Door) -> None:
    @app.post("/enter")
    async def enter(request: Request) -> Response:
        if door.secret is None:
            return RedirectResponse("/", 303, _HEADERS)
        token = parse_qs((await _form(request)).decode("ascii", "replace")).get("token", [""])[0].strip()
        try:
            expires_s = door.check_token(token)
        except Refusal as refusal:
            return HTMLResponse(entrance(refusal.message), refusal.answer.status, _HEADERS)
        answer = RedirectResponse("/", 303, _HEADERS)
        life_s = max(1, expires_s - int(time.time()))
        answer.set_cookie(COOKIE, token, max_age=life_s, secure=door.secure, httponly=True, samesite="strict")
        return answer


async def _form(request: Request) -> bytes:
    """What was sent, as far as a token may go, and in time."""
    body = b""
    try:
        async with asyncio.timeout(FORM_WAIT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > FORM_BYTES_MAX:
                    return b""
    except TimeoutError:
        return b""
    return body


def as_data(document: Document) -> Any:
    """As JSON can say it: enums by their values; bytes of names that are no text as `\\udcXX`."""
    return _plain(dataclasses.asdict(document))


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _plain(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(item) for item in tree]
    if isinstance(tree, str):
        return tree.encode("utf-8", "backslashreplace").decode()
    return getattr(tree, "value", tree)
