"""Parquet: a part is a row group; only the column chunks that are asked for are read, in coalesced ranges.

Statistics of row groups prune, and where a file has page indexes, those of pages: of a row group that a filter matches in part
only the pages that may match are read and decoded (`parquet_pages`).

Texts that are stored by dictionary are read as such and written out here: Arrow's decoder appends them value by value, which
was half of the time for four such columns of nineteen (117 ns a row; 87 this way).
"""

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tieredfs.errors import CorruptError
from tieredfs.volume.contract import Reading
from tieredfs.volume.through import SMALL_BYTES
from tieredfs_gateway.datasets.arrow_files import ByteCount, arrow_file, read_range
from tieredfs_gateway.datasets.filters import Bounds
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources import parquet_footers as footers
from tieredfs_gateway.datasets.sources import parquet_pages as pages
from tieredfs_gateway.datasets.sources.parquet_pages import Chunk, Excerpt, Place
from tieredfs_gateway.datasets.sources.protocol import FileIndex, Ranges
from tieredfs_gateway.datasets.sources.thrift_compact import BadThriftError
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

_TEXT_BYTES_LEAST: Final = 12
"""An offset, and a few characters: dictionary pages hide how often a text is repeated."""


FOOTER_BYTES: Final = 64 << 10
"""What is read from the end of a file at first."""


WORTH_SHARE: Final = 0.75
"""Of a row group's rows: where more may match, it is read whole."""
_PLAIN_BYTES: Final = 4
"""What a text takes at least where it is written out: its length. A column of fewer bytes per row is stored by dictionary."""
_TEXTS: Final = (pa.string(), pa.binary())
_TEXT_BYTES_MAX: Final = (1 << 31) - 1
"""Of one array, whose offsets have 32 bits."""
_OFFSETS_KEPT: Final = 1 << 17
_WIDTH_KEPT: Final = 64
"""Offsets of texts that are all so short, and not more, are counted once: 0.5 MiB for each width, at most eight of them."""
_MAGIC: Final = b"PAR1"
_END_BYTES: Final = 8
"""The length of the footer, and the magic."""
_SIGNATURE_BYTES: Final = 28
"""Behind a footer that is signed: nonce and tag of AES-GCM (Parquet Modular Encryption, "Plaintext footer mode")."""


class _Detail:
    """What is known of a file: its footer, and what only page indexes need of it, once they are needed."""

    def __init__(self, metadata: pq.FileMetaData, footer: bytes) -> None:
        """`footer`: as it is stored. Arrow, asked to write it, ends the process where it says that it is signed and is not."""
        self.metadata = metadata
        self._footer = footer
        self._lock = threading.Lock()
        self._chunks: tuple[dict[str, Chunk], ...] | None = None
        self._sizes: dict[int, dict[str, tuple[int, int]]] = {}
        self._leaves: dict[Path, int | None] = {}
        self._decodable: dict[int, tuple[bool, ...]] = {}
        schema = metadata.schema
        self._paths = [schema.column(number).path for number in range(metadata.num_columns)]

    def leaf(self, schema: pa.Schema, path: Path) -> int | None:
        """Which column of the file a path is: names do not say, for `a.b` is a column's and a field's. None: no plain one."""
        if path not in self._leaves:
            known = sum(_leaf_count(field.type) for field in schema) == self.metadata.num_columns
            self._leaves[path] = _leaf(schema, path) if known else None
        return self._leaves[path]

    def sizes(self, part: int) -> dict[str, tuple[int, int]]:
        """Stored and decoded bytes of a row group's column chunks, by their paths. Kept, for announcing an epoch asks for those of
        every row group: asked of Arrow each time, the first batch of a hundred files of ten came after 0.14 s, not 0.03."""
        found = self._sizes.get(part)
        if found is None:
            group = self.metadata.row_group(part)
            chunks = (group.column(number) for number in range(group.num_columns))
            sizes = [(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks]
            found = self._sizes[part] = dict(zip(self._paths, sizes, strict=True))
        return found

    def has_values(self, leaf: int, path: Path, part: int) -> bool:
        """Whether the statistics of a column may be asked for. Raises BadThriftError."""
        if leaf not in self._decodable:
            self._decodable[leaf] = footers.decodable(self.metadata, self._footer, leaf, path)
        return self._decodable[leaf][part]

    def repeated(self, schema: pa.Schema, part: int, names: Collection[str]) -> list[str]:
        """The columns of texts and bytes, not nested, that a row group stores by dictionary. Each looked up by its name: of fifty
        columns most are not asked for."""
        texts = [name for name in names if "." not in name and _field_type(schema, (name,)) in _TEXTS]
        if not texts:
            return texts
        least = _PLAIN_BYTES * self.metadata.row_group(part).num_rows
        sizes = self.sizes(part)
        return [name for name in texts if sizes[name][1] < least]

    def chunks(self, part: int) -> dict[str, Chunk]:
        """Those of a row group that have page indexes. Raises BadThriftError."""
        with self._lock:
            if self._chunks is None:
                self._chunks = self._parsed()
            return self._chunks[part]

    def _parsed(self) -> tuple[dict[str, Chunk], ...]:
        metadata = self.metadata
        groups, columns = metadata.num_row_groups, metadata.num_columns
        if groups * columns > pages.CHUNKS_MAX or not _has_indexes(metadata):
            nothing: tuple[dict[str, Chunk], ...] = ({},)
            return nothing * int(groups)
        return pages.chunks_of(self._footer)


def _has_indexes(metadata: pq.FileMetaData) -> bool:
    group = metadata.row_group(0) if metadata.num_row_groups else None
    return group is not None and any(group.column(number).has_column_index for number in range(group.num_columns))


class ParquetSource:
    """See `Source`, `HasPages`."""

    columnar = True

    def __init__(self, snapshot: Snapshot, count: ByteCount) -> None:
        self._snapshot = snapshot
        self._count = count
        self._lock = threading.Lock()
        self._under_way = 0

    def look(self, file: PinnedFile) -> FileIndex:
        with _translated(file):
            end = self._end(file)
            stored = _stored_bytes(end)
            with pq.ParquetFile(pa.BufferReader(end)) as opened:
                metadata = opened.metadata
                if stored == metadata.serialized_size + _SIGNATURE_BYTES:
                    raise CorruptError(f"{file.name}: not readable as Parquet: its columns are encrypted")
                _check_names(file, metadata.schema)
                footers.check(metadata, file.size_bytes)
                rows = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
                detail = _Detail(metadata, end[-_END_BYTES - stored : -_END_BYTES])
                return FileIndex(opened.schema_arrow.remove_metadata(), rows, detail, 9 * stored)

    def _end(self, file: PinnedFile) -> bytes:
        """Of the file, with its footer, if it has one."""
        with self._snapshot.reading(file) as reading:
            length = min(FOOTER_BYTES, file.size_bytes)
            end = bytes(read_range(reading, file.size_bytes - length, length, self._count))
            whole = _stored_bytes(end) + _END_BYTES
            if length < whole <= file.size_bytes:
                end = bytes(read_range(reading, file.size_bytes - whole, whole, self._count))
            return end

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        names = [".".join(path) for path in paths]
        planned = sum(size for size, _ in _chunks(index, part, names))
        there = {name.partition(".")[0] for name in names}
        repeated = index.detail.repeated(index.schema, part, there)
        with (
            self._decoding() as is_helped,
            _translated(file),
            self._snapshot.decoding(
                file, tuple(repeated), partial(self._opened, index.detail.metadata, repeated)
            ) as opened,
        ):
            found = opened.read(part, names, planned, is_helped=is_helped)
            table = _written_out(found, repeated)
        if table.num_rows != index.rows[part]:
            raise CorruptError(f"{file.name}: row group {part} has {table.num_rows} rows, not {index.rows[part]}")
        return table

    @contextmanager
    def _decoding(self) -> Iterator[bool]:
        """Whether Arrow's threads should help, each with a column: only while fewer row groups are decoded than there are cores.
        Beyond that they only take turns; a trainer's epoch took 6 % longer that way."""
        with self._lock:
            self._under_way += 1
            is_helped = self._under_way < pa.cpu_count()
        try:
            yield is_helped
        finally:
            with self._lock:
                self._under_way -= 1

    def may_narrow(self, index: FileIndex, part: int, filtering: Sequence[Path]) -> bool:
        """See `HasPages`."""
        try:
            return any(len(path) == 1 and path[0] in index.detail.chunks(part) for path in filtering)
        except BadThriftError:
            return True  # reading it says what is wrong

    def narrow(
        self,
        file: PinnedFile,
        index: FileIndex,
        part: int,
        filtering: Sequence[Path],
        wanted: Sequence[Path],
        may_match: Callable[[Callable[[Path], Bounds | None]], bool],
    ) -> Ranges | None:
        """See `HasPages`. None as well where some column has no pages of its own: lists, structs, old writers."""
        with _translated(file):
            chunks, rows = index.detail.chunks(part), index.rows[part]
            known = [path for path in filtering if path[0] in chunks and len(path) == 1]
            there = {name for name in index.schema.names if any(name == path[0] for path in wanted)}
            if not known or not there <= chunks.keys():
                return None
            with self._snapshot.reading(file) as reading:
                found = self._bounds(reading, [(path, chunks[path[0]]) for path in known], rows)
            ranges = pages.matching(found, may_match, rows)
            return ranges if sum(end - start for start, end in ranges) <= WORTH_SHARE * rows else None

    def _bounds(
        self, reading: Reading, known: Sequence[tuple[Path, Chunk]], rows: int
    ) -> dict[Path, tuple[pages.Pages, list[Bounds]]]:
        places = [place for _, chunk in known for place in (chunk.offset_index, chunk.column_index)]
        raw = self._pieces(reading, places)
        found = {}
        for path, chunk in known:
            of_chunk = pages.pages_of(bytes(raw[chunk.offset_index]), rows)
            found[path] = of_chunk, pages.bounds_of(bytes(raw[chunk.column_index]), chunk, of_chunk)
        return found

    def read_rows(
        self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path], ranges: Ranges
    ) -> pa.Table:
        """See `HasPages`."""
        with _translated(file), self._snapshot.reading(file) as reading:
            chunks = index.detail.chunks(part)
            names = dict.fromkeys(path[0] for path in paths if index.schema.get_field_index(path[0]) >= 0)
            wanted = [chunks[name] for name in names]
            rows = sum(end - start for start, end in ranges)
            if not wanted:
                return pa.table({"": pa.nulls(rows)}).select([""])
            raw = self._pieces(reading, [chunk.offset_index for chunk in wanted])
            excerpts = [
                pages.excerpt(chunk, pages.pages_of(bytes(raw[chunk.offset_index]), index.rows[part]), ranges)
                for chunk in wanted
            ]
            found = self._pieces(reading, [place for each in excerpts for place in each.places])
        alike: dict[Ranges, list[Excerpt]] = defaultdict(list)
        for each in excerpts:
            alike[each.rows].append(each)
        with _translated(file):
            columns: dict[str, pa.ChunkedArray] = {}
            for of_rows, group in alike.items():
                table = _decoded(group, [index.schema.field(each.chunk.name) for each in group], found)
                table = _cut(table, of_rows, ranges)
                columns |= dict(zip(table.column_names, table.columns, strict=True))
            return pa.table(columns)

    def _pieces(self, reading: Reading, places: Sequence[Place]) -> dict[Place, memoryview]:
        """Those parts of the file; close ones are read at once. Past the SSD a smaller read would bring its whole window, for
        decoders that come back for more; this does not."""
        held = []
        least = 0 if reading.descriptor is not None else min(SMALL_BYTES, reading.attributes.size_bytes)
        for first, wanted in pages.together(places):
            offset = min(first, max(0, reading.attributes.size_bytes - least))
            length = max(least, first + wanted - offset)
            buffer = read_range(reading, offset, length, self._count)
            if buffer.size < length:
                raise BadThriftError(f"{length} bytes at {offset} are not there")
            held.append((offset, memoryview(buffer).cast("B")))
        found = {}
        for offset, length in set(places):
            start, view = next(one for one in reversed(held) if one[0] <= offset)
            found[offset, length] = view[offset - start : offset - start + length]
        return found

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        rows, total = index.rows[part], 0
        for name in {path[0] for path in paths}:
            total += rows * _width(_field_type(index.schema, (name,)))
        texts = [".".join(path) for path in paths if not _width(_field_type(index.schema, path))]
        for _, unpacked in _chunks(index, part, texts) if texts else ():
            total += max(unpacked, rows * _TEXT_BYTES_LEAST)
        return total

    def is_glance(self, file: PinnedFile) -> bool:
        """See `HasStoredBytes`."""
        del file
        return True

    def stored_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        return sum(size for size, _ in _chunks(index, part, [".".join(path) for path in paths]))

    def bounds(self, index: FileIndex, part: int, path: Path) -> Bounds | None:
        leaf = index.detail.leaf(index.schema, path)
        try:
            if leaf is None or not index.detail.has_values(leaf, path, part):
                return None
        except BadThriftError:
            return None  # reading it says what is wrong
        chunk = index.detail.metadata.row_group(part).column(leaf)
        if not chunk.is_stats_set:
            return None
        found = chunk.statistics
        nulls = found.null_count if found.has_null_count else None
        try:
            least, greatest = (found.min, found.max) if found.has_min_max else (None, None)
        except (ValueError, OverflowError):  # moments that Python's do not hold, texts that are none
            least = greatest = None
        if any(isinstance(value, float) and math.isnan(value) for value in (least, greatest)):  # of old writers
            least = greatest = None
        return Bounds(least, greatest, nulls, index.rows[part])

    def _opened(self, metadata: pq.FileMetaData, repeated: Sequence[str], reading: Reading) -> "_Opened":
        return _Opened(reading, metadata, repeated, self._count)


class _Opened:
    """A file as Arrow decodes it. To open one of 50 columns takes 0.12 ms, where 65,536 rows of three are decoded in 1.7: so
    `Snapshot.decoding` keeps it.

    Of a file that is still coming everything is asked for at once, by threads of Arrow's. One that is on the SSD is read by the
    thread that decodes it: a trainer's epoch took 7 % longer where it waited for another one each time."""

    def __init__(self, reading: Reading, metadata: pq.FileMetaData, repeated: Sequence[str], count: ByteCount) -> None:
        """`repeated`: columns to read as dictionaries."""
        self._count = count
        self._native = arrow_file(reading, count, 0)
        self._is_unseen = isinstance(self._native, pa.OSFile)
        try:
            self._decoder = pq.ParquetFile(
                self._native,
                metadata=metadata,
                pre_buffer=not self._is_unseen,
                read_dictionary=list(repeated),
            )
        except BaseException:
            self._native.close()
            raise

    def read(self, part: int, names: Sequence[str], planned: int, *, is_helped: bool) -> pa.Table:
        """`planned`: bytes that will be read; C++ reads a whole file unseen. `is_helped`: by Arrow's threads."""
        if self._is_unseen:
            self._count.add(planned)
        return self._decoder.read_row_group(part, columns=list(names), use_threads=is_helped)

    def close(self) -> None:
        self._decoder.close()
        self._native.close()


def _stored_bytes(end: bytes) -> int:
    """Of the footer."""
    return int.from_bytes(end[-_END_BYTES:-4], "little")


def _written_out(table: pa.Table, repeated: Collection[str]) -> pa.Table:
    """Dictionaries as the texts that they stand for. Put together once: `set_column` makes a table of all columns each time."""
    if not repeated:
        return table
    columns, fields = table.columns, list(table.schema)
    for at, column in enumerate(columns):
        if fields[at].name in repeated and pa.types.is_dictionary(column.type):
            kind = column.type.value_type
            columns[at] = pa.chunked_array([piece for chunk in column.chunks for piece in _texts(chunk)], kind)
            fields[at] = pa.field(fields[at].name, kind)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _texts(chunk: pa.DictionaryArray) -> Iterator[pa.Array]:
    """In pieces that fit an array, however long each text is. Where all texts of the dictionary are equally long and none is
    missing, they are taken as fixed-size bytes, and offsets are counted: 2.7 ns a text of three bytes, 0.5 of two; 4.9 where each
    one's length is looked at."""
    texts, indices = chunk.dictionary, chunk.indices
    first, shortest, longest = _extent(texts)
    is_even = longest and shortest == longest and not texts.null_count and not indices.null_count
    step = max(1, _TEXT_BYTES_MAX // max(1, longest))
    for start in range(0, len(chunk), step):
        if not is_even:
            yield chunk.slice(start, step).dictionary_decode()
            continue
        fixed = pa.Array.from_buffers(pa.binary(longest), len(texts), [None, texts.buffers()[2].slice(first)])
        taken = fixed.take(indices.slice(start, step))
        yield pa.Array.from_buffers(texts.type, len(taken), [None, _offsets(longest, len(taken)), taken.buffers()[1]])


def _extent(texts: pa.Array) -> tuple[int, int, int]:
    """Where the first one begins, bytes of the shortest and of the longest. Read here: of Arrow these were five calls,
    each of which lets go of the GIL and waits for it again."""
    if not len(texts):
        return 0, 0, 0
    ends = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    return int(ends[0]), int(lengths.min()), int(lengths.max())


def _offsets(width: int, count: int) -> pa.Buffer:
    """Of so many texts of that width."""
    if count <= _OFFSETS_KEPT and width <= _WIDTH_KEPT:
        return _kept_offsets(width).slice(0, 4 * (count + 1))
    return pa.py_buffer(np.arange(count + 1, dtype=np.int32) * np.int32(width))


@functools.lru_cache(maxsize=8)
def _kept_offsets(width: int) -> pa.Buffer:
    return pa.py_buffer(np.arange(_OFFSETS_KEPT + 1, dtype=np.int32) * np.int32(width))


def _decoded(excerpts: Sequence[Excerpt], fields: Sequence[pa.Field], found: dict[Place, memoryview]) -> pa.Table:
    """Excerpts of the same rows, decoded as a file of their own."""
    footer = pa.BufferReader(pages.footer_of(excerpts, fields))
    whole = b"".join([_MAGIC, *(found[place] for each in excerpts for place in each.places)])
    rows = sum(end - start for start, end in excerpts[0].rows)
    with pq.ParquetFile(pa.BufferReader(whole), metadata=pq.read_metadata(footer)) as opened:
        table = opened.read_row_group(0, use_threads=True)
    if table.num_rows != rows:
        raise BadThriftError(f"pages of {rows} rows have {table.num_rows}")
    return table


def _cut(table: pa.Table, has: Ranges, wanted: Ranges) -> pa.Table:
    """The rows `wanted` of a table that has more."""
    if has == wanted:
        return table
    pieces, offsets, at = [], [], 0
    for start, end in has:
        offsets.append((start, end, at))
        at += end - start
    for start, end in wanted:
        first, _, offset = next(one for one in offsets if one[0] <= start and end <= one[1])
        pieces.append(table.slice(offset + start - first, end - start))
    return pa.concat_tables(pieces) if pieces else table.slice(0, 0)


def _chunks(index: FileIndex, part: int, names: Sequence[str]) -> Collection[tuple[int, int]]:
    """Stored and decoded bytes of the column chunks that have those names, or lie below them."""
    sizes: dict[str, tuple[int, int]] = index.detail.sizes(part)
    found = {}
    for name in names:
        if name in sizes:
            found[name] = sizes[name]
        else:
            found.update((path, size) for path, size in sizes.items() if path.startswith(name + "."))
    return found.values()


def _leaf(schema: pa.Schema, path: Path) -> int | None:
    at, fields = 0, list(schema)
    for part in path:
        number = next((number for number, field in enumerate(fields) if field.name == part), None)
        if number is None:
            return None
        at += sum(_leaf_count(field.type) for field in fields[:number])
        kind = fields[number].type
        fields = list(kind) if pa.types.is_struct(kind) else []
    return at if _leaf_count(kind) == 1 and not pa.types.is_nested(kind) else None


def _leaf_count(kind: pa.DataType) -> int:
    """How many columns of a file a column of that type is."""
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    if pa.types.is_dictionary(kind) or not pa.types.is_nested(kind):
        return 1
    return sum(_leaf_count(kind.field(number).type) for number in range(kind.num_fields))


def _check_names(file: PinnedFile, schema: pq.ParquetSchema) -> None:
    """What asks for a column's name later does not expect that it is no text."""
    try:
        for number in range(len(schema)):
            schema.column(number).path  # noqa: B018 - decoded when it is asked for
    except UnicodeDecodeError as error:
        raise CorruptError(
            f"{file.name}: not readable as Parquet: the name of a column is not UTF-8: {error}"
        ) from error


def _width(kind: pa.DataType) -> int:
    """Bytes of a value; 0 where that varies."""
    if pa.types.is_boolean(kind):
        return 1
    try:
        return int(kind.byte_width)
    except ValueError:
        return 0


def _field_type(schema: pa.Schema, path: Path) -> pa.DataType:
    at = schema.get_field_index(path[0])
    return schema.field(at).type if at >= 0 else pa.null()


@contextmanager
def _translated(file: PinnedFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, BadThriftError) as error:
        raise CorruptError(f"{file.name}: not readable as Parquet: {error}") from error
