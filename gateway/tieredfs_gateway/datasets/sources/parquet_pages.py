"""Pages of Parquet: which of them a filter may match, and how a few of them are read as if they were a file.

Arrow's reader decodes whole column chunks. But a file says where the pages of a chunk are (offset index) and what each holds
(column index). So the pages that are needed make a small file of their own: the same bytes one after another, under a footer
that says so, and Arrow decodes that. Pages of different columns begin at different rows: columns that need the same rows share
such a file, and from each the rows that are wanted are cut without copying.

Only columns at the top that are no lists or structs have pages here; for others the whole row group is read.

Pure: bytes in, plans out. Source of the format: Apache Parquet, `parquet.thrift` and "Page Index" (PageIndex.md).
"""

import base64
import bisect
import datetime
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tieredfs_gateway.datasets.filters import Bounds
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources import thrift_compact as thrift
from tieredfs_gateway.datasets.sources.protocol import Ranges

CHUNKS_MAX: Final = 10_000
"""Of a footer that is read here: 45 us each."""
GAP_BYTES: Final = 16 << 10
"""Pages that are closer are read together."""
_MAGIC: Final = b"PAR1"
_FORMATS: Final = {1: "<i", 2: "<q", 4: "<f", 5: "<d"}
"""By physical type: INT32, INT64, FLOAT, DOUBLE."""
_BYTES: Final = 6
_TEXTS: Final = (0, 4)
"""UTF8 and ENUM among the converted types."""
_UNSIGNED: Final = {11: "<I", 12: "<I", 13: "<I", 14: "<Q"}
_SIGNED: Final = (15, 16, 17, 18)
_DATE: Final = 6
_TICKS: Final = {1: 10**3, 2: 10**6, 3: 10**9}
"""Ticks of a second: units of a logical timestamp."""
_TIMESTAMP: Final = 8
_EPOCH: Final = datetime.datetime(1970, 1, 1)
_DAYS_MAX: Final = 700_000
"""From the epoch: Python's years end at 1 and 9999."""
_INTEGER: Final = 10
_KNOWN_LOGICAL: Final = frozenset({1, 4, 5, 6, 7, 8, _INTEGER, 12, 13, 14, 15})
"""Of the union LogicalType: those whose parts `_logical` writes, or converted types say as well."""

Place = tuple[int, int]
"""Offset and length in a file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group. `element`: its entry in the footer's schema; `meta`: its ColumnMetaData."""

    name: str
    element: Mapping[int, Any]
    meta: Mapping[int, Any]
    column_index: Place
    offset_index: Place

    @property
    def start(self) -> int:
        """Where its dictionary begins, or its first page."""
        return int(self.meta.get(11) or self.meta[9])


@dataclass(frozen=True, slots=True)
class Pages:
    """Data pages of a chunk: first row and place of each; `rows` of all of them."""

    starts: tuple[int, ...]
    places: tuple[Place, ...]
    rows: int

    def end(self, number: int) -> int:
        return self.starts[number + 1] if number + 1 < len(self.starts) else self.rows

    def over(self, ranges: Ranges) -> list[int]:
        """The pages that have a row of them."""
        found: list[int] = []
        for start, end in ranges:
            first = bisect.bisect_right(self.starts, start) - 1
            last = bisect.bisect_left(self.starts, end)
            found += range(max(first, found[-1] + 1 if found else 0), last)
        return found


# ---- what the file says ----------------------------------------------------------------------------------------------


def chunks_of(footer: bytes) -> tuple[dict[str, Chunk], ...]:
    """The chunks of each row group that have both indexes, by name. Raises BadThriftError."""
    with thrift.expected():
        file = thrift.decode(footer)
        elements = dict(_top_leaves(file[2]))
        return tuple(dict(_chunks(group[1], elements)) for group in file[4])


def _top_leaves(schema: Sequence[dict[int, Any]]) -> Iterator[tuple[bytes, dict[int, Any]]]:
    """Elements below the root that are neither groups nor repeated."""
    at = 1
    while at < len(schema):
        element = schema[at]
        if not element.get(5) and element.get(3) in (0, 1) and _is_known(element):
            yield element[4], element
        left = 1
        while left:  # what lies below it
            left += (schema[at].get(5) or 0) - 1
            at += 1


def _is_known(element: Mapping[int, Any]) -> bool:
    """Its type can be written again."""
    logical = (element.get(10) or {}).keys()
    return logical <= _KNOWN_LOGICAL and (_INTEGER not in logical or 6 in element)


def _chunks(chunks: Sequence[dict[int, Any]], elements: Mapping[bytes, Any]) -> Iterator[tuple[str, Chunk]]:
    for chunk in chunks:
        meta = chunk.get(3)
        if meta is None or len(meta[3]) != 1 or meta[3][0] not in elements or not {4, 5, 6, 7} <= chunk.keys():
            continue
        name = meta[3][0].decode("utf-8", "replace")
        yield name, Chunk(name, elements[meta[3][0]], meta, (chunk[6], chunk[7]), (chunk[4], chunk[5]))


def pages_of(offset_index: bytes, rows: int) -> Pages:
    """Raises BadThriftError for what cannot be."""
    with thrift.expected():
        found = thrift.decode(offset_index)[1]
        pages = Pages(tuple(page[3] for page in found), tuple((page[1], page[2]) for page in found), rows)
        starts = pages.starts
        if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, [*starts[1:], rows], strict=True)):
            raise thrift.BadThriftError(f"pages of {rows} rows do not begin at {starts[:3]}...")
        return pages


def bounds_of(column_index: bytes, chunk: Chunk, pages: Pages) -> list[Bounds]:
    """Of each page. What a writer's values mean is only believed of types whose order is beyond doubt."""
    with thrift.expected():
        found = thrift.decode(column_index)
        count = len(pages.starts)
        if any(len(found[number]) != count for number in (1, 2, 3)):
            raise thrift.BadThriftError(f"the column index of {chunk.name!r} is not of {count} pages")
        nulls = found.get(5) or [None] * count
        made = []
        for number, (empty, low, high, null) in enumerate(zip(*(found[at] for at in (1, 2, 3)), nulls, strict=True)):
            rows = pages.end(number) - pages.starts[number]
            if empty:
                made.append(Bounds(None, None, rows, rows))
            else:
                least, greatest = _value(chunk, low, up=False), _value(chunk, high, up=True)
                made.append(Bounds(least, greatest, null, rows))
        return made


def _value(chunk: Chunk, raw: bytes, *, up: bool) -> Any:
    """None: not known. Python's moments are coarser than nanoseconds: `up` or down to the next one."""
    physical, converted = chunk.meta[1], chunk.element.get(6)
    logical = chunk.element.get(10) or {}
    if physical == _BYTES:
        return _text(raw) if converted in _TEXTS or 1 in logical else raw if converted is None and not logical else None
    form = _FORMATS.get(physical)
    if form is None or len(raw) != struct.calcsize(form):
        return None
    value = struct.unpack(_UNSIGNED.get(converted or 0, form), raw)[0]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if _TIMESTAMP in logical:
        return _moment(value, logical[_TIMESTAMP], up=up)
    if converted == _DATE:
        return _EPOCH.date() + datetime.timedelta(days=value) if abs(value) < _DAYS_MAX else None
    return value if converted in _UNSIGNED or converted in _SIGNED or (converted is None and not logical) else None


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # cut within a character
        return None


def _moment(value: int, logical: Mapping[int, Any], *, up: bool) -> datetime.datetime | None:
    ticks = next((_TICKS[unit] for unit in logical.get(2) or () if unit in _TICKS), None)
    if ticks is None or abs(value) > _DAYS_MAX * 86_400 * ticks:
        return None
    microseconds = -(-value * 10**6 // ticks) if up else value * 10**6 // ticks
    zone = datetime.UTC if logical.get(1) else None
    return _EPOCH.replace(tzinfo=zone) + datetime.timedelta(microseconds=microseconds)


# ---- which rows ------------------------------------------------------------------------------------------------------


def matching(
    known: Mapping[Path, tuple[Pages, Sequence[Bounds]]],
    may_match: Callable[[Callable[[Path], Bounds | None]], bool],
    rows: int,
) -> Ranges:
    """The rows that may match, by what is known of the pages of some columns."""
    cuts = sorted({0, rows, *(start for pages, _ in known.values() for start in pages.starts)})
    found: list[tuple[int, int]] = []
    for start, end in itertools.pairwise(cuts):

        def statistics(path: Path, start: int = start) -> Bounds | None:
            if path not in known:
                return None
            pages, bounds = known[path]
            return bounds[bisect.bisect_right(pages.starts, start) - 1]

        if may_match(statistics):
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
    return tuple(found)


# ---- a file of some pages --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some pages of a chunk, with its dictionary: `places` in the file, and the rows that they have."""

    chunk: Chunk
    places: tuple[Place, ...]
    rows: Ranges

    @property
    def size_bytes(self) -> int:
        return sum(length for _, length in self.places)


def excerpt(chunk: Chunk, pages: Pages, ranges: Ranges) -> Excerpt:
    """What is to be read of a chunk to have those rows."""
    numbers = pages.over(ranges)
    head = (chunk.start, pages.places[0][0] - chunk.start)
    places = ([head] if head[1] > 0 else []) + [pages.places[number] for number in numbers]
    rows: list[tuple[int, int]] = []
    for number in numbers:
        start, end = pages.starts[number], pages.end(number)
        if rows and rows[-1][1] == start:
            rows[-1] = rows[-1][0], end
        else:
            rows.append((start, end))
    return Excerpt(chunk, tuple(places), tuple(rows))


def together(places: Sequence[Place]) -> list[Place]:
    """The reads that bring all of them: what lies close together is read at once."""
    found: list[Place] = []
    for offset, length in sorted(set(places)):
        if found and offset <= found[-1][0] + found[-1][1] + GAP_BYTES:
            found[-1] = found[-1][0], max(found[-1][1], offset + length - found[-1][0])
        else:
            found.append((offset, length))
    return found


def footer_of(excerpts: Sequence[Excerpt], fields: Sequence[pa.Field]) -> bytes:
    """Of a file that has those excerpts, of the same rows, one after another behind its magic. `fields`: their Arrow types."""
    rows = sum(end - start for start, end in excerpts[0].rows)
    elements = [thrift.encoded({4: thrift.binary(b"schema"), 5: thrift.i32(len(excerpts))})]
    columns, at = [], len(_MAGIC)
    for each in excerpts:
        elements.append(_element(each.chunk.element))
        columns.append(thrift.encoded({2: thrift.i64(at), 3: _meta(each, rows, at)}))
        at += each.size_bytes
    group = thrift.encoded({1: thrift.listed(columns), 2: thrift.i64(at), 3: thrift.i64(rows)})
    arrow = base64.b64encode(pa.schema(fields).serialize().to_pybytes())
    known = thrift.encoded({1: thrift.binary(b"ARROW:schema"), 2: thrift.binary(arrow)})
    made = {1: thrift.i32(2), 2: thrift.listed(elements), 3: thrift.i64(rows)}
    made |= {4: thrift.listed([group]), 5: thrift.listed([known])}
    _, body = thrift.encoded(made)
    return _MAGIC + body + struct.pack("<I", len(body)) + _MAGIC


def _meta(each: Excerpt, rows: int, at: int) -> thrift.Typed:
    old = each.chunk.meta
    dictionary = each.chunk.start != old[9]
    fields = {
        1: thrift.i32(old[1]),
        2: thrift.listed([thrift.i32(one) for one in old[2]]),
        3: thrift.listed([thrift.binary(one) for one in old[3]]),
        4: thrift.i32(old[4]),
        5: thrift.i64(rows),
        6: thrift.i64(each.size_bytes),
        7: thrift.i64(each.size_bytes),
        9: thrift.i64(at + (each.places[0][1] if dictionary else 0)),
    }
    if dictionary:
        fields[11] = thrift.i64(at)
    return thrift.encoded(fields)


def _element(element: Mapping[int, Any]) -> thrift.Typed:
    """Logical types are written where no converted type says it."""
    fields = {number: thrift.i32(element[number]) for number in (1, 2, 3) if number in element}
    fields[4] = thrift.binary(element[4])
    fields |= {number: thrift.i32(element[number]) for number in (6, 7, 8) if number in element}
    if 10 in element and 6 not in element:
        fields[10] = _logical(element[10])
    return thrift.encoded(fields)


def _logical(value: Mapping[int, Any]) -> thrift.Typed:
    """A union of structs of structs, booleans and small numbers."""
    return thrift.encoded({number: _any(inner) for number, inner in sorted(value.items())})


def _any(value: Any) -> thrift.Typed:
    if isinstance(value, bool):
        return (1, b"") if value else (2, b"")
    return thrift.i32(value) if isinstance(value, int) else _logical(value)
