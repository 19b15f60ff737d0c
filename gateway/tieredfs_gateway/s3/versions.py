"""Versions of objects: their ids, their order, and where the old ones are. Pure.

The current version of a key is the ordinary file at the key's place: the mount and every other door see the newest. Older
versions, and delete markers, are in a directory of the key's own, its *shelf*, below `.%@versions` of the bucket: a
name that no key has (`keys`), and that goes where the bucket's directory goes. A version's file is named by its id, which
begins with the time, inverted, so that names in byte order are versions from the newest to the oldest. The version
`null` (what was put before versioning, or while it was suspended, or made through the mount) has its place by its
time of modification.

Three rules make every step of a change one that may be the last before a crash:

- The current version, while there is a file, is the first. Its file may be on the shelf too (the same id): once in a list.
- A delete marker says which file it is to replace (`over`). While that file is current, the marker is not in force: the
  deletion has not taken place.
- There is one `null`. While it is current, what the shelf has under that name is not in force.
"""

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tieredfs.model import Attributes
from tieredfs_gateway.s3 import keys
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.record import Record

DIRECTORY: Final = b".%@versions"
NULL: Final = "null"
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_END_NS: Final = (1 << 64) - 1


class Versioning(enum.Enum):
    """The state of a bucket; the values are those of S3's XML, and at rest."""

    NEVER = ""
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


@dataclass(frozen=True, slots=True)
class Object:
    """A version of an object, or (`record.marker`) a delete marker, and the file that it is."""

    path: bytes
    attributes: Attributes
    record: Record
    tags: bytes | None = None
    """As they are at rest; listings leave them out."""

    @property
    def version_id(self) -> str:
        return self.record.version_id or NULL

    @property
    def order_ns(self) -> int:
        return order_ns(self.version_id, self.attributes.mtime_ns)


def make_id(now_ns: int, newest_ns: int, entropy: str) -> str:
    """Newer than all there is, whatever the clock says. `entropy`: 16 hex digits."""
    return f"{_END_NS - max(now_ns, newest_ns + 1):016x}{entropy}"


def order_ns(version_id: str, modified_ns: int) -> int:
    return modified_ns if version_id == NULL else _END_NS - int(version_id[:16], 16)


def name_before(at_ns: int) -> bytes:
    """A name after all versions at least as new as `at_ns`, and before all older ones."""
    return b"%016x~" % (_END_NS - at_ns)


def is_id(text: str) -> bool:
    return text == NULL or _ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """Raises S3Error InvalidArgument."""
    if not is_id(text):
        raise S3Error(
            "InvalidArgument",
            "Invalid version id specified",
            fields={"ArgumentName": "versionId", "ArgumentValue": text[:200]},
        )
    return text


def shelf(key: bytes) -> bytes:
    """The directory of a key's old versions, below the bucket. The keys' own `.%=` names are files, so it is nobody else's."""
    return DIRECTORY + b"/" + keys.places(key)[1]


def in_force(shelved: Iterable[Object], current: Object | None) -> Iterator[Object]:
    """Of a shelf, newest first, what there is beside the current version."""
    for found in shelved:
        if current is not None and (
            found.version_id == current.version_id
            or (found.record.marker and found.record.over == current.attributes.inode)
        ):
            continue
        yield found


def merged(named: Iterator[Object], null: Object | None) -> Iterator[Object]:
    """Versions with ids, newest first, and the `null` one at its place among them."""
    for found in named:
        if null is not None and null.order_ns > found.order_ns:
            yield null
            null = None
        yield found
    if null is not None:
        yield null
