"""A node's interface: FastAPI for what is asked of disks and places, `chunk_calls` and `dump_calls` for what carries bytes.
`/docs` shows the former."""

from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from tieredfs.chunk.directory import DiskIdentity, chunk_file_name, dump_name
from tieredfs.chunk.node_protocol import DISKS_PATH, PLACES_PATH
from tieredfs.core.capability import Right, Verb
from tieredfs.errors import TieredError
from tieredfs.limits import PATH_BYTES_MAX
from tieredfs_gateway.node import metrics as counting
from tieredfs_gateway.node.authority import Authority
from tieredfs_gateway.node.chunk_calls import ChunkCalls
from tieredfs_gateway.node.disk_watch import DiskWatch
from tieredfs_gateway.node.disks import NodeDisks, NoSuchDiskError
from tieredfs_gateway.node.dump_calls import DumpCalls
from tieredfs_gateway.node.exchange import Exchange, Receive, Send, carry_out
from tieredfs_gateway.node.refusals import RefusedError, bad_request, refusal_of

_BODY_BYTES_MAX: Final = 4096
Authorization = Annotated[str, Header(description="Bearer, and a capability token for this call.")]
Path = Annotated[str, Query(max_length=PATH_BYTES_MAX, description="Of a directory that this node serves.")]
FanOut = Annotated[str, Query(pattern="^[0-9a-f]{2}$", description="Of 256 directories, the one to list.")]


class Health(BaseModel):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Identity(BaseModel):
    """Which disk of which volume."""

    volume_uuid: str = Field(min_length=1, max_length=64)
    disk_uuid: str = Field(min_length=1, max_length=64)


class Space(BaseModel):
    """Bytes of the file system below a disk."""

    total_bytes: int
    free_bytes: int


class NodeApp(FastAPI):
    """`disks` and `authority` as `chunks` and `dumps` have them."""

    def __init__(
        self,
        disks: NodeDisks,
        authority: Authority,
        chunks: ChunkCalls,
        dumps: DumpCalls,
        metrics: counting.Metrics,
        watch: DiskWatch,
    ) -> None:
        super().__init__(title="TieredFS storage node", redoc_url=None)
        self._carriers = chunks, dumps
        for error in (TieredError, NoSuchDiskError, RefusedError):
            self.add_exception_handler(error, _explain)
        self.add_exception_handler(RequestValidationError, _explain_validation)
        self.get("/healthz")(_healthz)

        @self.get("/metrics", response_class=PlainTextResponse)
        async def show_metrics() -> Response:
            """What this node counts, and its disks."""
            return Response(metrics.text(await watch.look()), media_type=counting.CONTENT_TYPE)

        _add_disk_calls(self, disks, authority)
        _add_place_calls(self, disks, authority)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for carrier in self._carriers:
                if carrier.are_meant(scope["path"]):
                    await carry_out(Exchange(scope, receive, send), carrier.answer)
                    return
        await super().__call__(scope, _limited(receive), send)


async def _healthz() -> Health:
    return Health()


def _add_disk_calls(app: FastAPI, disks: NodeDisks, authority: Authority) -> None:
    @app.get(f"{DISKS_PATH}/{{volume}}/{{disk}}/space")
    def space(volume: str, disk: str, authorization: Authorization = "") -> Space:
        """How much room a disk has, if it is here."""
        authority.check(authorization, Right(Verb.SPACE, volume, disk))
        found = disks.find(volume, disk).space()
        return Space(total_bytes=found.total_bytes, free_bytes=found.free_bytes)

    @app.get(f"{DISKS_PATH}/{{volume}}/{{disk}}/chunks", response_class=PlainTextResponse)
    def names(volume: str, disk: str, fan_out: FanOut, authorization: Authorization = "") -> str:
        """The names of a 256th of a disk's chunks, one a line."""
        authority.check(authorization, Right(Verb.LIST, volume, disk))
        return "\n".join(map(chunk_file_name, disks.find(volume, disk).names_in(fan_out)))

    @app.get(f"{DISKS_PATH}/{{volume}}/{{disk}}/dumps", response_class=PlainTextResponse)
    def dumps(volume: str, disk: str, authorization: Authorization = "") -> str:
        """The names of a disk's dumps of metadata, newest first, one a line."""
        authority.check(authorization, Right(Verb.LIST, volume, disk))
        return "\n".join(map(dump_name, disks.find(volume, disk).dumps.taken()))


def _add_place_calls(app: FastAPI, disks: NodeDisks, authority: Authority) -> None:
    @app.get(PLACES_PATH)
    def identity(path: Path, authorization: Authorization = "") -> Identity | None:
        """Whose disk a directory is; null: nobody's yet."""
        authority.check(authorization, Right(Verb.IDENTIFY, "", path))
        found = disks.identity(path)
        return None if found is None else Identity(volume_uuid=found.volume_uuid, disk_uuid=found.disk_uuid)

    @app.put(PLACES_PATH)
    def make(path: Path, wanted: Identity, authorization: Authorization = "") -> None:
        """Make a directory a disk. Refused where something else is."""
        authority.check(authorization, Right(Verb.FORMAT, wanted.volume_uuid, path))
        disks.format(path, DiskIdentity(wanted.volume_uuid, wanted.disk_uuid))

    @app.post(PLACES_PATH)
    def give(path: Path, wanted: Identity, authorization: Authorization = "") -> None:
        """Give a disk, with what it holds, to another volume: what a volume does whose metadata came back from a dump."""
        authority.check(authorization, Right(Verb.GIVE, wanted.volume_uuid, path))
        disks.give(path, DiskIdentity(wanted.volume_uuid, wanted.disk_uuid))

    @app.delete(PLACES_PATH)
    def erase(path: Path, volume: Annotated[str, Query(max_length=64)] = "", authorization: Authorization = "") -> None:
        """Remove a disk's chunks and its identity; `volume` says whose it must be (empty: nobody's)."""
        authority.check(authorization, Right(Verb.ERASE, volume, path))
        disks.erase(path, volume)


def _limited(receive: Receive) -> Receive:
    """Bodies of these calls are small: one that is not is cut off, and then it is no JSON."""
    received_bytes = 0

    async def limited() -> Any:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > _BODY_BYTES_MAX:
            return {"type": "http.request", "body": b"", "more_body": False}
        return message

    return limited


def _answer(refusal: RefusedError) -> Response:
    return Response(refusal.body(), refusal.status, media_type="application/json")


async def _explain(_: Request, error: Exception) -> Response:
    return _answer(refusal_of(error))


async def _explain_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(bad_request(f"{where}: {first['msg']}"))
