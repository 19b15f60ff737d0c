"""WebDataset shards: a sample is the members of a tar archive that share a key; a row is a sample.

The key is the path up to the first dot of the last name, the rest says what a member is: `train/0001.seg.png` is the field
`seg.png` of the sample `train/0001`. Columns are `__key__` and the fields: `txt` and `text` are texts, `cls` and `index`
integers, `json` a struct of what the documents of the shard have, anything else bytes. A field that a sample does not have
is null.

`look` walks the headers of a shard, and reads its JSON documents: a column needs one type. Payloads are read when they are asked
for, each with one read straight into the column, so any row costs its own bytes only.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from tieredfs.errors import CorruptError, TooLargeError
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.archives import Archive, Archives
from tieredfs_gateway.datasets.sources.jsonl import lost_integer
from tieredfs_gateway.datasets.sources.protocol import PART_BYTES, FileIndex
from tieredfs_gateway.datasets.sources.tar_headers import BLOCK, BadTarError, Member, members
from tieredfs_gateway.datasets.sources.text import compression_of, has_large_numbers, unreadable
from tieredfs_gateway.datasets.versions import PinnedFile

KEY: Final = "__key__"
_TEXTS: Final = frozenset({"txt", "text", "transcript"})
_INTEGERS: Final = frozenset({"cls", "cls2", "index"})
_INTEGER_BYTES_MAX: Final = 32
_LOOK_BYTES: Final = 64 << 10
COLUMN_BYTES_MAX: Final = (1 << 31) - 1
"""What the offsets of a binary column reach."""
PART_SAMPLES_MAX: Final = 16_384


@dataclass(frozen=True, slots=True)
class _Shard:
    """`keys` of all samples; offsets and lengths of each field, -1 where there is none; the first sample of each part; `known`
    columns: integers, which were read with the headers."""

    keys: pa.StringArray
    places: dict[str, tuple[Indices, Indices]]
    starts: tuple[int, ...]
    known: dict[str, pa.Int64Array]

    @property
    def held_bytes(self) -> int:
        columns = (self.keys, *self.known.values())
        return 4096 + sum(int(column.nbytes) for column in columns) + 16 * len(self.keys) * len(self.places)


class TarSource:
    """See `Source`, `HasRows`, `HasOffsets`."""

    columnar = True

    def __init__(self, archives: Archives) -> None:
        self._archives = archives

    def look(self, file: PinnedFile) -> FileIndex:
        with self._archives.opened(file) as archive:
            try:
                shard = _looked_into(file, archive)
            except BadTarError as problem:
                raise CorruptError(f"{file.name}: not readable as tar: {problem}") from problem
            fields = [pa.field(KEY, pa.string())]
            for name, (offsets, lengths) in shard.places.items():
                kind = _kind(name) or _documents_type(file, archive, name, offsets, lengths)
                fields.append(pa.field(name, kind))
        return FileIndex(pa.schema(fields), counts(shard.starts, len(shard.keys)), shard, shard.held_bytes)

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        return self.take(file, index, part, np.arange(index.rows[part], dtype=np.int64), paths)

    def take(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, paths: Sequence[Path]) -> pa.Table:
        shard: _Shard = index.detail
        rows = rows + shard.starts[part]
        wanted = dict.fromkeys(path[0] for path in paths)
        columns: dict[str, pa.Array] = {}
        indices = pa.array(rows)
        with contextlib.ExitStack() as stack:
            archive: Archive | None = None
            for name in wanted:
                if name == KEY:
                    columns[name] = shard.keys.take(indices)
                elif name in shard.known:
                    columns[name] = shard.known[name].take(indices)
                elif name in shard.places:
                    archive = archive or stack.enter_context(self._archives.opened(file))
                    offsets, lengths = shard.places[name]
                    payloads = read_payloads(file, archive.read_into, offsets[rows], lengths[rows])
                    columns[name] = _decoded(file, name, payloads, index.schema.field(name).type)
        if not columns:
            columns[KEY] = pa.nulls(len(rows), pa.string())
        return pa.table(columns)

    def payload_lengths(self, index: FileIndex, part: int, rows: Indices, path: Path) -> Indices | None:
        shard: _Shard = index.detail
        if len(path) > 1 or path[0] not in shard.places or _kind(path[0]) != pa.binary():
            return None
        return shard.places[path[0]][1][rows + shard.starts[part]]

    def payload_offsets(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path
    ) -> Indices | None:
        if compression_of(file.path) is not None:
            return None
        shard: _Shard = index.detail
        return shard.places[path[0]][0][rows + shard.starts[part]]

    def held(self, index: FileIndex, path: Path) -> pa.Array | None:
        shard: _Shard = index.detail
        if len(path) > 1:
            return None
        return shard.keys if path[0] == KEY else shard.known.get(path[0])

    def fill(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path, targets: Sequence[memoryview]
    ) -> None:
        shard: _Shard = index.detail
        offsets = shard.places[path[0]][0][rows + shard.starts[part]]
        if not all(targets):  # nulls have no offset
            offsets, targets = offsets[[bool(target) for target in targets]], [target for target in targets if target]
        with self._archives.opened(file) as archive:
            done = archive.read_each(offsets.tolist(), targets)
        if done < len(targets):
            raise CorruptError(f"{file.name}: {len(targets[done])} bytes at {offsets[done]} are not there")

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        shard: _Shard = index.detail
        start = shard.starts[part]
        end = start + index.rows[part]
        total = 32 * (end - start)
        for name in {path[0] for path in paths} & shard.places.keys():
            total += int(np.maximum(shard.places[name][1][start:end], 0).sum())
        return total


def _buffered(archive: Archive) -> Callable[[int, int], bytes]:
    """Headers of small members lie close together: one read brings many."""
    held_at, held = 0, b""

    def read(offset: int, length: int) -> bytes:
        nonlocal held_at, held
        if length > BLOCK:
            return archive.read(offset, length)
        if not held_at <= offset <= held_at + len(held) - length:
            near = bool(held) and offset < held_at + len(held) + _LOOK_BYTES
            held_at, held = offset, archive.read(offset, _LOOK_BYTES if near or not held else BLOCK)
        return held[offset - held_at : offset - held_at + length]

    return read


def _looked_into(file: PinnedFile, archive: Archive) -> _Shard:
    """Integers are read with the headers, which lie beside them: one by one they would cost half as much as pictures of 100 KB
    (4,000 of each: 12 of 64 ms). Where one is none, whoever asks for the column is told so."""
    read = _buffered(archive)
    found: list[Member] = []
    small: dict[int, bytes] = {}
    for member in members(read, archive.size_bytes):
        found.append(member)
        if member.size <= _INTEGER_BYTES_MAX and _kind(_split(member.name)[1]) == pa.int64():
            small[member.offset] = read(member.offset, member.size)
    keys, places, starts = _grouped(found)
    known = {}
    for field, (offsets, lengths) in places.items():
        if _kind(field) == pa.int64() and lengths.max() <= _INTEGER_BYTES_MAX:
            payloads = pa.array([small.get(offset) for offset in offsets.tolist()], pa.binary())
            with contextlib.suppress(CorruptError):
                known[field] = _decoded(file, field, payloads, pa.int64())
    names = pa.array([_text(key) for key in keys], pa.string())
    if isinstance(names, pa.ChunkedArray):
        raise TooLargeError(f"{file.name}: the keys of its {len(keys)} samples are more than {COLUMN_BYTES_MAX} bytes")
    return _Shard(names, places, starts, known)


def _split(name: bytes) -> tuple[bytes, str]:
    """The key and the field; an empty one: it is hidden, or without a field."""
    directory, slash, last = name.rpartition(b"/")
    stem, dot, extension = last.partition(b".")
    return (directory + slash + stem, _text(extension.lower())) if stem and dot else (b"", "")


def _grouped(found: Sequence[Member]) -> tuple[list[bytes], dict[str, tuple[Indices, Indices]], tuple[int, ...]]:
    """Members that follow each other with one key are a sample. The fields of `_Shard`."""
    keys: list[bytes] = []
    sizes: list[int] = []
    fields: dict[str, dict[int, Member]] = {}
    for member in found:
        key, field = _split(member.name)
        if not key:
            continue
        if not keys or keys[-1] != key or len(keys) - 1 in fields.get(field, ()):
            keys.append(key)
            sizes.append(0)
        fields.setdefault(field, {})[len(keys) - 1] = member
        sizes[-1] += member.size
    places = {}
    for field, by_sample in fields.items():
        offsets, lengths = np.full(len(keys), -1, np.int64), np.full(len(keys), -1, np.int64)
        for sample, member in by_sample.items():
            offsets[sample], lengths[sample] = member.offset, member.size
        places[field] = offsets, lengths
    return keys, places, cut(sizes)


def cut(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where parts of about `PART_BYTES` begin."""
    starts: list[int] = []
    held = count = 0
    for at, size in enumerate(sizes):
        if not starts or held + size > PART_BYTES or count >= PART_SAMPLES_MAX:
            starts.append(at)
            held = count = 0
        held, count = held + size, count + 1
    return tuple(starts)


def counts(starts: Sequence[int], total: int) -> tuple[int, ...]:
    """How many lie in each part: none in no part, when there are none."""
    return tuple(end - start for start, end in itertools.pairwise([*starts, total]))


def read_payloads(
    file: PinnedFile, read_into: Callable[[int, memoryview], int], offsets: Indices, lengths: Indices
) -> pa.BinaryArray:
    """A column of the bytes at those places; null where the length is negative. Raises CorruptError, TooLargeError."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.maximum(lengths, 0), out=ends[1:])
    total = int(ends[-1])
    if total > COLUMN_BYTES_MAX:
        raise TooLargeError(
            f"{file.name}: {len(lengths)} rows of one column have {total} bytes; {COLUMN_BYTES_MAX} fit"
        )
    data = pa.allocate_buffer(total)
    view = memoryview(data).cast("B") if total else memoryview(b"")
    for at, offset, length in zip(ends.tolist(), offsets.tolist(), lengths.tolist(), strict=False):
        if length > 0 and read_into(offset, view[at : at + length]) != length:
            raise CorruptError(f"{file.name}: it is shorter than it was: {length} bytes at {offset} are not there")
    missing = lengths < 0
    validity = pa.array(~missing).buffers()[1] if missing.any() else None
    buffers = [validity, pa.py_buffer(ends.astype(np.int32)), data]
    return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers)


# ---- what fields mean ------------------------------------------------------------------------------------------------


def _kind(field: str) -> pa.DataType | None:
    """By the last part of the extension. None: the documents say."""
    last = field.rpartition(".")[2]
    if last in _TEXTS:
        return pa.string()
    if last in _INTEGERS:
        return pa.int64()
    return None if last == "json" else pa.binary()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _decoded(file: PinnedFile, field: str, payloads: pa.BinaryArray, kind: pa.DataType) -> pa.Array:
    if kind == pa.binary():
        return payloads
    with unreadable(file, f"field {field!r}"):
        if kind == pa.string():
            return payloads.cast(pa.string())
        if kind == pa.int64():
            return pa.compute.utf8_trim_whitespace(payloads.cast(pa.string())).cast(pa.int64())
        return _documents(payloads, kind)


def _documents_type(file: PinnedFile, archive: Archive, field: str, offsets: Indices, lengths: Indices) -> pa.DataType:
    payloads = read_payloads(file, archive.read_into, offsets, lengths)
    with unreadable(file, f"field {field!r}"):
        return _documents(payloads, None).type


def _documents(payloads: pa.BinaryArray, kind: pa.DataType | None) -> pa.Array:
    """JSON documents as structs; text where they are not one object each, have no fields or no common type, or integers that no
    number of 64 bits holds."""
    if kind == pa.string():
        return payloads.cast(pa.string())
    there = [document.as_py() for document in payloads.drop_null()]
    if not there:
        return pa.nulls(len(payloads), kind or pa.null())
    lines = b"".join(document.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n" for document in there)
    schema = None if kind is None else pa.schema(list(kind))
    options = pa.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if kind is None else "error"
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(lines), reading, options)
    except pa.ArrowInvalid:
        if kind is None:
            return payloads.cast(pa.string())
        raise
    is_one_each = len(table) == len(there) and all(document.strip() for document in there)
    if kind is None and not (is_one_each and table.column_names and _keep_digits(table, there)):
        return payloads.cast(pa.string())
    found = pa.StructArray.from_arrays(
        [column.combine_chunks() for column in table.columns],
        fields=[field.with_nullable(True) for field in table.schema],
    )
    if payloads.null_count:
        places = np.cumsum(~np.asarray(payloads.is_null())) - 1
        indices = pa.array(places, mask=np.asarray(payloads.is_null()))
        found = found.take(indices)
    return found


def _keep_digits(table: pa.Table, documents: Sequence[bytes]) -> bool:
    """Whether the table has every integer of theirs as it is."""
    return not any(map(has_large_numbers, table.columns)) or all(lost_integer(each) is None for each in documents)
