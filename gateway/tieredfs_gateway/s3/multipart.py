"""The rules of multipart uploads: numbers, order, sizes, ETags and checksums of parts. Pure."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tieredfs.limits import GIB, MIB, TIB
from tieredfs_gateway.s3 import checksums
from tieredfs_gateway.s3.checksums import ALGORITHMS, COMPOSITE, FULL_OBJECT, Algorithm
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.xml import Element, Tree

PARTS_MAX: Final = 10_000
PART_BYTES_MIN: Final = 5 * MIB
PART_BYTES_MAX: Final = 5 * GIB
OBJECT_BYTES_MAX: Final = 5 * TIB


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that was uploaded."""

    number: int
    size_bytes: int
    etag: str
    modified_ns: int = 0
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm to base64."""


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part as `CompleteMultipartUpload` names it."""

    number: int
    etag: str
    checksums: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Promised:
    """What a client that completes an upload says of the whole."""

    checksum: tuple[str, str] | None = None
    """Algorithm and base64 value."""
    kind: str | None = None
    size_bytes: int | None = None


def promised(headers: Mapping[str, str]) -> Promised:
    """Raises S3Error InvalidArgument, InvalidRequest."""
    given = [(name, headers[algorithm.header]) for name, algorithm in ALGORITHMS.items() if algorithm.header in headers]
    for name, value in given:
        checksums.decode(value.partition("-")[0], ALGORITHMS[name].digest_bytes, what=ALGORITHMS[name].header)
    size = headers.get("x-amz-mp-object-size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 19):
        raise S3Error("InvalidArgument", "x-amz-mp-object-size is a number.")
    kind = headers.get("x-amz-checksum-type")
    return Promised(given[0] if given else None, kind, None if size is None else int(size))


def check_promised(said: Promised, size_bytes: int, checksum: tuple[str, str] | None, kind: str) -> None:
    """Raises S3Error InvalidRequest, BadDigest."""
    if said.size_bytes not in (None, size_bytes):
        message = (
            f"The provided 'x-amz-mp-object-size' header value {said.size_bytes} does not match what was computed:"
        )
        raise S3Error("InvalidRequest", f"{message} {size_bytes}")
    if said.kind is not None and kind and said.kind != kind:
        raise S3Error("InvalidRequest", f"The upload was begun with the {kind} checksum type.")
    if said.checksum is None:
        return
    if checksum is None or said.checksum[0] != checksum[0]:
        message = f"The upload was not begun with {said.checksum[0]}, or a part has none: it cannot be checked."
        raise S3Error("InvalidRequest", message)
    if said.checksum[1] not in (checksum[1], checksum[1].partition("-")[0]):  # with the number of parts, or without
        raise S3Error("BadDigest", f"The {said.checksum[0]} you specified did not match the calculated checksum.")


def parse_part_number(text: str | None) -> int:
    """Raises S3Error InvalidArgument."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PARTS_MAX):
        raise S3Error("InvalidArgument", f"Part number must be an integer between 1 and {PARTS_MAX}, inclusive.")
    return int(text)


def parse_complete(document: Element) -> list[ListedPart]:
    """Raises S3Error MalformedXML, InvalidPartOrder."""
    parts = []
    for element in document.all("Part"):
        number = parse_part_number(element.need("PartNumber"))
        given = {name: text for name, algorithm in ALGORITHMS.items() if (text := element.get(algorithm.element))}
        parts.append(ListedPart(number, element.need("ETag").strip('"'), given))
    if not parts or len(parts) > PARTS_MAX:
        raise S3Error("MalformedXML", f"From 1 to {PARTS_MAX} parts must be specified.")
    if any(first.number >= second.number for first, second in itertools.pairwise(parts)):
        raise S3Error("InvalidPartOrder")
    return parts


def choose(listed: Sequence[ListedPart], stored: Mapping[int, StoredPart]) -> list[StoredPart]:
    """The parts of the object, in order. Raises S3Error InvalidPart, EntityTooSmall, EntityTooLarge."""
    chosen = []
    for part in listed:
        found = stored.get(part.number)
        if found is None or found.etag != part.etag:
            raise S3Error("InvalidPart", fields={"PartNumber": str(part.number), "ETag": part.etag[:128]})
        for name, value in part.checksums.items():
            if found.checksums.get(name, value) != value:
                raise S3Error("InvalidPart", fields={"PartNumber": str(part.number), "ETag": part.etag[:128]})
        chosen.append(found)
    for found in chosen[:-1]:
        if found.size_bytes < PART_BYTES_MIN:
            raise S3Error(
                "EntityTooSmall",
                fields={"ProposedSize": str(found.size_bytes), "MinSizeAllowed": str(PART_BYTES_MIN)},
            )
    if sum(found.size_bytes for found in chosen) > OBJECT_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    return chosen


def check_listed(listed: Sequence[ListedPart], chosen: Sequence[StoredPart], algorithm: str, kind: str) -> None:
    """A COMPOSITE checksum is of what the client says of each part. Raises S3Error InvalidRequest."""
    for part, found in zip(listed, chosen, strict=True):
        if kind == COMPOSITE and algorithm in found.checksums and algorithm not in part.checksums:
            raise S3Error(
                "InvalidRequest",
                f"The upload was created using a {algorithm.lower()} checksum. The complete request must include the "
                f"checksum for each part. It was missing for part {part.number} in the request.",
            )


def etag(parts: Sequence[StoredPart]) -> str:
    """MD5 of the parts' MD5s, and their number, as clients compute it themselves."""
    digests = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def parse_kind(kind: str | None, algorithm: Algorithm) -> str:
    """FULL_OBJECT or COMPOSITE. Raises S3Error InvalidRequest for a pair that S3 does not have."""
    if kind is None:
        return FULL_OBJECT if algorithm.name == "CRC64NVME" else COMPOSITE
    if kind not in (FULL_OBJECT, COMPOSITE):
        raise S3Error("InvalidRequest", "x-amz-checksum-type must be COMPOSITE or FULL_OBJECT.")
    if (kind == FULL_OBJECT and not algorithm.polynomial) or (kind == COMPOSITE and algorithm.name == "CRC64NVME"):
        raise S3Error("InvalidRequest", f"The {kind} checksum type cannot be used with {algorithm.name}.")
    return kind


def checksum(algorithm: Algorithm, kind: str, parts: Sequence[StoredPart]) -> str | None:
    """Of the whole object; None when a part has none of that kind."""
    if any(algorithm.name not in part.checksums for part in parts):
        return None
    digests = part_digests(algorithm, parts)
    if kind == COMPOSITE:
        return checksums.composite(algorithm, digests)
    sizes = (part.size_bytes for part in parts)
    return checksums.encode(checksums.joined(algorithm, zip(digests, sizes, strict=True)))


def part_digests(algorithm: Algorithm, parts: Sequence[StoredPart]) -> list[bytes]:
    """Of parts that all have one."""
    return [checksums.decode(part.checksums[algorithm.name], algorithm.digest_bytes) for part in parts]


def reference_etag(source_etag: str, offset: int, length: int) -> str:
    """Of a part that refers to bytes of an object without reading them: the same bytes of it, the same ETag."""
    return hashlib.md5(f"{source_etag} {offset} {length}".encode(), usedforsecurity=False).hexdigest()


def parts_page(
    runs: Sequence[tuple[int, int]], element: str, digests: Sequence[bytes], after: int, limit: int
) -> dict[str, Tree]:
    """Of an object in `runs` (size, count) of parts: what GetObjectAttributes shows, with the parts' checksums as `element`,
    if they are kept."""
    sizes = [size for size, count in runs for _ in range(count)]
    shown = list(enumerate(sizes, 1))[after : after + limit]
    return {
        "PartsCount": len(sizes),
        "PartNumberMarker": after,
        "NextPartNumberMarker": shown[-1][0] if shown else 0,
        "MaxParts": limit,
        "IsTruncated": after + len(shown) < len(sizes),
        "Part": [
            {"PartNumber": number, "Size": size} | ({element: checksums.encode(digests[number - 1])} if digests else {})
            for number, size in shown
        ],
    }
