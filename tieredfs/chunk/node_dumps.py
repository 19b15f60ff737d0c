"""Dumps on a disk of a storage node. The contract is `tieredfs.chunk.dump_shelf.DumpShelf`.

A dump goes there in pieces, each a call that may be repeated, under a name that only this upload has; a last call makes it durable
and gives it its own. The node looks at every call whether the disk is still ours.
"""

import contextlib
from collections.abc import Iterator

from tieredfs.chunk import node_protocol
from tieredfs.chunk.directory import METADATA_NAME, DiskIdentity, dump_name, newest_first
from tieredfs.chunk.dump_shelf import HEAD_BYTES, DumpSource, ranges
from tieredfs.chunk.node_client import Call, NodeClient, total_of
from tieredfs.config import NodeUrl
from tieredfs.core.capability import Right, Verb
from tieredfs.errors import CorruptError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Host, isal
from tieredfs.limits import CHUNK_STALL_S, DUMP_PIECE_BYTES


class NodeDumps:
    """`client` is the store's, and closed by it."""

    def __init__(self, client: NodeClient, url: NodeUrl, identity: DiskIdentity, host: Host) -> None:
        self._client = client
        self._url = url
        self._uuids = identity.volume_uuid, identity.disk_uuid
        self._random = host.random

    def label(self, taken_ns: int) -> str:
        return f"{self._url.place}/{METADATA_NAME}/{dump_name(taken_ns)}"

    # ---- putting ----------------------------------------------------------------------------------------------------

    def put(self, taken_ns: int, source: DumpSource) -> None:
        name, token = dump_name(taken_ns), f"{self._random.getrandbits(64):x}"
        upload = node_protocol.dump_upload_path(*self._uuids, name, token, source.size_bytes)
        try:
            for offset, length in ranges(source.size_bytes, DUMP_PIECE_BYTES):
                piece = source.piece(offset, length)
                path = node_protocol.dump_piece_path(*self._uuids, name, token, offset, isal.crc32c(piece))
                self._done("PUT", path, Verb.WRITE, name, piece)
            self._done("POST", upload, Verb.WRITE, name)
        except BaseException:
            with contextlib.suppress(TieredError):
                self._done("DELETE", upload, Verb.WRITE, name)
            raise

    def _done(self, method: str, path: str, verb: Verb, name: str, piece: bytes = b"") -> None:
        call = Call(method, path, self._right(verb, name), body=[piece] if piece else (), silence_s=CHUNK_STALL_S)
        try:
            with self._client.call(call) as answer:
                answer.read()
        except CorruptError as error:
            raise UnavailableError(str(error)) from error

    def _right(self, verb: Verb, name: str = "") -> Right:
        return Right(verb, *self._uuids, name)

    # ---- the others -------------------------------------------------------------------------------------------------

    def taken(self) -> list[int]:
        path = node_protocol.dumps_path(*self._uuids)
        try:
            with self._client.call(Call("GET", path, self._right(Verb.LIST))) as answer:
                return newest_first(answer.read().decode("ascii", "replace").split())
        except NotFoundError as error:
            raise UnavailableError(str(error)) from error

    def read(self, taken_ns: int) -> Iterator[bytes]:
        offset, length, total = 0, HEAD_BYTES, 1
        while offset < total:
            piece, total = self._fetch(taken_ns, offset, length)
            offset += len(piece)
            length = min(DUMP_PIECE_BYTES, total - offset)
            yield piece

    def _fetch(self, taken_ns: int, offset: int, length: int) -> tuple[bytes, int]:
        """Some bytes, and the length of the whole dump."""
        name, headers = dump_name(taken_ns), {"Range": f"bytes={offset}-{offset + length - 1}"}
        call = Call("GET", node_protocol.dump_path(*self._uuids, name), self._right(Verb.READ, name), headers)
        try:
            with self._client.call(call) as answer:
                return answer.read(), total_of(answer.headers.get("Content-Range", ""), str(self._url))
        except CorruptError as error:
            raise UnavailableError(f"a dump cannot be read from {self._url}: {error}") from error

    def delete(self, taken_ns: int) -> None:
        name = dump_name(taken_ns)
        with contextlib.suppress(NotFoundError):
            self._done("DELETE", node_protocol.dump_path(*self._uuids, name), Verb.DELETE, name)
