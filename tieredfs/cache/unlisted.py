"""Contents that are staged here and whose staged record was lost: found again by what the SSD has of them.

The inode's own record says that its newest content is in this cache, and which version; the staged record lists it, and says
where it lies. A database that lost the second must not cost the content: the bytes are here, in a local file or behind a header
that says whose they are. (`tieredfs fsck` finds such a record missing or unreadable, and `--repair` makes one that does not know
the place.) So before recovery gives up what no record lists, it asks the inodes.

A content is believed to be at a place only if inode, version and length are those of the inode's own record and its checksum
holds. What was deleted, stored or superseded is never brought back, because its inode says so. Of two places with
different contents that both claim to be it neither is believed: nobody knows which is right.

The price is a look at each header in segments, and one in the metadata for each header and local file that no record knows.
"""

import logging
import os
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from tieredfs.cache.layout import segment_path
from tieredfs.cache.part import TierPart
from tieredfs.cache.segments import read_packed
from tieredfs.errors import CorruptError, NewerFormatError, NotFoundError
from tieredfs.format.segment import HEADER_BYTES, MAGIC, PackedHeader, decode_header, record_bytes
from tieredfs.host import Files
from tieredfs.limits import SEGMENT_CONTENT_BYTES_MAX
from tieredfs.model import PLACE_UNKNOWN, InodeId, Place

_log: Final = logging.getLogger("tieredfs.cache.unlisted")
_INODES_AT_ONCE: Final = 1024
_LOOK_BYTES: Final = 4096

Packed = tuple[Place, PackedHeader]


def list_again(part: TierPart, local: Collection[InodeId]) -> int:
    """Make staged records anew that were lost, or that do not know the place; `local`: the inodes that have local files. The
    number of contents that were found. Before recovery, which takes back what is listed and not found."""
    listed = part.metadata.staged(part.cache)
    known = {record.inode for record in listed if record.place != PLACE_UNKNOWN}
    places: dict[InodeId, Place | None] = {}
    for inodes in in_batches(inode for inode in local if inode not in known):
        places |= dict.fromkeys(part.metadata.staged_sizes(part.cache, inodes))
    places = _in_segments(part, known | places.keys()) | places
    for inodes in in_batches(places):
        part.metadata.list_staged(part.cache, {inode: places[inode] for inode in inodes})
    if places:
        _log.warning(
            "%d staged file(s) were on the SSD and not in the list of what is; they are in it again", len(places)
        )
    return len(places)


def in_batches(inodes: Iterable[InodeId]) -> Iterator[list[InodeId]]:
    """For look-ups in the metadata."""
    remaining = iter(inodes)
    while batch := list(islice(remaining, _INODES_AT_ONCE)):
        yield batch


def _in_segments(part: TierPart, known: Collection[InodeId]) -> dict[InodeId, Place | None]:
    """Where contents lie that are staged here and not `known`."""
    found: dict[InodeId, list[Packed]] = {}
    for number in part.directory.segment_numbers():
        unknown: dict[InodeId, list[Packed]] = {}
        for place, header in _packed(part.host.files, part.directory.path, number):
            if header.inode not in known:
                unknown.setdefault(header.inode, []).append((place, header))
        for inodes in in_batches(unknown):
            for inode, expected in part.metadata.staged_sizes(part.cache, inodes).items():
                claims = [each for each in unknown[inode] if (each[1].version, each[1].size_bytes) == expected]
                found.setdefault(inode, []).extend(claim for claim in claims if _is_whole(part, *claim))
    return {inode: claims[0][0] for inode, claims in found.items() if len({header.crc32c for _, header in claims}) == 1}


def _is_whole(part: TierPart, place: Place, header: PackedHeader) -> bool:
    try:
        read_packed(part.host.files, part.directory.path, place, header.inode, header.version)
    except (NotFoundError, OSError):
        return False
    return True


def _packed(files: Files, root: str, number: int) -> Iterator[Packed]:
    """Every content that a header in the segment tells of. After one comes the next; where none begins, it is looked for."""
    descriptor = files.open(segment_path(root, number), os.O_RDONLY)
    try:
        offset, end = 0, files.stat(descriptor).st_size
        while offset < end:
            at, header = _next_header(files, descriptor, offset)
            if header is None:
                offset += at
            else:
                yield Place(number, offset + at), header
                offset += at + record_bytes(header.size_bytes)
    finally:
        files.close(descriptor)


def _next_header(files: Files, descriptor: int, offset: int) -> tuple[int, PackedHeader | None]:
    """The next one, and how far from `offset` it begins; None: where to look next. Headers are at multiples of their length."""
    memory = bytearray(_LOOK_BYTES)
    try:
        count = files.read_into(descriptor, memoryview(memory), offset)
    except OSError:  # what the SSD cannot read is not found
        return _LOOK_BYTES, None
    at = memory.find(MAGIC, 0, count)
    while at >= 0 and at % HEADER_BYTES:
        at = memory.find(MAGIC, at + 1, count)
    if at < 0:
        return _LOOK_BYTES, None
    try:
        header = decode_header(bytes(memory[at : at + HEADER_BYTES]))
    except (CorruptError, NewerFormatError):
        return at + HEADER_BYTES, None
    if header.size_bytes > SEGMENT_CONTENT_BYTES_MAX:
        return at + HEADER_BYTES, None
    return at, header
