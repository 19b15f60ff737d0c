"""More clients that people bring along: obstore (Rust), s3fs (aiobotocore), minio's, rclone (Go), s3torchconnector (the CRT).

Each does what it is used for, with data large enough for its multipart upload, and reads it back whole and in part.
"""

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import minio
import obstore
import pytest
import s3fs
from obstore.store import S3Store

from tests.s3.endpoint import Endpoint
from tieredfs.limits import MIB

DATA = os.urandom(11 * MIB + 3)
ODD_KEYS = ["plain", "a b+c&d=é/ü", "dir/.hidden", "tilde~(x)!*'", "percent%41"]


def test_obstore(served: Endpoint, bucket: str) -> None:
    store = S3Store(
        bucket,
        endpoint=served.url,
        access_key_id=served.key.access_key_id,
        secret_access_key=served.key.secret_access_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    made = obstore.put(store, "big", io.BytesIO(DATA), chunk_size=5 * MIB)
    assert made["e_tag"]
    assert bytes(obstore.get(store, "big").bytes()) == DATA
    assert bytes(obstore.get_range(store, "big", start=100, length=1000)) == DATA[100:1100]
    assert [bytes(part) for part in obstore.get_ranges(store, "big", starts=[0, 6 * MIB], lengths=[10, 10])] == [
        DATA[:10],
        DATA[6 * MIB : 6 * MIB + 10],
    ]
    for key in ODD_KEYS:
        obstore.put(store, key, key.encode())
    found = {entry["path"]: entry["size"] for page in obstore.list(store) for entry in page}
    assert found == {"big": len(DATA)} | {key: len(key.encode()) for key in ODD_KEYS}
    assert bytes(obstore.get(store, ODD_KEYS[1]).bytes()) == ODD_KEYS[1].encode()
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "plain", b"other", mode="create")
    head = obstore.head(store, "plain")
    obstore.put(store, "plain", b"swapped", mode={"e_tag": head["e_tag"]})
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "plain", b"lost", mode={"e_tag": head["e_tag"]})
    obstore.copy(store, "big", "copy")
    obstore.rename(store, "copy", "moved")
    obstore.delete(store, ["big", *ODD_KEYS])
    assert [entry["path"] for page in obstore.list(store) for entry in page] == ["moved"]


def test_s3fs(served: Endpoint, bucket: str, tmp_path: Path) -> None:
    files: Any = s3fs.S3FileSystem(
        key=served.key.access_key_id,
        secret=served.key.secret_access_key,
        endpoint_url=served.url,
        client_kwargs={"region_name": "us-east-1"},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    files.mkdir(f"{bucket}-s3fs")
    files.rmdir(f"{bucket}-s3fs")
    with files.open(f"{bucket}/deep/big", "wb", block_size=5 * MIB) as file:
        file.write(DATA)
    with files.open(f"{bucket}/deep/big", "rb") as file:
        file.seek(7 * MIB)
        assert file.read(100) == DATA[7 * MIB : 7 * MIB + 100]
    for key in ODD_KEYS:
        files.pipe(f"{bucket}/{key}", key.encode())
    assert sorted(files.find(bucket)) == sorted(f"{bucket}/{key}" for key in ["deep/big", *ODD_KEYS])
    assert files.isdir(f"{bucket}/deep")
    assert files.cat(f"{bucket}/{ODD_KEYS[1]}") == ODD_KEYS[1].encode()
    files.get(f"{bucket}/deep/big", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == DATA
    files.mv(f"{bucket}/deep/big", f"{bucket}/deep/moved")
    assert files.ls(f"{bucket}/deep") == [f"{bucket}/deep/moved"]
    files.rm(bucket, recursive=True)
    assert not files.exists(f"{bucket}/plain")


def test_minio(served: Endpoint, bucket: str, tmp_path: Path) -> None:
    client = minio.Minio(
        f"127.0.0.1:{served.port}",
        access_key=served.key.access_key_id,
        secret_key=served.key.secret_access_key,
        secure=False,
    )
    assert client.bucket_exists(bucket)
    client.put_object(bucket, "big", io.BytesIO(DATA), -1, part_size=5 * MIB, metadata={"who": "me"})
    for key in ODD_KEYS:
        client.put_object(bucket, key, io.BytesIO(key.encode()), len(key.encode()))
    found = client.stat_object(bucket, "big")
    assert found.size == len(DATA)
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-who"] == "me"
    client.fget_object(bucket, "big", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == DATA
    with client.get_object(bucket, "big", offset=50, length=60) as answer:
        assert answer.read() == DATA[50:110]
    names = [found.object_name for found in client.list_objects(bucket, recursive=True)]
    assert names == sorted(["big", *ODD_KEYS], key=lambda key: key.encode())
    assert list(client.remove_objects(bucket, map(minio.deleteobjects.DeleteObject, names))) == []
    assert list(client.list_objects(bucket)) == []


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed here (Debian: apt install rclone)")
def test_rclone_syncs_both_ways(served: Endpoint, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub dir").mkdir(parents=True)
    for number in range(12):
        (source / "sub dir" / f"{number}+é.txt").write_text(f"file {number}")
    (source / "big").write_bytes(DATA)
    words = {
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": served.url,
        "RCLONE_S3_ACCESS_KEY_ID": served.key.access_key_id,
        "RCLONE_S3_SECRET_ACCESS_KEY": served.key.secret_access_key,
        "RCLONE_S3_CHUNK_SIZE": "5Mi",
        "RCLONE_S3_UPLOAD_CUTOFF": "5Mi",
        "RCLONE_CONFIG": str(tmp_path / "none"),
    }

    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}

    def rclone(*arguments: str) -> str:
        line = ["rclone", "--retries", "1", *arguments]
        done = subprocess.run(line, env=inherited | words, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rclone("sync", str(source), f":s3:{bucket}/tree")
    rclone("check", str(source), f":s3:{bucket}/tree")
    target = tmp_path / "target"
    rclone("sync", f":s3:{bucket}/tree", str(target))
    for path in source.rglob("*"):
        if path.is_file():
            assert (target / path.relative_to(source)).read_bytes() == path.read_bytes()
    (source / "big").unlink()
    rclone("sync", str(source), f":s3:{bucket}/tree")
    assert "big" not in rclone("lsf", "-R", f":s3:{bucket}/tree")
    rclone("purge", f":s3:{bucket}")


def test_s3torchconnector(served: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = pytest.importorskip("torch")
    connector: Any = pytest.importorskip("s3torchconnector")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", served.key.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", served.key.secret_access_key)
    config = connector.S3ClientConfig(force_path_style=True)
    options = {"region": "us-east-1", "endpoint": served.url, "s3client_config": config}
    checkpoint = connector.S3Checkpoint(**options)
    state = {"weight": torch.arange(3 * MIB, dtype=torch.float32)}
    with checkpoint.writer(f"s3://{bucket}/epoch-1") as writer:
        torch.save(state, writer)
    with checkpoint.reader(f"s3://{bucket}/epoch-1") as reader:
        assert torch.equal(torch.load(reader)["weight"], state["weight"])
    dataset = connector.S3MapDataset.from_prefix(f"s3://{bucket}/", **options)
    assert [entry.key for entry in dataset] == ["epoch-1"]
