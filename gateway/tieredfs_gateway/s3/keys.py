"""Keys and paths: any legal key has a place below its bucket's directory, and every place shows as one key.

A key is up to 1,024 bytes of UTF-8; `/` splits it into segments, and a segment is a name as it stands, wherever a file
system can have that name: ordinary keys look in the mount as they look in S3. What it cannot have begins with `.%`:

- `.%:` and the segment: the empty segment (`a//b`, a leading or trailing `/`), `.`, `..`, one with a NUL byte, one that
  itself begins with `.%`. NUL is written as bytes 1 1, and byte 1 as 1 2, which keeps the order.
- `.%+` and 120 bytes of a segment that is longer than a name may be: a directory; the rest of the segment is inside.
- `.%=` and the segment: an object whose key is also the beginning of another's (`a` beside `a/b`): its plain name is a directory.

So a key has two places, of which at most one is taken: `places(key)`. Each is injective over keys, the bytes keep their
order within each of the three kinds, and no segment can name `..`, hence none leaves its bucket. FORMAT.md has the same.
"""

from typing import Final

from tieredfs.limits import NAME_BYTES_MAX
from tieredfs_gateway.s3.errors import S3Error

KEY_BYTES_MAX: Final = 1024
SPECIAL: Final = b".%"
ESCAPED: Final = b".%:"
SPLIT: Final = b".%+"
BESIDE: Final = b".%="
SPLIT_BYTES: Final = 120
"""Of a segment, so that even with every byte doubled it fits a name."""

assert len(SPLIT) + 2 * SPLIT_BYTES <= NAME_BYTES_MAX


def check_key(key: bytes) -> None:
    """Raises S3Error KeyTooLongError, InvalidURI (not UTF-8)."""
    if len(key) > KEY_BYTES_MAX:
        raise S3Error("KeyTooLongError", fields={"Size": str(len(key)), "MaxSizeAllowed": str(KEY_BYTES_MAX)})
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise S3Error("InvalidURI", "A key is UTF-8.") from error


def _quoted(segment: bytes) -> bytes:
    return segment.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")


def _unquoted(text: bytes) -> bytes | None:
    plain = text.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1")
    return plain if _quoted(plain) == text else None


def _is_plain(segment: bytes) -> bool:
    return (
        segment not in (b"", b".", b"..")
        and len(segment) <= NAME_BYTES_MAX
        and b"\0" not in segment
        and not segment.startswith(SPECIAL)
    )


def _names(segment: bytes, mark: bytes) -> list[bytes]:
    """One name, or several nested ones. `mark` ESCAPED: plain where that can be; BESIDE: never."""
    if mark == ESCAPED and _is_plain(segment):
        return [segment]
    name = mark + _quoted(segment)
    if len(name) <= NAME_BYTES_MAX:
        return [name]
    return [SPLIT + _quoted(segment[:SPLIT_BYTES]), *_names(segment[SPLIT_BYTES:], mark)]


def places(key: bytes) -> tuple[bytes, bytes]:
    """The paths below the bucket where the object may be: its own place, and the one beside a directory of that name."""
    *directories, last = key.split(b"/")
    above = [name for segment in directories for name in _names(segment, ESCAPED)]
    own, beside = _names(last, ESCAPED), _names(last, BESIDE)
    return b"/".join([*above, *own]), b"/".join([*above, *beside])


def shown(name: bytes) -> tuple[bytes, bytes] | None:
    """What a name in a directory contributes to keys: its bytes, and what follows when it is a directory (`/`, or
    nothing in the middle of a long segment). None: no key has such a name."""
    if not name.startswith(SPECIAL):
        return name, b"/"
    text = _unquoted(name[len(ESCAPED) :])
    if text is None:
        return None
    if name.startswith(SPLIT):
        return (text, b"") if len(text) == SPLIT_BYTES else None
    return (text, b"/") if name.startswith((ESCAPED, BESIDE)) else None


def readable(key: bytes) -> bool:
    """Whether S3 can show it: a name that the mount made may be no UTF-8, or make a key that is too long or empty."""
    try:
        check_key(key)
    except S3Error:
        return False
    return bool(key)
