"""Chunks, and dumps, on the disks of a storage node (`tieredfs node`), by HTTP. Import it only where a node is used.

The node keeps what a local disk keeps, and its answers are verified here (`tieredfs.chunk.remote`). What it is asked names the
volume and the disk, so a node that has another disk now where ours was says so and is not read from.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tieredfs.chunk import node_protocol
from tieredfs.chunk.cells import label
from tieredfs.chunk.directory import FAN_OUT, DiskIdentity, chunk_file_name, parse_chunk_name
from tieredfs.chunk.node_client import Call, NodeClient, total_of
from tieredfs.chunk.node_dumps import NodeDumps
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.chunk.remote import RemoteStore
from tieredfs.chunk.store import ChunkName, ChunkStore, StoreSpace
from tieredfs.config import NodeUrl
from tieredfs.core.capability import SECRET_BYTES_MIN, Right, Verb
from tieredfs.errors import ConfigurationError, CorruptError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Host
from tieredfs.host.secret import read_secret
from tieredfs.limits import CHUNK_STALL_S, REMOTE_SPACE_WAIT_S

PLACE_WAIT_S: Final = REMOTE_SPACE_WAIT_S
_FORMAT_WAIT_S: Final = CHUNK_STALL_S
"""Making or erasing a disk touches 256 directories."""


class NodeSite:
    """A directory of a node that is a disk of a volume, or may become one."""

    def __init__(self, url: NodeUrl, host: Host) -> None:
        self._url = url
        self._host = host
        secret = read_secret(SECRET_VARIABLE, bytes_min=SECRET_BYTES_MIN)
        self._client = NodeClient(url, secret, host.clock)

    def _place(self, method: str, verb: Verb, volume: str, body: bytes = b"") -> Any:
        wait_s = PLACE_WAIT_S if verb is Verb.IDENTIFY else _FORMAT_WAIT_S
        right = Right(verb, volume, self._url.path)
        path = node_protocol.place_path(self._url.path, volume if verb is Verb.ERASE else "")
        headers = {"Content-Type": "application/json"} if body else None
        call = Call(method, path, right, headers, [body] if body else (), wait_s)
        with self._client.call(call) as answer:
            return _document(answer.read())

    def identity(self) -> DiskIdentity | None:
        """Raises ConfigurationError when the node serves no such directory."""
        found = self._place("GET", Verb.IDENTIFY, "")
        if found is None:
            return None
        try:
            return DiskIdentity(str(found["volume_uuid"]), str(found["disk_uuid"]))
        except (KeyError, TypeError) as error:
            raise UnavailableError(f"{self._url} does not answer like a storage node") from error

    def format(self, identity: DiskIdentity) -> None:
        fields = {"volume_uuid": identity.volume_uuid, "disk_uuid": identity.disk_uuid}
        self._place("PUT", Verb.FORMAT, identity.volume_uuid, json.dumps(fields).encode())

    def give(self, identity: DiskIdentity) -> None:
        fields = {"volume_uuid": identity.volume_uuid, "disk_uuid": identity.disk_uuid}
        self._place("POST", Verb.GIVE, identity.volume_uuid, json.dumps(fields).encode())

    def erase(self) -> None:
        """The token names whose disk it is, so what was formatted anew meanwhile is not erased."""
        found = self.identity()
        self._place("DELETE", Verb.ERASE, found.volume_uuid if found else "")

    def open(self, identity: DiskIdentity) -> ChunkStore:
        objects = NodeObjects(self._client, self._url, identity)
        try:
            objects.space()  # which it answers only for this disk of this volume
        except TieredError:
            self._client.close()
            raise
        return RemoteStore(objects, NodeDumps(self._client, self._url, identity, self._host), self._host.clock)


class NodeObjects:
    """`tieredfs.chunk.remote.Objects` on one disk of a node."""

    def __init__(self, client: NodeClient, url: NodeUrl, identity: DiskIdentity) -> None:
        self.where = str(url)
        self._client = client
        self._identity = identity
        self._disk_path = node_protocol.disk_path(identity.volume_uuid, identity.disk_uuid)

    def _right(self, verb: Verb, name: ChunkName | None = None) -> Right:
        chunk = "" if name is None else chunk_file_name(name)
        return Right(verb, self._identity.volume_uuid, self._identity.disk_uuid, chunk)

    def _path(self, name: ChunkName) -> str:
        return node_protocol.chunk_path(self._identity.volume_uuid, self._identity.disk_uuid, name)

    def close(self) -> None:
        self._client.close()

    def fetch(self, name: ChunkName, start: int, views: Sequence[memoryview]) -> int:
        end = start + sum(len(view) for view in views)
        headers = {"Range": f"bytes={start}-{end - 1}"}
        with self._client.call(Call("GET", self._path(name), self._right(Verb.READ, name), headers)) as answer:
            total = total_of(answer.headers.get("Content-Range", ""), self.where)
            if total < end:
                raise CorruptError(f"{label(name)} on {self.where} ends {end - total} bytes early")
            for view in views:
                answer.read_into(view)
        return total

    def store(self, name: ChunkName, header: bytes, payload: memoryview, payload_crc32c: int) -> None:
        del payload_crc32c  # the header has those of all cells, and the node checks them
        body = (header, payload)
        call = Call("PUT", self._path(name), self._right(Verb.WRITE, name), body=body, silence_s=CHUNK_STALL_S)
        with self._client.call(call) as answer:
            answer.read()

    def remove(self, name: ChunkName) -> None:
        with self._client.call(Call("DELETE", self._path(name), self._right(Verb.DELETE, name))) as answer:
            answer.read()

    def names(self) -> Iterator[ChunkName]:
        for at in range(FAN_OUT):
            fan_out = f"{at:02x}"
            path = f"{self._disk_path}/chunks?fan_out={fan_out}"
            with self._client.call(Call("GET", path, self._right(Verb.LIST))) as answer:
                lines = answer.read().decode("ascii", "replace").split()
            for line in lines:
                name = parse_chunk_name(fan_out, line)
                if name is not None:
                    yield name

    def space(self) -> StoreSpace:
        try:
            with self._client.call(Call("GET", f"{self._disk_path}/space", self._right(Verb.SPACE))) as answer:
                found = _document(answer.read())
            return StoreSpace(int(found["total_bytes"]), int(found["free_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UnavailableError(f"{self.where} does not answer like a storage node") from error
        except (NotFoundError, ConfigurationError) as error:
            raise UnavailableError(str(error)) from error


def _document(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError as error:
        raise UnavailableError("that is no storage node: its answer is no JSON") from error
