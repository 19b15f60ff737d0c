"""What S3 keeps of an object beside its bytes: one extended attribute with JSON, one for tags, one for an ACL, and as many as
the checksums of its parts need. Pure.

The record names the version of the content that it describes. A file that was changed through the mount since, or made
there, has an ETag made from its inode and version: with a dash, so that no client takes it for an MD5.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Final

from tieredfs.errors import CorruptError
from tieredfs.model import Attributes

ATTRIBUTE: Final = b"user.s3"
TAGS_ATTRIBUTE: Final = b"user.s3.tags"
ACL_ATTRIBUTE: Final = b"user.s3.acl"
"""One of `public_access.GRANTS`, or not there."""
PARTS_ATTRIBUTES: Final = tuple(b"user.s3.parts.%d" % number for number in range(5))
"""The checksums of the parts, one after another as bytes, `PART_DIGESTS_MAX` in each attribute."""
PART_DIGESTS_MAX: Final = 2048
"""Of up to 32 bytes: as many as one attribute has room for, and of 10,000 parts in all."""
RECORD_VERSION: Final = 1
CREATED_VERSION: Final = 1
"""Of the content of a file that was written and committed once."""
SPLICED_VERSION: Final = 0
"""Of a file that was made by reference."""
PART_RUNS_MAX: Final = 1000
"""Runs of parts of one size that a record has room for; past that, reading by part number is refused."""


@dataclass(frozen=True, slots=True)
class Record:
    """`version`: of the content that etag, checksum and parts describe."""

    etag: str
    version: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Content-Type and its like, as the client set them; names in lower case."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """`x-amz-meta-` headers without the prefix."""
    checksum: tuple[str, str, str] | None = None
    """Algorithm, base64 value, FULL_OBJECT or COMPOSITE."""
    parts: tuple[tuple[int, int], ...] = ()
    """Size and count of each run of parts."""
    upload: str = ""
    """The multipart upload that it came from, so that completing it again finds it done."""
    version_id: str = ""
    """Empty: `null`."""
    marker: bool = False
    """A delete marker."""
    kept: bool = True
    """False: nothing is kept of the file, it was made through the mount (not at rest)."""
    over: int = 0
    """The inode that was current when the marker was made: while it still is, the marker is not in force."""

    def part_count(self) -> int:
        return sum(count for _, count in self.parts)


_json = json.JSONEncoder(separators=(",", ":")).encode
_AT_REST: Final = tuple(each.name for each in fields(Record) if each.name != "kept")


def runs(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    found = tuple((size, len(list(group))) for size, group in groupby(sizes))
    return found if len(found) <= PART_RUNS_MAX else ()


def encode_parts(digests: Sequence[bytes]) -> dict[bytes, bytes]:
    """The attributes that keep the checksums of an object's parts, in order."""
    batches = [digests[start : start + PART_DIGESTS_MAX] for start in range(0, len(digests), PART_DIGESTS_MAX)]
    return {name: b"".join(batch) for name, batch in zip(PARTS_ATTRIBUTES, batches, strict=False)}


def decode_parts(record: Record, raw: Sequence[bytes | None], digest_bytes: int) -> list[bytes]:
    """What `encode_parts` kept beside the record; empty when it is not what the record says there should be."""
    whole = b"".join(piece or b"" for piece in raw)
    if not record.parts or len(whole) != record.part_count() * digest_bytes:
        return []
    return [whole[start : start + digest_bytes] for start in range(0, len(whole), digest_bytes)]


def encode(record: Record) -> bytes:
    kept = {name: value for name in _AT_REST if (value := getattr(record, name))}
    return _json({"v": RECORD_VERSION, **kept}).encode()


def decode(raw: bytes) -> Record:
    """Raises CorruptError; records are checked at rest, so this is what somebody wrote over them."""
    try:
        found = json.loads(raw)
        if found.pop("v") != RECORD_VERSION:
            raise CorruptError("the user.s3 attribute is of another version")
        checksum = found.get("checksum")
        return Record(
            str(found["etag"]),
            int(found.get("version", 0)),
            {str(name): str(value) for name, value in found.get("headers", {}).items()},
            {str(name): str(value) for name, value in found.get("metadata", {}).items()},
            None if checksum is None else (str(checksum[0]), str(checksum[1]), str(checksum[2])),
            tuple((int(size), int(count)) for size, count in found.get("parts", ())),
            str(found.get("upload", "")),
            str(found.get("version_id", "")),
            bool(found.get("marker", False)),
            over=int(found.get("over", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptError("the user.s3 attribute of an object cannot be read") from error


def describe(attributes: Attributes, raw: bytes | None) -> Record:
    """The record that holds for the content as it is now."""
    if raw is not None:
        record = decode(raw)
        if record.version == attributes.version:
            return record
        return Record(
            _mount_etag(attributes), attributes.version, record.headers, record.metadata, version_id=record.version_id
        )
    return Record(_mount_etag(attributes), attributes.version, kept=False)


def _mount_etag(attributes: Attributes) -> str:
    moment = attributes.mtime_ns & 0xFFFFFFFF
    return f"{attributes.inode & 0xFFFFFFFFFFFF:012x}{attributes.version & 0xFFFFFFFFFFFF:012x}{moment:08x}-1"
