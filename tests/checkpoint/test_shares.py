"""What processes tell one another, through JSON and back; what is made of it; and what is told of a message that makes no sense."""

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, UnstorableError
from tieredfs_client.checkpoint.assemble import assemble, numbered
from tieredfs_client.checkpoint.layout import (
    PIECE_BYTES,
    Blob,
    Packed,
    StoredFile,
    blob_rows,
    rank_text,
    read_blob_rows,
    read_checked,
)
from tieredfs_client.checkpoint.shares import (
    Cargo,
    Report,
    Share,
    StoredPart,
    Task,
    decode_part,
    decode_report,
    decode_share,
    decode_task,
    encode_part,
    encode_report,
    encode_share,
    encode_task,
)
from tieredfs_client.checkpoint.tree import Shard, flatten

FILES = (StoredFile("data-r00000-000.safetensors", 1 << 20, False),)
WHOLE_SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def through_json(value: object) -> Any:
    return json.loads(json.dumps(value))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Arrays of any depth, whole ones and pieces, of a few names."""
    tree: dict[str, Any] = {"step": draw(st.integers())}
    for name in draw(st.sets(st.sampled_from(["a", "b", "c", "\ud800", 'quo"te']))):
        shape = draw(WHOLE_SHAPES)
        if draw(st.booleans()):
            tree[name] = np.zeros(shape, np.float32)
            continue
        spans = [sorted((draw(st.integers(0, length)), draw(st.integers(0, length)))) for length in shape]
        lengths = [high - low for low, high in spans]
        tree[name] = Shard(np.zeros(lengths, np.int8), shape, tuple(low for low, _ in spans))
    return tree


def share_of(ranks: dict[int, Any]) -> Share:
    return Cargo.of({rank: flatten(tree) for rank, tree in ranks.items()}).share({})


@given(st.lists(trees(), min_size=1, max_size=4))
def test_a_share_comes_as_it_was(had: list[dict[str, Any]]) -> None:
    share = share_of(dict(enumerate(had)))
    back = decode_share(through_json(encode_share(share)))
    for name in Share.__slots__:
        assert list(getattr(back, name)) == list(getattr(share, name)), name
    everything = range(len(share.kinds))
    assert back.items(everything) == share.items(everything)
    assert encode_share(back) == encode_share(share), "and goes on, from the leader of a machine"


BLOBS = st.builds(
    lambda file, offset, size, content, probe, crc: Blob(
        file, offset, size, content.hex(), probe, tuple(crc + piece for piece in range(-(-size // PIECE_BYTES)))
    ),
    st.integers(0, 3),
    st.integers(0, 1 << 40),
    st.sampled_from([0, 1, 1000, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES]),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFF00),
)


@given(st.lists(BLOBS, max_size=6), st.sets(st.integers(0, 5)))
def test_a_report_comes_as_it_was(blobs: list[Blob], packed: set[int]) -> None:
    how = Packed(4, (10, 20))
    blobs = [blob._replace(packed=how if at in packed else None) for at, blob in enumerate(blobs)]
    ranks = [rank_text(5, 0, 0.0), rank_text(0, 7, 0.25), rank_text(1 << 40, 0, 1e-6)]
    report = Report(blob_rows(blobs), len(blobs), bool(packed), ['["l"]', "7"], [0, 1, 0], ranks)
    back = decode_report(through_json(encode_report(report)))
    assert replace(back, tree_numbers=list(back.tree_numbers)) == report
    assert read_blob_rows(back.blobs) == blobs
    part = StoredPart(FILES, {3: report})
    assert encode_part(decode_part(through_json(encode_part(part)))) == encode_part(part)


def test_a_task_for_all_says_so_shortly() -> None:
    assert through_json(encode_task(Task([0, 1, 2], [5, 5, 6])))[0] is None
    assert list(decode_task([None, [5, 5, 6]]).chosen) == [0, 1, 2]
    assert decode_task(through_json(encode_task(Task([1], [5, 6])))) == Task([1], [5, 6])


TWO = {0: {"t": Shard(np.zeros(2), (4,), (0,)), "w": np.zeros(3)}, 1: {"t": Shard(np.zeros(2), (4,), (2,))}}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("kinds", "00"),
        ("kinds", "09000000" * 3),
        ("counts", [1, 1]),
        ("ranks", []),
        ("boxes", ""),
        ("identities", "xx"),
    ],
)
def test_columns_that_make_no_sense_are_told(column: str, value: object) -> None:
    body = through_json(encode_share(share_of(TWO)))
    with pytest.raises(CorruptError, match="what a rank says"):
        read_checked(lambda: decode_share(body | {column: value}), "what a rank says")


def stored(share: Share, count: int) -> Report:
    blobs = [Blob(0, 8 * number, size, "00" * 16, 0, (0,)) for number, size in enumerate(share.sizes[:count])]
    ends = list(itertools.accumulate(share.counts, initial=0))
    ranks = [rank_text(sum(share.sizes[start:end]), 0, 0.5) for start, end in itertools.pairwise(ends)]
    return Report(blob_rows(blobs), len(blobs), False, ['["d"]'], [0] * len(ranks), ranks)


def test_what_was_stored_by_nobody_or_by_too_many_is_no_checkpoint() -> None:
    share = share_of(TWO)
    (numbers,) = numbered([share])
    assert numbers == [0, 1, 0]
    tasks = {0: Task(range(3), numbers)}
    contents = assemble([share], tasks, [StoredPart(FILES, {0: stored(share, 3)})])
    assert [len(tensor["shards"]) for tensor in json.loads(f"[{contents.tensors}]")] == [2, 1]
    assert [json.loads(record)["written_bytes"] for record in contents.ranks] == [16 + 24, 16]
    with pytest.raises(CorruptError, match="2 were stored"):
        assemble([share], tasks, [StoredPart(FILES, {0: stored(share, 2)})])
    with pytest.raises(CorruptError, match="other processes"):
        assemble([share], tasks, [StoredPart(FILES, {})])
    with pytest.raises(CorruptError, match="w was stored by no rank"):
        assemble([share], {0: Task([0, 2], numbers)}, [StoredPart(FILES, {0: stored(share, 2)})])
    twice = share_of(TWO | {2: {"t": Shard(np.zeros(1), (4,), (1,))}})
    with pytest.raises(UnstorableError, match="t, F64: shards overlap"):
        assemble([twice], {0: Task(range(4), [0, 1, 0, 0])}, [StoredPart(FILES, {0: stored(twice, 4)})])
