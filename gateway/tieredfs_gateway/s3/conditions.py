"""Conditional headers on read, write, copy and delete (RFC 9110, section 13, with S3's precedence).

Reads: a failed If-Match or If-Unmodified-Since is 412, and If-Match decides alone when both are there; then
If-None-Match or If-Modified-Since gives 304. Copies have the same four under `x-amz-copy-source-`, always 412. Writes
and deletes know If-Match and If-None-Match, judged inside the committing transaction: compare-and-swap. Deletes know a size
and a time besides; what is not there is deleted already, whatever its conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache

from tieredfs_gateway.s3.errors import S3Error


@dataclass(frozen=True, slots=True)
class Conditions:
    """The four, as sent, and the two of a delete: size in bytes, time of modification in seconds."""

    match: str | None
    none_match: str | None
    modified_since: str | None
    unmodified_since: str | None
    size_bytes: int | None = None
    modified_s: int | None = None

    def any(self) -> bool:
        return self != NONE


NONE = Conditions(None, None, None, None)


def of_read(headers: Mapping[str, str]) -> Conditions:
    return _taken(headers, "")


def of_copy_source(headers: Mapping[str, str]) -> Conditions:
    return _taken(headers, "x-amz-copy-source-")


def of_write(headers: Mapping[str, str]) -> Conditions:
    """Raises S3Error NotImplemented for conditions that would be ignored."""
    if any(name.startswith("x-amz-if-match-") for name in headers):
        raise S3Error("NotImplemented", "Only deletes have conditions on a time or a size.")
    return Conditions(headers.get("if-match"), headers.get("if-none-match"), None, None)


def of_delete(
    match: str | None, size_bytes: str | None, modified: str | None, none_match: str | None = None
) -> Conditions:
    """`modified`: a date of HTTP, or ISO 8601. Raises S3Error InvalidArgument."""
    if size_bytes is not None and not (size_bytes.isascii() and size_bytes.isdigit() and len(size_bytes) < 19):
        raise S3Error("InvalidArgument", "The size of a condition is a number of bytes.")
    modified_s = None if modified is None else _moment(modified)
    return Conditions(match, none_match, None, None, None if size_bytes is None else int(size_bytes), modified_s)


def _moment(text: str) -> int:
    seconds = _seconds(text)
    if seconds is None:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise S3Error("InvalidArgument", "The time of a condition is a date.") from error
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return seconds


def _taken(headers: Mapping[str, str], prefix: str) -> Conditions:
    return Conditions(
        headers.get(f"{prefix}if-match"),
        headers.get(f"{prefix}if-none-match"),
        headers.get(f"{prefix}if-modified-since"),
        headers.get(f"{prefix}if-unmodified-since"),
    )


def http_date(time_ns: int) -> str:
    return _date(time_ns // 1_000_000_000)


@lru_cache(maxsize=256)
def _date(time_s: int) -> str:
    return format_datetime(datetime.fromtimestamp(time_s, UTC), usegmt=True)


def _seconds(header: str | None) -> int | None:
    """None when it is no date: then the condition is as if it were not there."""
    if header is None:
        return None
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def etag_listed(header: str, etag: str) -> bool:
    """Whether a list of entity tags names `etag` (without quotes). Weak tags compare by their text."""
    if header.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/").strip('"') == etag for tag in header.split(","))


def check_read(asked: Conditions, etag: str, modified_ns: int) -> None:
    """Raises S3Error PreconditionFailed or NotModified."""
    modified_s = modified_ns // 1_000_000_000
    if asked.match is not None:
        if not etag_listed(asked.match, etag):
            raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})
    elif (limit_s := _seconds(asked.unmodified_since)) is not None and modified_s > limit_s:
        raise S3Error("PreconditionFailed", fields={"Condition": "If-Unmodified-Since"})
    if asked.none_match is not None:
        if etag_listed(asked.none_match, etag):
            raise S3Error("NotModified", headers={"etag": f'"{etag}"', "last-modified": http_date(modified_ns)})
    elif (limit_s := _seconds(asked.modified_since)) is not None and modified_s <= limit_s:
        raise S3Error("NotModified", headers={"etag": f'"{etag}"', "last-modified": http_date(modified_ns)})


def check_copy_source(asked: Conditions, etag: str, modified_ns: int) -> None:
    """Raises S3Error PreconditionFailed."""
    try:
        check_read(asked, etag, modified_ns)
    except S3Error as error:
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-copy-source-If"}) from error


def check_write(asked: Conditions, etag: str | None) -> None:
    """`etag` None: there is no such object now. Raises S3Error PreconditionFailed, or NoSuchKey as S3 does for If-Match
    where nothing is."""
    if asked.none_match is not None and etag is not None and etag_listed(asked.none_match, etag):
        raise S3Error("PreconditionFailed", fields={"Condition": "If-None-Match"})
    if asked.match is not None:
        if etag is None:
            raise S3Error("NoSuchKey")
        if not etag_listed(asked.match, etag):
            raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})


def check_delete(asked: Conditions, etag: str, size_bytes: int, modified_ns: int) -> None:
    """Of what is there. Raises S3Error PreconditionFailed."""
    check_write(asked, etag)
    if asked.size_bytes not in (None, size_bytes):
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-size"})
    if asked.modified_s not in (None, modified_ns // 1_000_000_000):
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-last-modified-time"})
