"""The manifest at rest: a golden file, and whatever is not one is refused."""

from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, UnstorableError
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.dcp.manifest import (
    Manifest,
    Stored,
    StoredChunk,
    StoredTensor,
    data_file_name,
    decode,
    encode,
    is_data_file,
    paths_of,
)

GOLDEN = Path(__file__).parent / "golden" / "checkpoint-1.json"
FIRST, SECOND = data_file_name(0, "0123456789abcdef", 0), data_file_name(1, "fedcba9876543210", 0)
SAMPLE = Manifest(
    "00112233aabbccdd",
    {FIRST: 2 * PIECE_BYTES, SECOND: 200},
    {
        "model.w": StoredTensor(
            "BF16",
            2,
            (PIECE_BYTES // 2 + 10, 1),
            True,
            (
                StoredChunk((0, 0), (PIECE_BYTES // 2 + 5, 1), Stored(FIRST, 128, PIECE_BYTES + 10, (1, 4294967295))),
                StoredChunk((PIECE_BYTES // 2 + 5, 0), (5, 1), Stored(SECOND, 64, 10, (7,))),
            ),
        ),
        "scalar": StoredTensor("F32", 4, (), False, (StoredChunk((), (), Stored(SECOND, 74, 4, (9,))),)),
        "none": StoredTensor("I64", 8, (0, 3), False, (StoredChunk((0, 0), (0, 3), Stored(SECOND, 78, 0, ())),)),
    },
    {"step": Stored(SECOND, 78, 100, (11,))},
    {"model.w": ("model", "w"), "scalar": ("scalar",), "step": ("step", 0)},
)


def test_the_golden_file_is_what_is_written_and_read() -> None:
    assert encode(SAMPLE) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes(), "it") == SAMPLE
    assert set(SAMPLE.chunk_index()) == {
        ("model.w", (0, 0)),
        ("model.w", (PIECE_BYTES // 2 + 5, 0)),
        ("scalar", ()),
        ("none", (0, 0)),
    }


@settings(max_examples=100)
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(data: st.DataObject) -> None:
    whole = bytearray(GOLDEN.read_bytes())
    at = data.draw(st.integers(whole.index(b"body"), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptError):
        decode(bytes(whole), "it")


def resealed(old: bytes, new: bytes) -> bytes:
    """A change of the body with the right checksum: what only the checks of its sense can find."""
    whole = GOLDEN.read_bytes()
    start = whole.index(b'"body":') + 7
    body = whole[start:-2].replace(old, new)
    assert body != whole[start:-2]
    return b'{"format":"tieredfs-dcp","version":1,"crc32c":"%08x","body":' % google_crc32c.value(body) + body + b"}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FIRST.encode(), b"../../etc/passwd"),
        (b"[1,64,10,", b"[1,195,10,"),
        (b"[1,64,10,", b"[1,-1,10,"),
        (b"[1,64,10,", b"[2,64,10,"),
        (b"[1,64,10,", b"[-1,64,10,"),
        (b"[1,64,10,", b"[1,64,8,"),
        (b"[[[],[],[1,74,4,", b"[[[1],[1],[1,74,4,"),
        (b'"shape":[2097162,1]', b'"shape":[2097161,1]'),
        (b'"objects"', b'"subjects"'),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(resealed(old, new), "it")


def test_names_of_data_files() -> None:
    assert is_data_file(data_file_name(123456, "0123456789abcdef", 7))
    for name in ("checkpoint.json", "a.safetensors", FIRST + "\n", "../" + FIRST, FIRST.upper()):
        assert not is_data_file(name)


@pytest.mark.parametrize("data", [{"a": ["list"]}, {"a": (1.5,)}, {"a": (True,)}, [1], "text"])
def test_planner_data_of_others_is_refused(data: object) -> None:
    with pytest.raises(UnstorableError, match="pickle"):
        paths_of(data)
