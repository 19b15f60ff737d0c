"""Files at rest: plain safetensors, a manifest that is golden, and nothing damaged that is believed."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from random import Random

import google_crc32c
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, InvalidRequestError, NewerFormatError
from tieredfs_client.checkpoint.layout import (
    ALIGNMENT_BYTES,
    PIECE_BYTES,
    Blob,
    Item,
    Manifest,
    Outline,
    Packed,
    RankRecord,
    StoredFile,
    StoredShard,
    StoredTensor,
    data_header,
    decode_manifest,
    encode_manifest,
    entry_room,
    lay_out,
    lay_out_unnamed,
    packed_header,
    packed_item,
    packed_room,
    split_into_files,
)
from tieredfs_client.checkpoint.names import CheckpointName, RunPaths, check_tag, parse_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "manifest-1.json"
GOLDEN_PACKED = Path(__file__).parent / "golden" / "manifest-2.json"

MANIFEST = Manifest(
    step=1000,
    attempt="000000001000-00112233445566ff-000001",
    world_size=2,
    created_ns=1_700_000_000_000_000_000,
    seconds=1.5,
    metadata={"epoch": 3, "note": "übung"},
    metrics={"loss": 0.25},
    trees=(["d", ["w", ["x", 0]], ["e", ["x", 1]], ["lr", ["f", "3f50624dd2f1a9fc"]]],),
    tensors=(
        StoredTensor(
            "w", "torch", "BF16", 2, (4, 3), True, (StoredShard((0, 0), (2, 3), 0), StoredShard((2, 0), (2, 3), 1))
        ),
        StoredTensor("e/../\0", "numpy", "numpy:>f4", 4, (0,), False, (StoredShard((0,), (0,), 2),)),
    ),
    blobs=(
        Blob(0, 128, 12, "00" * 16, 0xE3069283, (0xE3069283,)),
        Blob(1, 128, 12, "ff" * 16, 1, (2,)),
        Blob(0, 140, 0, "0f" * 16, 0, ()),
    ),
    files=(StoredFile("data-r00000-000.safetensors", 140, False), StoredFile("same-r00001.safetensors", 140, True)),
    ranks=(RankRecord(0, 0, 12, 0, 1.25), RankRecord(1, 0, 0, 12, 1.5)),
)


LARGE_BYTES = PIECE_BYTES + 16
PACKED = replace(
    MANIFEST,
    tensors=(
        *MANIFEST.tensors,
        StoredTensor("p", "torch", "F32", 4, (LARGE_BYTES // 4,), False, (StoredShard((0,), (LARGE_BYTES // 4,), 3),)),
    ),
    blobs=(*MANIFEST.blobs, Blob(2, 256, LARGE_BYTES, "0a" * 16, 7, (8, 9), Packed(4, (3_000_000, 3_000_016)))),
    files=(*MANIFEST.files, StoredFile("packed-r00000-000.safetensors", 3_000_272, False)),
)


@pytest.mark.parametrize(("golden", "manifest"), [(GOLDEN, MANIFEST), (GOLDEN_PACKED, PACKED)], ids=["plain", "packed"])
def test_the_manifest_is_what_it_was(golden: Path, manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    if os.environ.get("TIEREDFS_WRITE_GOLDEN"):
        golden.write_bytes(data)
    assert data == golden.read_bytes()
    assert decode_manifest(golden.read_bytes(), "golden") == manifest
    assert json.loads(data)["body"]["step"] == 1000, "one JSON document, which any tool can read"


def test_what_is_packed_and_what_it_takes() -> None:
    assert PACKED.size_bytes - MANIFEST.size_bytes == LARGE_BYTES
    assert PACKED.stored_bytes - MANIFEST.stored_bytes == 3_000_016
    assert PACKED.new_bytes == 12 + 3_000_016, "and nothing of the file that was made by reference"


def test_a_codec_of_another_time_is_told_as_such() -> None:
    body = json.loads(GOLDEN_PACKED.read_bytes())["body"]
    body["blobs"][3][6][0] = "planes-huffman"
    text = json.dumps(body, separators=(",", ":")).encode()
    head = b'{"format":"tieredfs-checkpoint","version":2,"crc32c":"%08x","body":' % google_crc32c.value(text)
    with pytest.raises(NewerFormatError, match=r"planes-huffman.*newer TieredFS"):
        decode_manifest(head + text + b"}\n", "newer")


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_PACKED], ids=["plain", "packed"])
def test_no_flipped_bit_is_believed(golden: Path) -> None:
    data = golden.read_bytes()
    for at in range(len(data)):
        for bit in (0, 3, 7):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            with pytest.raises((CorruptError, NewerFormatError)):
                decode_manifest(bytes(broken), "broken")


@given(st.integers(0, 10_000))
def test_no_torn_manifest_is_believed(length: int) -> None:
    data = GOLDEN.read_bytes()
    with pytest.raises(CorruptError):
        decode_manifest(data[: length % len(data)], "torn")


def test_a_newer_manifest_is_told_as_such() -> None:
    data = GOLDEN.read_bytes().replace(b'"version":1', b'"version":3', 1)
    with pytest.raises(NewerFormatError, match="newer TieredFS"):
        decode_manifest(data, "newer")


def packed_otherwise(packed: Packed) -> Manifest:
    files = (*MANIFEST.files, replace(PACKED.files[2], size_bytes=1 << 40))
    return replace(PACKED, blobs=(*MANIFEST.blobs, PACKED.blobs[3]._replace(packed=packed)), files=files)


def resealed(manifest: Manifest) -> bytes:
    """With a right checksum over wrong contents."""
    return encode_manifest(manifest)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(MANIFEST, files=(StoredFile("../../etc/passwd.safetensors", 140, False), MANIFEST.files[1])),
        replace(MANIFEST, files=MANIFEST.files[:1]),
        replace(MANIFEST, world_size=3),
        replace(MANIFEST, trees=()),
        replace(MANIFEST, blobs=(MANIFEST.blobs[0]._replace(offset=136), *MANIFEST.blobs[1:])),
        replace(MANIFEST, blobs=(MANIFEST.blobs[0]._replace(crcs=()), *MANIFEST.blobs[1:])),
        replace(MANIFEST, tensors=(replace(MANIFEST.tensors[0], shape=(3, 3)), MANIFEST.tensors[1])),
        replace(MANIFEST, tensors=(replace(MANIFEST.tensors[0], item_bytes=4), MANIFEST.tensors[1])),
        packed_otherwise(Packed(4, (PIECE_BYTES + 1, PIECE_BYTES + 2))),
        packed_otherwise(Packed(4, (3_000_000, 3_000_017))),
        packed_otherwise(Packed(4, (3_000_000, 3_000_000))),
        packed_otherwise(Packed(4, (3_000_000,))),
        packed_otherwise(Packed(3, (3_000_000, 3_000_016))),
        packed_otherwise(Packed(0, (3_000_000, 3_000_016))),
        replace(PACKED, files=(*MANIFEST.files, replace(PACKED.files[2], size_bytes=3_000_271))),
    ],
    ids=[
        *("path", "file", "world", "tree", "range", "sums", "shard", "item"),
        *("longer-piece", "longer-end", "empty-piece", "pieces", "width", "no-width", "packed-range"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_corrupt(wrong: Manifest) -> None:
    with pytest.raises(CorruptError):
        decode_manifest(resealed(wrong), "wrong")


def test_a_body_of_another_shape_is_corrupt() -> None:
    for body in (b"[]", b'{"step":1}', b"nonsense"):
        crc = google_crc32c.value(body)
        data = b'{"format":"tieredfs-checkpoint","version":1,"crc32c":"%08x","body":' % crc + body + b"}\n"
        with pytest.raises(CorruptError):
            decode_manifest(data, "odd")


ITEMS = st.lists(
    st.builds(
        lambda name, size, code: Item(name, code[0], code[1], (size,), size * code[1]),
        st.text(st.characters()),
        st.integers(0, 100),
        st.sampled_from([("F32", 4), ("U8", 1), ("BF16", 2), ("F64", 8), ("C128", 16), ("torch:float8_e8m0fnu", 1)]),
    ),
    max_size=12,
)


@given(ITEMS)
def test_data_files_are_safetensors_whatever_the_names(items: list[Item]) -> None:
    layout = lay_out(items)
    contents = bytearray(layout.header) + bytes(layout.size_bytes - len(layout.header))
    covered = 0
    for number, (item, offset) in enumerate(zip(items, layout.offsets, strict=True)):
        contents[offset : offset + item.size_bytes] = bytes([number + 1]) * item.size_bytes
        covered += item.size_bytes
        assert offset % (ALIGNMENT_BYTES if item.size_bytes % ALIGNMENT_BYTES == 0 else item.item_bytes) == 0
    assert len(layout.header) % ALIGNMENT_BYTES == 0
    assert covered == layout.size_bytes - len(layout.header)
    read = safetensors.torch.load(bytes(contents))  # the official library refuses holes, overlaps and odd lengths
    found = sorted(bytes(tensor.flatten().view(torch.uint8).numpy()) for tensor in read.values())
    assert found == sorted(bytes([number + 1]) * item.size_bytes for number, item in enumerate(items))


@given(ITEMS, st.booleans(), st.data())
def test_a_header_that_comes_last_fits_where_there_was_room_for_it(
    items: list[Item], sharded: bool, data: st.DataObject
) -> None:
    named = items
    if sharded:
        starts = [data.draw(st.integers(0, item.shape[0])) for item in items]
        named = [
            item._replace(name=f"{item.name}@{start}+{item.shape[0]}")
            for item, start in zip(items, starts, strict=True)
        ]
    rooms = [entry_room(item, sharded=sharded) for item in items]
    placed = lay_out_unnamed(Outline([item.size_bytes for item in items], [item.item_bytes for item in items], rooms))
    plain = lay_out(items)
    header = data_header(named, placed.room_bytes)
    assert len(header) == placed.room_bytes
    assert not len(header) % ALIGNMENT_BYTES
    assert placed.size_bytes - len(header) == plain.size_bytes - len(plain.header)
    assert [at - len(header) for at in placed.offsets] == [at - len(plain.header) for at in plain.offsets]
    contents = bytearray(header) + bytes(placed.size_bytes - len(header))
    for number, (item, offset) in enumerate(zip(items, placed.offsets, strict=True)):
        contents[offset : offset + item.size_bytes] = bytes([number + 1]) * item.size_bytes
    read = safetensors.torch.load(bytes(contents))
    found = sorted(bytes(tensor.flatten().view(torch.uint8).numpy()) for tensor in read.values())
    assert found == sorted(bytes([number + 1]) * item.size_bytes for number, item in enumerate(items))


def test_there_is_room_for_the_numbers_of_thousands_of_equal_names() -> None:
    items = [Item("w" if number % 2 else "w#3", "F32", 4, (16,), 64) for number in range(3000)]
    columns = [[64] * 3000, [4] * 3000, [entry_room(item, sharded=False) for item in items]]
    placed = lay_out_unnamed(Outline(*columns))
    assert len(data_header(items, placed.room_bytes)) == placed.room_bytes
    assert Outline(*columns).of([1, 0]) == Outline([64, 64], [4, 4], [columns[2][1], columns[2][0]])


@given(ITEMS, st.randoms(use_true_random=False))
def test_files_of_packed_tensors_are_safetensors_however_much_they_shrink(items: list[Item], random: Random) -> None:
    plain = [packed_item(item, item.size_bytes) for item in items]
    stored = [packed_item(item, random.randint(0, item.size_bytes)) for item in items]
    room = packed_room(plain)
    header = packed_header(stored, room)
    assert len(header) == room
    contents = header + b"".join(bytes([number + 1]) * item.size_bytes for number, item in enumerate(stored))
    read = safetensors.torch.load(contents)
    found = sorted(bytes(tensor.numpy()) for tensor in read.values())
    assert found == sorted(bytes([number + 1]) * item.size_bytes for number, item in enumerate(stored))
    assert all(":packed" in name for name in read)


def test_the_reserved_name_is_not_taken() -> None:
    (size,) = struct.unpack("<Q", (data := lay_out([Item("__metadata__", "U8", 1, (1,), 1)]).header)[:8])
    assert set(json.loads(data[8 : 8 + size])) == {"__metadata__", "__metadata__#2"}


@given(st.lists(st.integers(0, 50)), st.integers(1, 100), st.integers(1, 5))
def test_files_are_filled_in_order_up_to_their_limits(sizes: list[int], limit: int, count: int) -> None:
    groups = split_into_files(sizes, limit, count)
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    assert all(len(group) == 1 or (len(group) <= count and sum(sizes[at] for at in group) <= limit) for group in groups)


@given(st.integers(0, 10**12 - 1), st.integers(1, 999))
def test_names_of_checkpoints_come_back(step: int, generation: int) -> None:
    name = CheckpointName(step, generation)
    assert parse_checkpoint(name.encode()) == name


@pytest.mark.parametrize(
    "name", [b"step-1", b"step-000000000001.g0", b"step-000000000001.g01", b"latest", b".attempts"]
)
def test_other_names_are_no_checkpoints(name: bytes) -> None:
    assert parse_checkpoint(name) is None


@pytest.mark.parametrize("run", ["", "/", "a/../b", "a/./b", "a\0b", "x" * 256])
def test_runs_are_directories_of_the_volume(run: str) -> None:
    with pytest.raises(InvalidRequestError):
        RunPaths.of(run)


@pytest.mark.parametrize("tag", ["", "latest", "step-000000000001", "a/b", ".hidden", "ü", "x" * 101])
def test_bad_tags(tag: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_tag(tag)
