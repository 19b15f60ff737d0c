"""Other hosts of the volume, which serve what is staged on them: the asking side. `tieredfs.cache.peer_server` is the other one.

Who serves is in the metadata (`Metadata.peers`), by the name of the host; what is known of it is believed for a second. Every wait
is bounded. Bytes are received into the caller's memory and are those that the other side checksummed, or CorruptError.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tieredfs.cache import peer_protocol as protocol
from tieredfs.cache.peer_protocol import CHECKSUM_HEADER, Staged
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.core.capability import SECRET_BYTES_MIN, Right, Verb
from tieredfs.errors import ConfigurationError, CorruptError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Host
from tieredfs.host.isal import crc32c
from tieredfs.host.secret import read_secret
from tieredfs.limits import PEER_SILENCE_S, SESSION_TIMEOUT_S
from tieredfs.meta.metadata import Metadata
from tieredfs.model import CacheRecord, InodeId

if TYPE_CHECKING:  # an HTTP client is loaded when a host is asked: most volumes have one host
    from tieredfs.chunk.node_client import Call, NodeClient

T = TypeVar("T")
BELIEVED_S: Final = 1.0
LISTEN_VARIABLE: Final = "TIEREDFS_PEER_LISTEN"
"""Where a host serves what is staged on it (`tieredfs.volume.peer_keeper`)."""


class Peers:
    """Safe from any thread. `close` ends idle connections."""

    def __init__(self, metadata: Metadata, host: Host, volume_uuid: str) -> None:
        self._metadata = metadata
        self._host = host
        self._volume_uuid = volume_uuid
        self._clients: dict[str, NodeClient] = {}
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._lock = threading.Lock()

    def look(self, cache: CacheRecord, inode: InodeId, version: int) -> Staged:
        """Raises NotFoundError (the host does not have it, or not any more), UnavailableError."""
        call = self._content_call(cache, inode, version)

        def do(client: "NodeClient") -> Staged:
            with client.call(call) as answer:
                return Staged.decode(answer.read())

        return self._ask(cache, do)

    def fetch_into(self, cache: CacheRecord, inode: InodeId, version: int, offset: int, target: memoryview) -> None:
        """Fill `target`, of at most `STAGED_PART_BYTES`. Raises as `look` does, and CorruptError."""
        wanted = {"Range": f"bytes={offset}-{offset + len(target) - 1}"}
        call = self._content_call(cache, inode, version, wanted)

        def do(client: "NodeClient") -> None:
            with client.call(call) as answer:
                answer.read_into(target)
                if f"{crc32c(target):08x}" != answer.headers.get(CHECKSUM_HEADER):
                    raise CorruptError(f"{len(target)} bytes at {offset} did not arrive as host {cache.host} sent them")

        self._ask(cache, do)

    def ring(self, cache: CacheRecord) -> None:
        """Have what is staged there drained without delay. Raises NotFoundError, UnavailableError."""
        from tieredfs.chunk.node_client import Call

        right = Right(Verb.HURRY, self._volume_uuid, cache.uuid)
        path = protocol.bell_url(self._volume_uuid, cache.uuid)
        call = Call("POST", path, right, {"Content-Length": "0"}, silence_s=PEER_SILENCE_S)

        def do(client: "NodeClient") -> None:
            with client.call(call) as answer:
                answer.read()

        self._ask(cache, do)

    def _content_call(
        self, cache: CacheRecord, inode: InodeId, version: int, headers: dict[str, str] | None = None
    ) -> "Call":
        from tieredfs.chunk.node_client import Call

        right = Right(Verb.STAGED, self._volume_uuid, cache.uuid, protocol.content_name(inode, version))
        path = protocol.content_url(self._volume_uuid, cache.uuid, inode, version)
        return Call("GET", path, right, headers, silence_s=PEER_SILENCE_S)

    def _ask(self, cache: CacheRecord, do: "Callable[[NodeClient], T]") -> T:
        """Whoever of the host serves; what the last one said when none does it."""
        problem: TieredError = UnavailableError(f"host {cache.host} does not serve what is staged there")
        for address in self._addresses(cache.host):
            try:
                return do(self._client(address))
            except (UnavailableError, NotFoundError, CorruptError) as error:
                problem = error
        with self._lock:
            self._known.pop(cache.host, None)
        raise problem

    def _addresses(self, host: str) -> list[str]:
        """Of processes that live, the freshest first."""
        now_s = self._host.clock.monotonic_s()
        with self._lock:
            looked_s, addresses = self._known.get(host, (-BELIEVED_S, []))
        if now_s - looked_s < BELIEVED_S:
            return addresses
        oldest_ns = self._host.clock.wall_ns() - int(SESSION_TIMEOUT_S * 1e9)
        living = [
            peer
            for peer in self._metadata.peers()
            if peer.session.host == host and peer.session.heartbeat_ns >= oldest_ns
        ]
        living.sort(key=lambda peer: peer.session.heartbeat_ns, reverse=True)
        addresses = [peer.address for peer in living]
        with self._lock:
            self._known[host] = now_s, addresses
        return addresses

    def _client(self, address: str) -> "NodeClient":
        from tieredfs.chunk.node_client import NodeClient

        with self._lock:
            known = self._clients.get(address)
            if known is None:
                known = self._clients[address] = NodeClient(
                    protocol.parse_address(address), _secret(), self._host.clock
                )
            return known

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


def _secret() -> bytes:
    try:
        return read_secret(SECRET_VARIABLE, bytes_min=SECRET_BYTES_MIN)
    except ConfigurationError as error:
        raise UnavailableError(f"it serves it to those who have the secret, and here {error}") from error
