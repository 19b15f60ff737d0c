"""Datasets that are damaged, differ, are empty or have huge rows: what a trainer gets and is told, over both ways."""

import pyarrow as pa
import pytest

from tests.reading.files import json_lines, put
from tests.serving.rig import WAIT_S, Gateway, ids, numbers, put_table
from tieredfs.errors import ConfigurationError, CorruptError
from tieredfs.limits import MIB

WAYS = pytest.mark.parametrize("transport", ["http", "shared"])


@WAYS
def test_unreadable_shards_end_the_epoch_with_their_name_or_are_skipped_and_named(
    served: Gateway, transport: str
) -> None:
    folder = "datasets/torn"
    with served.volume() as volume:
        put_table(volume, f"{folder}/a.parquet", numbers(1000))
        put_table(volume, f"{folder}/b.parquet", numbers(1000, 1000))
        put(volume, f"{folder}/c.parquet", b"PAR1 and nothing more PAR1")
        volume.flush(WAIT_S)
    with pytest.raises(CorruptError, match=r"datasets/torn/c\.parquet"):
        list(served.dataset(folder, transport=transport))
    with served.dataset(folder, transport=transport, on_bad_shard="skip", shuffle="full") as data:
        assert sorted(ids(data)) == list(range(2000))
        assert list(data.skipped()) == [f"{folder}/c.parquet"]


@WAYS
def test_a_shard_that_is_damaged_within_leaves_its_rows_out_in_every_run(served: Gateway, transport: str) -> None:
    folder = f"datasets/rotten-{transport}"
    lines = json_lines([{"id": number} for number in range(500)])
    with served.volume() as volume:
        put(volume, f"{folder}/a.jsonl", lines)
        put(volume, f"{folder}/b.jsonl", lines.replace(b'{"id": 250}', b'{"id": }'))
        volume.flush(WAIT_S)
    with pytest.raises(CorruptError, match=r"b\.jsonl, line 251"):
        list(served.dataset(folder, transport=transport))
    data = served.dataset(folder, transport=transport, on_bad_shard="skip")
    assert ids(data) == ids(data) == list(range(500))


def test_files_whose_types_do_not_fit_are_named_with_the_column(served: Gateway) -> None:
    with served.volume() as volume:
        put_table(volume, "datasets/drift/a.parquet", pa.table({"id": [1, 2]}))
        put_table(volume, "datasets/drift/b.parquet", pa.table({"id": ["three"]}))
        volume.flush(WAIT_S)
    with pytest.raises(
        ConfigurationError, match=r"'id' is int64 in datasets/drift/a\.parquet and string in .*b\.parquet"
    ):
        list(served.dataset("datasets/drift"))


@WAYS
@pytest.mark.parametrize("remainder", ["pad", "drop", "wrap"])
@pytest.mark.parametrize("shuffle", ["none", "full"])
def test_an_epoch_without_rows_ends_for_every_rank(
    served: Gateway, transport: str, remainder: str, shuffle: str
) -> None:
    for rank in range(2):
        data = served.dataset(
            filter="id < 0", rank=rank, world_size=2, remainder=remainder, transport=transport, shuffle=shuffle
        )
        assert ids(data) == []
        assert data.epoch == 1
        assert ids(data) == []


@pytest.mark.parametrize(("transport", "size_bytes"), [("http", 12 * MIB), ("shared", 3 * MIB)])
def test_rows_of_megabytes(served: Gateway, transport: str, size_bytes: int) -> None:
    """The gateway of these tests has 64 MiB of shared memory, a window of it 8: over HTTP a row may be larger than that."""
    bodies = [bytes([number]) * size_bytes for number in range(5)]
    source = f"datasets/huge-{transport}"
    with served.volume() as volume:
        put_table(volume, f"{source}/a.parquet", pa.table({"id": range(5), "body": bodies}), row_group_size=1)
        volume.flush(WAIT_S)
    seen = []
    for batch in served.dataset(source, batch_size=1, transport=transport, shuffle="shards"):
        (row,) = batch.to_pylist()
        assert row["body"] == bodies[row["id"]]
        seen.append(row["id"])
    assert sorted(seen) == list(range(5))
