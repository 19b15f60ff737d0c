"""The pure parts of the demo's last step: the dataset that it writes, and what trainers wrote down."""

from pathlib import Path

import pyarrow.parquet as pq

from bench.demo import feeding


def test_every_sample_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(256)) * 10)
    count = feeding.write_dataset(tmp_path / "text", tmp_path / "set")
    table = pq.read_table(tmp_path / "set")
    assert count == 20
    assert table["id"].to_pylist() == list(range(20))
    assert b"".join(table["text"].to_pylist()) == bytes(range(256)) * 10


def test_a_line_that_was_cut_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "seen").write_text('{"step": 1, "ids": [3, 4]}\n{"step": 2, "ids": []}\n{"step": 3, "i')
    assert feeding.read_seen(tmp_path / "seen") == [feeding.Step(1, (3, 4)), feeding.Step(2, ())]


def test_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    for name in ("feed-000010.pt", "feed-000020.pt", "feed-000030.tmp"):
        (tmp_path / name).touch()
    assert feeding.checkpoint_step(tmp_path) == 20
