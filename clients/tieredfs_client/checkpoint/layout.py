"""The files of a checkpoint: safetensors for the tensors, one JSON manifest for all the rest. `FORMAT.md`, "Checkpoints".

A data file is plain safetensors: the length of the header, the header, the tensors without holes. Tensors whose length is a
multiple of 64 come first, so each of them begins at a multiple of 64 in the file; the others follow in falling order of item size,
so each is aligned to its items. Names in it are for other tools; the manifest finds bytes by file and range.

A file of packed tensors (`codec`) is safetensors, too, but their lengths are known only when they are written: room is left for the
longest header that there can be, and spaces fill what it does not need. Entries are `U8` and named so that no other
tool takes them for what they stand for.

The manifest carries a CRC32C of itself, of every `PIECE_BYTES` of every tensor as it is stored, and a 128-bit content hash per
tensor, by which unchanged tensors are recognised, packed or not. Names of tensors are JSON strings and never become paths;
names of files in a manifest are checked to be plain ones. Pure.
"""

import base64
import binascii
import itertools
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

import google_crc32c

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs_client.checkpoint.codec import CODEC, WIDTHS
from tieredfs_client.checkpoint.dtypes import in_safetensors
from tieredfs_client.checkpoint.memory import Origin
from tieredfs_client.checkpoint.tree import Node

VERSION: Final = 2
"""With packed tensors. A manifest without any is of version 1, as before there were some: older readers read it."""
MANIFEST_NAME: Final = "manifest.json"
PIECE_BYTES: Final = 4 << 20
"""What has a checksum of its own, hence the least that a verified load of a slice reads. At 4 MiB, 1 TiB has 262144 of them
(1.4 MB in the manifest), and the GIL is given up once per 200 us of checksumming, not once per 10."""
PROBE_BYTES: Final = 64 << 10
"""The start of a tensor whose checksum tells, cheaply, that a tensor has surely changed."""
ALIGNMENT_BYTES: Final = 64
FILE_BYTES_MAX: Final = 4 << 30
FILE_ITEMS_MAX: Final = 100_000
HEADER_BYTES_MAX: Final = 100_000_000
"""The limit of the safetensors library itself."""

_FILE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,99}\.safetensors", re.ASCII)
_PREFIX: Final = re.compile(
    rb'\{"format":"tieredfs-checkpoint","version":([1-9][0-9]{0,8}),"crc32c":"([0-9a-f]{8})","body":'
)
_SUFFIX: Final = b"}\n"
_RESERVED: Final = "__metadata__"
_ABOUT_DATA: Final = {"format": "pt"}
PACKED_SUFFIX: Final = ":packed"
_PACKED_NOTE: Final = "compressed; `tieredfs ckpt export` writes plain safetensors, FORMAT.md says how to read this"

T = TypeVar("T")
_string: Final = json.encoder.encode_basestring_ascii


# ---- data files ------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A tensor that is to go into a file. A tuple, as all that there is one of per rank and tensor: a frozen dataclass of six
    fields is made in 1.1 us, a tuple in 0.27 us."""

    name: str
    dtype: str
    item_bytes: int
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """`offsets[i]` is where item i (as given) begins in the file; `header` is its first bytes."""

    header: bytes
    offsets: tuple[int, ...]
    size_bytes: int


def lay_out(items: Sequence[Item]) -> FileLayout:
    """One data file."""
    order, starts, total = _placed([item.size_bytes for item in items], [item.item_bytes for item in items])
    header = _data_header(items, order, starts, 0)
    return FileLayout(header, tuple([len(header) + start for start in starts]), len(header) + total)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of tensors before anybody has written down what they are called: columns, one row each."""

    sizes: Sequence[int]
    item_bytes: Sequence[int]
    rooms: Sequence[int]
    """The longest that each one's entry in a header can be; see `entry_room`."""

    def of(self, rows: Sequence[int]) -> "Outline":
        return Outline(*[[column[row] for row in rows] for column in (self.sizes, self.item_bytes, self.rooms)])


@dataclass(frozen=True, slots=True)
class Placed:
    """Where tensors go, behind a header that is not written yet; `offsets` as those of `FileLayout`."""

    room_bytes: int
    offsets: Sequence[int]
    size_bytes: int


def entry_room(item: Item, *, sharded: bool) -> int:
    """The most that the entry of a tensor, or of any piece of it, takes in a header; without places in the file."""
    name = item.name.encode("utf-8", "backslashreplace").decode()
    box = sum(2 * len(str(length)) + 2 for length in item.shape) + 1 if sharded else 0
    return len(_string(name)) + box + len(_entry_of(item)) + len(',:{,"data_offsets":[,]}')


def lay_out_unnamed(outline: Outline) -> Placed:
    """As `lay_out`, with room for the longest header that there can be: bytes can be written before it."""
    _, starts, total = _placed(outline.sizes, outline.item_bytes)
    count = len(outline.sizes)
    places = 2 * len(str(total)) + len(f"#{4 * count + 4}")  # repeated names get a number
    room = len(_header(_ABOUT_DATA, [], [], 0)) + sum(outline.rooms) + count * places
    room += -room % ALIGNMENT_BYTES
    return Placed(room, [room + start for start in starts], room + total)


def data_header(items: Sequence[Item], room_bytes: int) -> bytes:
    """The header of a file whose tensors were placed."""
    order, starts, _ = _placed([item.size_bytes for item in items], [item.item_bytes for item in items])
    header = _data_header(items, order, starts, room_bytes)
    assert len(header) == room_bytes, "there is room for the longest"
    return header


def _data_header(items: Sequence[Item], order: Sequence[int], starts: Sequence[int], room_bytes: int) -> bytes:
    ordered = [items[index] for index in order]
    spans = [(starts[index], starts[index] + items[index].size_bytes) for index in order]
    return _header(_ABOUT_DATA, ordered, spans, room_bytes)


def _placed(sizes: Sequence[int], item_bytes: Sequence[int]) -> tuple[Sequence[int], Sequence[int], int]:
    """In which order tensors lie in a file, where each begins behind the header, and the length of all."""
    odd = [index for index, size in enumerate(sizes) if size % ALIGNMENT_BYTES]
    if not odd:
        *starts, total = itertools.accumulate(sizes, initial=0)
        return range(len(sizes)), starts, total
    order = [index for index, size in enumerate(sizes) if not size % ALIGNMENT_BYTES]
    order += sorted(odd, key=lambda index: -item_bytes[index])
    *ends, total = itertools.accumulate([sizes[index] for index in order], initial=0)
    starts = [0] * len(sizes)
    for index, start in zip(order, ends, strict=True):
        starts[index] = start
    return order, starts, total


def _header(
    about: Mapping[str, str], items: Sequence[Item], spans: Sequence[tuple[int, int]], room_bytes: int
) -> bytes:
    """Filled up to `room_bytes`, if it is shorter. `spans`: where each item begins and ends, behind the header.

    JSON by the piece: types and shapes are few, and an entry takes 1 us instead of 3.
    """
    kinds: dict[tuple[object, ...], str] = {}
    texts = [f"{{{_string(_RESERVED)}:{_json(about)}"]
    for name, item, (start, end) in zip(_free_names([item.name for item in items]), items, spans, strict=True):
        kind = kinds.get(item[1:4])
        if kind is None:
            kind = kinds[item[1:4]] = _entry_of(item)
        texts.append(f'{_string(name)}:{{{kind},"data_offsets":[{start},{end}]}}')
    text = ",".join(texts).encode() + b"}"
    text = text.ljust(room_bytes - 8)
    text += b" " * (-(len(text) + 8) % ALIGNMENT_BYTES)
    assert len(text) <= HEADER_BYTES_MAX
    return struct.pack("<Q", len(text)) + text


def _entry_of(item: Item) -> str:
    """Its type and shape."""
    known = in_safetensors(item.dtype)
    shape = item.shape if known else (*item.shape, item.item_bytes)
    return _json({"dtype": item.dtype if known else "U8", "shape": shape})[1:-1]


def packed_item(item: Item, stored_bytes: int) -> Item:
    """What a tensor is in a file in which it is packed."""
    return Item(item.name + PACKED_SUFFIX, "U8", 1, (stored_bytes,), stored_bytes)


def packed_header(items: Sequence[Item], room_bytes: int) -> bytes:
    """The header of a file of packed items, which follow one another in this order."""
    at = 0
    spans = []
    for item in items:
        spans.append((at, at + item.size_bytes))
        at += item.size_bytes
    header = _header(_about_packed(), items, spans, room_bytes)
    assert len(header) == room_bytes, "there is room for the longest"
    return header


def packed_room(items: Sequence[Item]) -> int:
    """How long the header of these items may get, each of them at most as long as it is now."""
    total = sum(item.size_bytes for item in items)
    return len(_header(_about_packed(), items, [(total, total)] * len(items), 0))


def _about_packed() -> dict[str, str]:
    return {"format": "pt", "tieredfs": _PACKED_NOTE}


def _free_names(names: Sequence[str]) -> list[str]:
    """As the items are called in the header: each differently."""
    if _RESERVED not in names and all(map(str.isascii, names)) and len(set(names)) == len(names):
        return list(names)
    taken: set[str] = {_RESERVED}
    repeats: dict[str, int] = {}  # how often each was asked for; thousands of ranks may have the same one
    found = []
    for asked in names:
        name = wanted = asked.encode("utf-8", "backslashreplace").decode()  # other tools refuse lone surrogates
        while wanted in taken:
            repeats[name] = repeats.get(name, 1) + 1
            wanted = f"{name}#{repeats[name]}"
        taken.add(wanted)
        found.append(wanted)
    return found


def split_into_files(
    sizes: Sequence[int], limit_bytes: int = FILE_BYTES_MAX, items_max: int = FILE_ITEMS_MAX
) -> list[range]:
    """Consecutive items per file: up to `limit_bytes` (or one item that is larger) and `items_max` each."""
    groups: list[range] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and (total + size > limit_bytes or index - start >= items_max):
            groups.append(range(start, index))
            start, total = index, 0
        total += size
    if start < len(sizes):
        groups.append(range(start, len(sizes)))
    return groups


# ---- the manifest ----------------------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """How a blob is packed: each of its pieces by itself, one after another. `ends[i]`: where piece i ends, from the blob's
    offset; a piece of its plain length is stored as it was."""

    width: int
    ends: tuple[int, ...]

    def span(self, piece: int) -> tuple[int, int]:
        """Where a piece begins and ends."""
        return (self.ends[piece - 1] if piece else 0), self.ends[piece]


class Blob(NamedTuple):
    """The bytes of one stored piece of a tensor: where they begin in a file, their content hash and checksums."""

    file: int
    offset: int
    size_bytes: int
    """Of the content, whatever it takes in the file."""
    content: str
    """Hash of the content, 32 hex digits."""
    probe: int
    """CRC32C of the first `PROBE_BYTES` of the content."""
    crcs: tuple[int, ...]
    """CRC32C of each `PIECE_BYTES` of the content (the last may be short) as it is stored."""
    packed: Packed | None = None

    @property
    def stored_bytes(self) -> int:
        """In the file."""
        if self.packed is None:
            return self.size_bytes
        return self.packed.ends[-1] if self.packed.ends else 0


class StoredShard(NamedTuple):
    """Where a piece lies in its tensor; `blob` is an index."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    blob: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A whole tensor (one shard at zero) or one that ranks held in pieces."""

    key: str
    origin: Origin
    dtype: str
    item_bytes: int
    shape: tuple[int, ...]
    sharded: bool
    shards: tuple[StoredShard, ...]

    @property
    def size_bytes(self) -> int:
        size = self.item_bytes
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`reused`: made of blocks of earlier checkpoints, without moving a byte."""

    name: str
    size_bytes: int
    reused: bool


class RankRecord(NamedTuple):
    """What one rank did. `tree`: index of its tree."""

    rank: int
    tree: int
    written_bytes: int
    reused_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class About:
    """What a manifest says of the save that made it."""

    step: int
    attempt: str
    world_size: int
    created_ns: int
    seconds: float
    metadata: Mapping[str, object]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Manifest(About):
    """Everything about a checkpoint but the bytes of its tensors."""

    trees: tuple[Node, ...]
    tensors: tuple[StoredTensor, ...]
    blobs: tuple[Blob, ...]
    files: tuple[StoredFile, ...]
    ranks: tuple[RankRecord, ...]

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)

    @property
    def stored_bytes(self) -> int:
        """What the tensors take in the files."""
        return sum(blob.stored_bytes for blob in self.blobs)

    @property
    def written_bytes(self) -> int:
        return sum(record.written_bytes for record in self.ranks)

    @property
    def new_bytes(self) -> int:
        """What was put into files for it; the rest are blocks of earlier checkpoints."""
        return sum(blob.stored_bytes for blob in self.blobs if not self.files[blob.file].reused)

    def tree_of(self, rank: int) -> Node:
        """That of the rank that had this number when it was saved; of rank 0 for a rank that was not there."""
        return self.trees[self.ranks[rank if rank < len(self.ranks) else 0].tree]


@dataclass(frozen=True, slots=True)
class Contents:
    """The rest of a manifest: what is one per rank and tensor. But for files, rows of JSON, of blobs several in each text.
    `packed`: whether any of the blobs is."""

    trees: Sequence[str]
    tensors: str
    blobs: Sequence[str]
    packed: bool
    files: Sequence[StoredFile]
    ranks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Tables:
    """Contents, encoded, and of which version they make a manifest."""

    version: int
    data: bytes


def encode_manifest(manifest: Manifest) -> bytes:
    """One JSON document, which any tool can read."""
    trees = [_json(tree) for tree in manifest.trees]
    packed = any(blob.packed is not None for blob in manifest.blobs)
    ranks = [rank_row(*each[:2], rank_text(*each[2:])) for each in manifest.ranks]
    rows = tensor_rows(manifest.tensors), [blob_rows(manifest.blobs)], packed, manifest.files, ranks
    return encode_document(manifest, encode_tables(Contents(trees, *rows)))


def encode_document(about: About, tables: Tables) -> bytes:
    """A whole manifest."""
    body = _json({name: getattr(about, name) for name in _PLAIN})[:-1].encode() + b"," + tables.data
    crc = int(google_crc32c.value(body))
    return (
        b'{"format":"tieredfs-checkpoint","version":%d,"crc32c":"%08x","body":' % (tables.version, crc) + body + _SUFFIX
    )


def encode_tables(contents: Contents) -> Tables:
    """Nearly all of a manifest: known, and so encoded, before the times are."""
    texts = [
        '"trees":[' + ",".join(contents.trees),
        '"tensors":[' + contents.tensors,
        '"blobs":[' + ",".join(filter(None, contents.blobs)),
        '"files":[' + ",".join([_json(_fields(file)) for file in contents.files]),
        '"ranks":[' + ",".join(contents.ranks),
    ]
    data = "],".join(texts).encode() + b"]}"
    return Tables(VERSION if contents.packed else 1, data)


def rank_text(written_bytes: int, reused_bytes: int, seconds: float) -> str:
    """What a process can say of a rank of its own; see `RankRecord`."""
    return f'"written_bytes":{written_bytes},"reused_bytes":{reused_bytes},"seconds":{seconds!r}}}'


def rank_row(rank: int, tree: int, text: str) -> str:
    return f'{{"rank":{rank},"tree":{tree},{text}'


def tensor_rows(tensors: Sequence[StoredTensor]) -> str:
    return ",".join(map(_tensor_text, tensors))


def blob_rows(blobs: Sequence[Blob]) -> str:
    return ",".join(map(_blob_text, blobs))


def read_blob_rows(text: str) -> list[Blob]:  # for `read_checked` to call
    return [_decode_blob(each) for each in json.loads(f"[{text}]")]


def _tensor_text(tensor: StoredTensor) -> str:
    """By a format: of thousands of pieces, the encoder takes 4 us for one, this 1."""
    numbers = ",".join(["%d"] * len(tensor.shape))
    text = f'{{"offsets":[{numbers}],"shape":[{numbers}],"blob":%d}}'
    about = _fields(tensor)
    del about["shards"]
    shards = ",".join([text % (*offsets, *shape, blob) for offsets, shape, blob in tensor.shards])
    return _json(about)[:-1] + ',"shards":[' + shards + "]}"


def _json(tree: object) -> str:
    return json.dumps(tree, separators=(",", ":"), allow_nan=True)


def _fields(value: StoredTensor | StoredFile) -> dict[str, object]:
    """One level of them: `asdict` copies what is below, too, which took a third of a commit of 4096 ranks."""
    return {name: getattr(value, name) for name in value.__slots__}


_PLAIN: Final = About.__slots__


def decode_manifest(data: bytes, name: str) -> Manifest:
    """`name`: for messages. Raises CorruptError, NewerFormatError."""
    prefix = _PREFIX.match(data)
    if prefix is None:
        raise CorruptError(f"{name} is no manifest of a checkpoint")
    if int(prefix[1]) > VERSION:
        raise NewerFormatError(
            f"{name} was written by a newer TieredFS (format {int(prefix[1])}; this one reads {VERSION})"
        )
    body = data[prefix.end() : -len(_SUFFIX)]
    if not data.endswith(_SUFFIX) or int(google_crc32c.value(body)) != int(prefix[2], 16):
        raise CorruptError(f"{name} is damaged: its checksum is wrong")
    return read_checked(lambda: _manifest(json.loads(body)), name)


def read_checked(read: Callable[[], T], name: str) -> T:
    """What `read` makes of a document from the store; whatever makes no sense in it is a CorruptError."""
    try:
        return read()
    except (ValueError, TypeError, KeyError, IndexError, struct.error, RecursionError) as error:
        raise CorruptError(f"{name} makes no sense: {type(error).__name__} {error}") from error


def _manifest(tree: Any) -> Manifest:
    made = Manifest(
        **{name: tree[name] for name in _PLAIN},
        trees=tuple(tree["trees"]),
        tensors=tuple(_tensor(each) for each in tree["tensors"]),
        blobs=tuple(_decode_blob(each) for each in tree["blobs"]),
        files=tuple(StoredFile(_file_name(each["name"]), each["size_bytes"], each["reused"]) for each in tree["files"]),
        ranks=tuple(RankRecord(**each) for each in tree["ranks"]),
    )
    _check(made)
    return made


def _check(manifest: Manifest) -> None:
    """What readers rely on: indexes that point somewhere, ranges inside their files, pieces inside their tensors."""
    files = manifest.files
    if len(manifest.ranks) != manifest.world_size or not all(
        0 <= one.tree < len(manifest.trees) for one in manifest.ranks
    ):
        raise CorruptError("ranks and trees disagree")
    for blob in manifest.blobs:
        inside = 0 <= blob.file < len(files) and 0 <= blob.offset <= files[blob.file].size_bytes - blob.stored_bytes
        if not inside or blob.size_bytes < 0 or len(blob.crcs) != -(-blob.size_bytes // PIECE_BYTES):
            raise CorruptError("a range outside its file")
        if blob.packed is not None:
            _check_packed(blob, blob.packed)
    for tensor in manifest.tensors:
        for shard in tensor.shards:
            size = tensor.item_bytes
            for offset, length, whole in zip(shard.offsets, shard.shape, tensor.shape, strict=True):
                size *= length
                if length and not 0 <= offset <= whole - length:
                    raise CorruptError("a shard outside its tensor")
            if not 0 <= shard.blob < len(manifest.blobs) or manifest.blobs[shard.blob].size_bytes != size:
                raise CorruptError("a shard of another size than its bytes")


def _check_packed(blob: Blob, packed: Packed) -> None:
    """Nothing is stored longer than it is, so lengths that are read are lengths that there is memory for."""
    lengths = [end - start for start, end in itertools.pairwise((0, *packed.ends))]
    pieces = [min(PIECE_BYTES, blob.size_bytes - at) for at in range(0, blob.size_bytes, PIECE_BYTES)]
    fitting = all(0 < length <= piece for length, piece in zip(lengths, pieces, strict=True))
    if not fitting or packed.width not in WIDTHS or blob.size_bytes % packed.width:
        raise CorruptError("packed pieces of impossible lengths")


def _file_name(name: str) -> str:
    if _FILE_NAME.fullmatch(name) is None:
        raise CorruptError(f"{name!r} is no name of a data file")
    return name


def _tensor(tree: Any) -> StoredTensor:
    shards = tuple(StoredShard(tuple(one["offsets"]), tuple(one["shape"]), one["blob"]) for one in tree["shards"])
    origin = tree["origin"]
    if origin not in ("torch", "numpy"):
        raise CorruptError(f"a tensor of {origin!r}")
    fields = (
        tree["key"],
        cast(Origin, origin),
        tree["dtype"],
        tree["item_bytes"],
        tuple(tree["shape"]),
        tree["sharded"],
    )
    return StoredTensor(*fields, shards)


def _blob_text(blob: Blob) -> str:
    """[file, offset, size, content, probe, checksums as base64 of little-endian u32]; of a packed one also
    [codec, width, stored lengths of its pieces as base64 of u32]."""
    file, offset, size, content, probe, crcs, packed = blob
    text = f'[{file},{offset},{size},"{content}",{probe},"{_encode_u32(crcs)}'
    if packed is None:
        return text + '"]'
    lengths = [end - start for start, end in itertools.pairwise((0, *packed.ends))]
    return text + f'",["{CODEC}",{packed.width},"{_encode_u32(lengths)}"]]'


def _decode_blob(tree: Any) -> Blob:
    """Raises NewerFormatError for a codec that is not known here."""
    packed = None
    if len(tree) == 6:
        file, offset, size, content, probe, crcs = tree
    else:
        file, offset, size, content, probe, crcs, (codec, width, lengths) = tree
        if codec != CODEC:
            raise NewerFormatError(f"tensors compressed with {codec!r} were written by a newer TieredFS")
        packed = Packed(width, tuple(itertools.accumulate(_decode_u32(lengths))))
    return Blob(file, offset, size, content, probe, _decode_u32(crcs), packed)


def _encode_u32(numbers: Sequence[int]) -> str:
    data = _ONE_U32(*numbers) if len(numbers) == 1 else struct.pack(f"<{len(numbers)}I", *numbers)
    return binascii.b2a_base64(data, newline=False).decode()


_ONE_U32: Final = struct.Struct("<I").pack
"""Most tensors have one piece."""


def _decode_u32(text: str) -> tuple[int, ...]:
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}I", data)
