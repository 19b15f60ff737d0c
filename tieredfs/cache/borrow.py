"""Reading a content where it is: in the cache directory of another process of this machine.

*Staged* there: close-to-open between mounts needs no waiting for the drain. Who opens a file after its writer closed it, and
before it is stored, reads the writer's local file.

*Resident* there: a machine reads each byte from the store once, however many of its processes want it. Who needs a content that
none of them has takes its `FillTurn`, a name that one process can have at a time, and fetches it; the others wait until
it is whole in that process's directory, and read it there. Nothing depends on the fetching process: when it dies its name
is free and the next one fetches; when it evicts the copy, whoever has it open keeps it; who waits too long fetches, too.
"""

import os
import socket
from collections.abc import Iterator
from typing import Final

from tieredfs.cache.layout import content_path, is_of_this_boot
from tieredfs.cache.part import TierPart
from tieredfs.errors import UnavailableError
from tieredfs.host import Host
from tieredfs.limits import FILL_WAIT_S, MIB, PACKED_FILE_BYTES_MAX
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes, CacheRecord, InodeId

SHARED_BYTES_MIN: Final = PACKED_FILE_BYTES_MAX
"""A smaller file is fetched sooner than it is looked for in the directories of others."""
_PAUSE_FIRST_S: Final = 0.002
_PAUSE_LAST_S: Final = 0.05


def borrow(metadata: Metadata, host: Host, attributes: Attributes) -> int:
    """A descriptor of the staged file, for reading. Raises UnavailableError when it is on another host, or just moved."""
    record = next((record for record in metadata.caches() if record.cache == attributes.staged_in), None)
    if record is None or record.host != host.name:
        raise UnavailableError("the file is staged on another host and is not stored yet")
    try:
        return host.files.open(content_path(record.path, attributes.inode, attributes.version), os.O_RDONLY)
    except FileNotFoundError:
        raise UnavailableError("the staged file has just moved to the store: try again") from None


class FillTurn:
    """The right to fetch one content for this machine. It is a name among abstract sockets, so it ends with its process."""

    def __init__(self, held: socket.socket) -> None:
        self._held = held

    @classmethod
    def take(cls, volume_uuid: str, inode: InodeId, version: int) -> "FillTurn | None":
        """None: another process has it."""
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            held.bind(f"\0tieredfs-fill-{volume_uuid}-{inode:016x}.{version:x}".encode())
        except OSError:
            held.close()
            return None
        return cls(held)

    def close(self) -> None:
        self._held.close()


def share(part: TierPart, attributes: Attributes) -> int | FillTurn | None:
    """A descriptor of a whole copy of another process here, for reading; or the turn to fetch it; None: fetch it without."""
    if attributes.size_bytes < SHARED_BYTES_MIN:
        return None
    host = part.host
    others = [one for one in part.metadata.caches() if one.host == host.name and one.cache != part.cache]
    if not others:
        return None
    deadline_s = host.clock.monotonic_s() + FILL_WAIT_S * (1 + attributes.size_bytes // (64 * MIB))
    pause_s = _PAUSE_FIRST_S
    while True:
        turn = FillTurn.take(part.directory.volume_uuid, attributes.inode, attributes.version)
        for descriptor in _copies(host, others, attributes):
            if turn is not None:
                turn.close()
            return descriptor
        if turn is not None or host.clock.monotonic_s() > deadline_s:
            return turn
        host.clock.sleep(pause_s)
        pause_s = min(_PAUSE_LAST_S, pause_s * 1.5)


def _copies(host: Host, others: list[CacheRecord], attributes: Attributes) -> Iterator[int]:
    """Descriptors of copies that are certainly whole: no power cut since they were made, and of the right length."""
    for record in others:
        try:
            descriptor = host.files.open(content_path(record.path, attributes.inode, attributes.version), os.O_RDONLY)
        except OSError:
            continue
        if is_of_this_boot(record.path, host.files) and host.files.stat(descriptor).st_size == attributes.size_bytes:
            yield descriptor
            return
        host.files.close(descriptor)
