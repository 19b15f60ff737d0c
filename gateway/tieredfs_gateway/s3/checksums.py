"""The checksums of S3: what a client announces, what a body turns out to have, and joining those of parts.

A body that has another checksum than its client said is refused. CRCs of parts join into the CRC of the whole without
reading it again (`FULL_OBJECT`); hashes do not, so a multipart object has the hash of its parts' hashes (`COMPOSITE`,
with the number of parts behind a dash).
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tieredfs.host import isal
from tieredfs_gateway.s3.errors import S3Error

Buffer = bytes | bytearray | memoryview
Crc = Callable[[Buffer, int], int]

PREFIX: Final = "x-amz-checksum-"
FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"


class Hasher(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


class _CrcHasher:
    def __init__(self, crc: Crc, width_bytes: int) -> None:
        self._crc = crc
        self._width_bytes = width_bytes
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._crc(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width_bytes, "big")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`polynomial`, bits reversed, of those that join; 0 for hashes."""

    name: str
    digest_bytes: int
    make: Callable[[], Hasher]
    polynomial: int = 0

    @property
    def header(self) -> str:
        return PREFIX + self.name.lower()

    @property
    def element(self) -> str:
        """Its name in XML."""
        return f"Checksum{self.name}"


ALGORITHMS: Final[dict[str, Algorithm]] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("CRC32", 4, lambda: _CrcHasher(zlib.crc32, 4), 0xEDB88320),
        Algorithm("CRC32C", 4, lambda: _CrcHasher(isal.crc32c, 4), 0x82F63B78),
        Algorithm("CRC64NVME", 8, lambda: _CrcHasher(isal.crc64_nvme, 8), 0x9A6C9329AC4BC9B5),
        Algorithm("SHA1", 20, hashlib.sha1),
        Algorithm("SHA256", 32, hashlib.sha256),
    )
}
_BY_HEADER: Final = {algorithm.header: algorithm for algorithm in ALGORITHMS.values()}


def algorithm_of(name: str) -> Algorithm:
    """Raises S3Error InvalidRequest."""
    found = ALGORITHMS.get(name.upper())
    if found is None:
        raise S3Error("InvalidRequest", f"Checksum algorithm must be one of {', '.join(ALGORITHMS)}.")
    return found


def decode(value: str, digest_bytes: int, *, code: str = "InvalidRequest", what: str = "checksum") -> bytes:
    """Base64 of exactly that many bytes. Raises S3Error."""
    try:
        raw = base64.b64decode(value.strip().encode(), validate=True)
    except ValueError as error:
        raise S3Error(code, f"Value for {what} is invalid.") from error
    if len(raw) != digest_bytes:
        raise S3Error(code, f"Value for {what} is invalid.")
    return raw


def encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


# ---- what a body must have -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announced:
    """`digest` None with an algorithm: it comes in the trailer, or (`trailer` False) the client wants ours."""

    md5: bytes | None
    algorithm: Algorithm | None
    digest: bytes | None
    trailer: bool


def announced(headers: Mapping[str, str]) -> Announced:
    """What the headers say of the body's checksums. Raises S3Error InvalidDigest, InvalidRequest."""
    md5 = headers.get("content-md5")
    digest_md5 = None if md5 is None else decode(md5, 16, code="InvalidDigest", what="Content-MD5")
    given = [algorithm for header, algorithm in _BY_HEADER.items() if header in headers]
    named = [name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",")]
    trailing = [algorithm for header, algorithm in _BY_HEADER.items() if header in named]
    if len(given) + len(trailing) > 1:
        raise S3Error(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum types are not allowed."
        )
    if given:
        value = decode(headers[given[0].header], given[0].digest_bytes, what=f"{given[0].header} header")
        return Announced(digest_md5, given[0], value, trailer=False)
    if trailing:
        return Announced(digest_md5, trailing[0], None, trailer=True)
    wanted = headers.get("x-amz-sdk-checksum-algorithm") or headers.get("x-amz-checksum-algorithm")
    return Announced(digest_md5, algorithm_of(wanted) if wanted else None, None, trailer=False)


def without(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, but for what they say of checksums other than MD5."""
    names = (*_BY_HEADER, "x-amz-trailer", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm")
    return {name: value for name, value in headers.items() if name not in names}


def check_trailer(expected: Announced, trailers: Mapping[str, str]) -> bytes | None:
    """The digest that the client says the body has. Raises S3Error for a trailer that was announced and is missing."""
    if not expected.trailer or expected.algorithm is None:
        return expected.digest
    value = trailers.get(expected.algorithm.header)
    if value is None:
        raise S3Error("InvalidRequest", f"The trailer {expected.algorithm.header} was announced and did not come.")
    return decode(value, expected.algorithm.digest_bytes, what=f"{expected.algorithm.header} trailer")


def check_digest(name: str, expected: bytes | None, found: bytes) -> None:
    """Raises S3Error BadDigest."""
    if expected is not None and expected != found:
        raise S3Error(
            "BadDigest",
            f"The {name} you specified did not match the calculated checksum.",
            fields={"ExpectedDigest": encode(expected), "CalculatedDigest": encode(found)},
        )


# ---- of objects in parts ---------------------------------------------------------------------------------------------


def composite(algorithm: Algorithm, digests: Iterable[bytes]) -> str:
    """The checksum of the parts' checksums, with their number."""
    hasher, count = algorithm.make(), 0
    for digest in digests:
        hasher.update(digest)
        count += 1
    return f"{encode(hasher.digest())}-{count}"


def joined(algorithm: Algorithm, parts: Iterable[tuple[bytes, int]]) -> bytes:
    """The CRC of the whole from the CRC and length of each part, in order."""
    assert algorithm.polynomial, "hashes do not join"
    width = 8 * algorithm.digest_bytes
    value = 0
    for digest, size_bytes in parts:
        shifted = _product(_power_of_x(8 * size_bytes, algorithm.polynomial, width), value, algorithm.polynomial, width)
        value = shifted ^ int.from_bytes(digest, "big")
    return value.to_bytes(algorithm.digest_bytes, "big")


def _product(left: int, right: int, polynomial: int, width: int) -> int:
    """`left` times `right` over GF(2), bits reversed, modulo the polynomial."""
    result, one = 0, 1 << (width - 1)
    mask = (1 << width) - 1
    while left:
        if left & one:
            result ^= right
        left = left << 1 & mask
        right = right >> 1 ^ (polynomial if right & 1 else 0)
    return result


def _power_of_x(bits: int, polynomial: int, width: int) -> int:
    result = 1 << (width - 1)
    square = result >> 1
    while bits:
        if bits & 1:
            result = _product(square, result, polynomial, width)
        square = _product(square, square, polynomial, width)
        bits >>= 1
    return result
