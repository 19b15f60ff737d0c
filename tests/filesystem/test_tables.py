"""Tables through pandas and pyarrow, the real libraries."""

import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from tieredfs_client.filesystem import TieredFileSystem, arrow_filesystem

TABLE = pa.table({"step": list(range(1000)), "run": ["a", "b"] * 500, "loss": [1 / (1 + at) for at in range(1000)]})


def test_pandas_by_url(fs: TieredFileSystem) -> None:
    frame = TABLE.to_pandas()
    url = fs.unstrip_protocol("tables/loss.parquet")
    frame.to_parquet(url)
    assert pandas.read_parquet(url).equals(frame)
    frame.to_csv(fs.unstrip_protocol("tables/loss.csv"), index=False)
    read = pandas.read_csv("tieredfs://tables/loss.csv", storage_options={"meta_url": fs.meta_url})
    assert list(read["step"]) == list(frame["step"])


def test_arrow_datasets(fs: TieredFileSystem) -> None:
    files = arrow_filesystem(fs.meta_url)
    pyarrow.dataset.write_dataset(TABLE, "set", format="parquet", partitioning=["run"], filesystem=files)
    assert [path for path in fs.find("set") if path.endswith(".parquet")] == [
        "set/a/part-0.parquet",
        "set/b/part-0.parquet",
    ]
    found = pyarrow.dataset.dataset("set", format="parquet", partitioning=["run"], filesystem=files)
    rows = found.to_table(filter=pyarrow.dataset.field("run") == "b").sort_by("step")
    assert rows["step"].to_pylist() == list(range(1, 1000, 2))


def test_arrow_files_and_directories(fs: TieredFileSystem) -> None:
    files = arrow_filesystem(fs.meta_url)
    pyarrow.parquet.write_table(TABLE, "one.parquet", filesystem=files)
    assert pyarrow.parquet.read_table("one.parquet", filesystem=files, columns=["loss"]).num_rows == 1000
    files.create_dir("empty/below")
    files.move("one.parquet", "empty/two.parquet")
    assert files.get_file_info("empty/two.parquet").size == fs.info("empty/two.parquet")["size"]
    with files.open_output_stream("stream") as stream:
        stream.write(b"abc")
    assert files.open_input_file("stream").read_at(2, 1) == b"bc"
    with pytest.raises(FileNotFoundError):
        files.open_input_file("none")
    files.delete_dir("empty")
    assert fs.ls("", detail=False) == ["stream"]
