"""The members of a tar archive: ustar, with the long names and sizes of GNU and pax. Pure: headers in, members out.

Source of the format: POSIX.1-2001 (pax interchange format), and GNU tar's manual ("Basic Tar Format") for types K, L and base-256.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 512
_EXTENDED_MAX: Final = 1 << 20
_DIGITS_MAX: Final = 20
"""Of 64 bits."""


class BadTarError(Exception):
    """What is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of the archive: its bytes are `size` at `offset`. A hard link has those of the member that it names."""

    name: bytes
    offset: int
    size: int


def members(read: Callable[[int, int], bytes], total: int) -> Iterator[Member]:
    """`read(offset, length)` gives bytes of the archive of `total` bytes. Raises BadTarError.

    An archive ends with blocks of zeros; one that does not was cut off, perhaps between two members.
    """
    at = 0
    long_name: bytes | None = None
    long_target: bytes | None = None
    known: dict[bytes, Member] = {}
    pax: dict[bytes, bytes] = {}
    while at < total:
        header = read(at, BLOCK)
        if len(header) < BLOCK:
            raise BadTarError(f"it ends within a header, at byte {at}")
        if not header.strip(b"\0"):
            return
        _check(header, at)
        size = _decimal(pax[b"size"], at) if b"size" in pax else _number(header[124:136], at)
        kind, data = header[156:157], at + BLOCK
        if data + size > total:
            raise BadTarError(f"it is truncated: the member at byte {at} has {size} bytes, {total - data} are there")
        if kind == b"K":
            long_target = _extended(read, data, size, at).rstrip(b"\0")
        elif kind == b"L":
            long_name = _extended(read, data, size, at).rstrip(b"\0")
        elif kind == b"x":
            pax = _pax(_extended(read, data, size, at), at)
        elif kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
            raise BadTarError(
                f"the member at byte {at} is stored with holes (`tar --sparse`), which are not filled here"
            )
        elif kind in b"0\0" or kind in (b"1", b"7"):
            name = pax.get(b"path") or long_name or _name(header)
            known[name] = Member(name, data, size)
            if kind == b"1":
                target = pax.get(b"linkpath") or long_target or header[157:257].rstrip(b"\0")
                known[name] = _linked(name, known.get(target), at)
            yield known[name]
        if kind not in (b"K", b"L", b"x", b"g"):
            long_name, long_target, pax = None, None, {}
        at = data + -(-size // BLOCK) * BLOCK
    raise BadTarError(f"it is truncated: its {total} bytes do not end with the mark of an end")


def _linked(name: bytes, target: Member | None, at: int) -> Member:
    if target is None:
        raise BadTarError(f"the member at byte {at} is a hard link to one that does not come before it")
    return Member(name, target.offset, target.size)


def _check(header: bytes, at: int) -> None:
    stated = _number(header[148:156], at)
    actual = sum(header) - sum(header[148:156]) + 8 * 0x20
    if stated != actual:
        raise BadTarError(f"the header at byte {at} has a wrong checksum")


def _number(field: bytes, at: int) -> int:
    if field[0] & 0x80:  # GNU: base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b" \0")
    if text.strip(b"01234567"):
        raise BadTarError(f"the header at byte {at} has {text!r} where a number belongs")
    return int(text, 8) if text else 0


def _decimal(text: bytes, at: int) -> int:
    if not text.isdigit() or len(text) > _DIGITS_MAX:
        raise BadTarError(f"the header at byte {at} has {text[:_DIGITS_MAX]!r} where a number belongs")
    return int(text)


def _name(header: bytes) -> bytes:
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(read: Callable[[int, int], bytes], offset: int, size: int, at: int) -> bytes:
    if size > _EXTENDED_MAX:
        raise BadTarError(f"the extended header at byte {at} has {size} bytes")
    return read(offset, size)


def _pax(data: bytes, at: int) -> dict[bytes, bytes]:
    """Records `length key=value\\n`, the length counting itself."""
    found: dict[bytes, bytes] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise BadTarError(f"the extended header at byte {at} has a record without a length")
        key, equals, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if equals:
            found[key] = value
        data = data[int(length) :]
    return found
