"""The Range header (RFC 9110, section 14), as S3 reads it: one range of bytes; anything else is as if it were not there."""

import re
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error

_SINGLE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes at `offset`."""

    offset: int
    length: int

    def content_range(self, size_bytes: int) -> str:
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size_bytes}"


def parse_range(header: str | None, size_bytes: int) -> Span | None:
    """None: the whole. Raises S3Error InvalidRange when nothing of it exists."""
    match = None if header is None else _SINGLE.fullmatch(header.strip().replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size_bytes)
        if not length:
            raise _unsatisfiable(size_bytes)
        return Span(size_bytes - length, length)
    first = int(match[1])
    last = int(match[2]) if match[2] else size_bytes - 1
    if match[2] and last < first:
        return None  # not a valid range, so it is ignored
    if first >= size_bytes:
        raise _unsatisfiable(size_bytes)
    return Span(first, min(last, size_bytes - 1) - first + 1)


def parse_copy_range(header: str | None, size_bytes: int) -> Span:
    """`x-amz-copy-source-range`: both ends, and all of it there. Raises S3Error InvalidArgument, InvalidRange."""
    if header is None:
        return Span(0, size_bytes)
    match = _SINGLE.fullmatch(header.strip())
    if match is None or not match[1] or not match[2] or int(match[2]) < int(match[1]):
        raise S3Error("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last.")
    if int(match[2]) >= size_bytes:
        raise _unsatisfiable(size_bytes)
    return Span(int(match[1]), int(match[2]) - int(match[1]) + 1)


def _unsatisfiable(size_bytes: int) -> S3Error:
    return S3Error(
        "InvalidRange", fields={"ActualObjectSize": str(size_bytes)}, headers={"content-range": f"bytes */{size_bytes}"}
    )
