"""Clients that are not boto3: s5cmd (Go's SDK) and pyarrow's S3FileSystem (the C++ SDK)."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pyarrow import fs

from tests.s3.endpoint import Endpoint
from tieredfs.limits import MIB

DATA = os.urandom(11 * MIB + 5)


def s5cmd(served: Endpoint, *arguments: str) -> str:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": served.key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": served.key.secret_access_key,
        "AWS_REGION": "us-east-1",
    }
    program = Path(sysconfig.get_path("scripts")) / "s5cmd"
    done = subprocess.run(
        [program, "--endpoint-url", served.url, "--retry-count", "0", *arguments],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_s5cmd_copies_trees_both_ways(served: Endpoint, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub dir").mkdir(parents=True)
    for number in range(30):
        (source / "sub dir" / f"{number}+é.txt").write_text(f"file {number}")
    (source / "big").write_bytes(DATA)
    s5cmd(served, "cp", "--part-size", "5", f"{source}/", f"s3://{bucket}/tree/")
    listed = [json.loads(line) for line in s5cmd(served, "--json", "ls", f"s3://{bucket}/tree/*").splitlines()]
    assert len(listed) == 31
    target = tmp_path / "target"
    s5cmd(served, "cp", "--part-size", "5", f"s3://{bucket}/tree/*", f"{target}/")
    for path in source.rglob("*"):
        if path.is_file():
            assert (target / path.relative_to(source)).read_bytes() == path.read_bytes()
    s5cmd(served, "mv", f"s3://{bucket}/tree/big", f"s3://{bucket}/moved")
    assert "moved" in s5cmd(served, "ls", f"s3://{bucket}/")
    s5cmd(served, "rm", f"s3://{bucket}/*")
    assert s5cmd(served, "ls", f"s3://{bucket}/") == ""


def test_s5cmd_makes_and_removes_buckets(served: Endpoint) -> None:
    s5cmd(served, "mb", "s3://made-by-s5cmd")
    assert "made-by-s5cmd" in s5cmd(served, "ls")
    s5cmd(served, "rb", "s3://made-by-s5cmd")


@pytest.fixture
def arrow(served: Endpoint) -> Any:
    return fs.S3FileSystem(
        access_key=served.key.access_key_id,
        secret_key=served.key.secret_access_key,
        endpoint_override=served.url,
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def test_arrow_reads_and_writes(arrow: Any, bucket: str) -> None:
    with arrow.open_output_stream(f"{bucket}/dir/big.bin", metadata={"Content-Type": "a/b"}) as stream:
        stream.write(DATA)
    with arrow.open_input_file(f"{bucket}/dir/big.bin") as file:
        assert file.size() == len(DATA)
        assert file.read_at(1000, 5 * MIB) == DATA[5 * MIB : 5 * MIB + 1000]
        assert file.read() == DATA
    assert arrow.get_file_info(f"{bucket}/dir").type == fs.FileType.Directory
    assert arrow.get_file_info(f"{bucket}/none").type == fs.FileType.NotFound
    arrow.copy_file(f"{bucket}/dir/big.bin", f"{bucket}/copy.bin")
    arrow.move(f"{bucket}/copy.bin", f"{bucket}/dir/moved.bin")
    arrow.create_dir(f"{bucket}/made/deep")
    found = arrow.get_file_info(fs.FileSelector(bucket, recursive=True))
    assert {info.path.removeprefix(f"{bucket}/") for info in found} == {
        "dir",
        "dir/big.bin",
        "dir/moved.bin",
        "made",
        "made/deep",
    }
    arrow.delete_dir_contents(bucket)
    assert arrow.get_file_info(fs.FileSelector(bucket, recursive=True)) == []


def test_arrow_reads_a_dataset_that_it_wrote(arrow: Any, bucket: str) -> None:
    table = pyarrow.table({"kind": [number % 3 for number in range(3000)], "value": list(range(3000))})
    pyarrow.parquet.write_to_dataset(table, f"{bucket}/data", partition_cols=["kind"], filesystem=arrow)
    found = pyarrow.parquet.read_table(f"{bucket}/data", filesystem=arrow)
    assert sorted(found["value"].to_pylist()) == list(range(3000))
