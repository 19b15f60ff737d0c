"""Volumes on buckets, end to end: mounted, drained, evicted, read back, checked, rebuilt, emptied, collected.

moto is the bucket, and our own S3 endpoint once.
"""

import base64
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from tests.buckets.moto_server import CREDENTIALS, Moto
from tests.mount import volumes
from tests.mount.volumes import Lab
from tests.s3.endpoint import endpoint
from tieredfs.config import BucketUrl, parse_code
from tieredfs.limits import DUMPS_KEPT, MIB
from tieredfs.model import Durability
from tieredfs.testing.wire_faults import FaultyWire, WireFault
from tieredfs.volume import FileSystem, Volume, caretaker, format_volume

WAIT_S = 60.0
UNTIL_CHANCE_HELPS = [b"/f%d" % number for number in range(40)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with volumes.lab() as made:
        made.mnt.mkdir()
        yield made


def format_over(lab: Lab, urls: list[str], code: str) -> None:
    format_volume(lab.url, urls, code=parse_code(code), durability=Durability.SSD, name="lab", block_bytes=4 * MIB)


def write_files(folder: Path, count: int = 3, size_bytes: int = 5 * MIB + 123) -> dict[str, str]:
    """Names and digests of what was written."""
    found = {}
    for number in range(count):
        content = os.urandom(size_bytes)
        (folder / f"f{number}").write_bytes(content)
        found[f"f{number}"] = hashlib.sha256(content).hexdigest()
    return found


def digests(folder: Path, names: dict[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def evict(lab: Lab, names: dict[str, str]) -> None:
    assert lab.ask("evict", paths=list(names))["kept"] == 0


def chunk_keys(moto: Moto, bucket: str) -> list[str]:
    return [key for key in moto.keys(bucket) if "/chunks/" in key]


LAYOUTS = [("replica:1", 1, 0), ("replica:2", 2, 0), ("rs:2+1", 3, 0), ("rs:2+1", 1, 2)]


@pytest.mark.mount
@pytest.mark.parametrize(("code", "buckets", "disks"), LAYOUTS)
def test_the_life_of_a_volume_on_buckets(lab: Lab, moto: Moto, code: str, buckets: int, disks: int) -> None:
    names = [moto.new_bucket() for _ in range(buckets)]
    urls = [str(moto.url(name)) for name in names] + [f"disk://{lab.root}/d{number}" for number in range(disks)]
    format_over(lab, urls, code)
    lab.mount()
    files = write_files(lab.mnt)
    lab.unmount(flush=True)
    assert all(chunk_keys(moto, name) for name in names)
    lab.mount()
    evict(lab, files)
    assert digests(lab.mnt, files) == files
    done = lab.run("fsck", lab.url)
    assert done.returncode == 0, done.stdout + done.stderr
    (lab.mnt / "f0").unlink()
    lab.unmount(flush=True)
    lab.json("gc", lab.url)
    assert lab.json("dump", lab.url)["problems"] == []
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in lab.run("status", lab.url, "--json").stdout
    assert lab.run("destroy", lab.url, "--yes").returncode == 0
    assert all(moto.keys(name) == [] for name in names)


def test_damage_in_buckets_is_found_and_mended(lab: Lab, moto: Moto) -> None:
    names = [moto.new_bucket() for _ in range(3)]
    format_over(lab, [str(moto.url(name)) for name in names], "rs:2+1")
    content = os.urandom(4 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        with volume.create() as file:
            os.pwrite(file.descriptor, content, 0)
            file.commit(b"/f")
        volume.flush(WAIT_S)
    first, second = chunk_keys(moto, names[0])[0], chunk_keys(moto, names[1])[0]
    moto.client.put_object(Bucket=names[0], Key=first, Body=moto.read(names[0], first)[:-5])
    assert lab.run("fsck", lab.url).returncode == 1
    assert "repaired" in lab.run("fsck", lab.url, "--repair").stdout
    assert lab.run("fsck", lab.url).returncode == 0
    moto.client.delete_object(Bucket=names[1], Key=second)
    assert lab.run("fsck", lab.url).returncode == 1
    assert "repaired" in lab.run("fsck", lab.url, "--repair").stdout
    assert lab.run("fsck", lab.url).returncode == 0
    assert chunk_keys(moto, names[1]) == [second]


def stored(volume: FileSystem, path: bytes, content: bytes) -> None:
    with volume.create() as file:
        os.pwrite(file.descriptor, content, 0)
        file.commit(path)
    volume.flush(WAIT_S)


def read_back(lab: Lab, path: bytes) -> bytes:
    """By a process of its own, which has it on no SSD."""
    with FileSystem.at(lab.url, purpose="test") as volume:
        volume.evict(path)
        with volume.open(path) as file:
            target = bytearray(file.attributes.size_bytes)
            assert file.read_into(0, memoryview(target)) == len(target)
    return bytes(target)


def test_a_lost_bucket_is_rebuilt_and_a_disk_moves_to_a_bucket(lab: Lab, moto: Moto) -> None:
    names = [moto.new_bucket() for _ in range(4)]
    disk = f"disk://{lab.root}/d0"
    format_over(lab, [disk, *(str(moto.url(name)) for name in names[:3])], "rs:2+1")
    content = os.urandom(9 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        stored(volume, b"/f", content)
    moto.client.delete_objects(Bucket=names[0], Delete={"Objects": [{"Key": key} for key in moto.keys(names[0])]})
    moto.client.delete_bucket(Bucket=names[0])
    assert read_back(lab, b"/f") == content
    added = lab.json("disk", "add", lab.url, str(moto.url(names[3])))
    assert added["domain"] == f"bucket-{names[3]}"
    assert lab.json("disk", "rebuild", lab.url, "2")["state"] == "removed"
    assert lab.json("disk", "drain", lab.url, "1")["state"] == "removed"
    assert not list((lab.root / "d0").glob("chunks/*/*"))
    assert read_back(lab, b"/f") == content
    assert lab.run("fsck", lab.url).returncode == 0


def test_lost_metadata_come_back_and_take_the_buckets_with_them(lab: Lab, moto: Moto) -> None:
    format_over(lab, [str(moto.url(moto.new_bucket())) for _ in range(2)], "replica:2")
    content = os.urandom(3 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        stored(volume, b"/f", content)
    dump = lab.root / "dump"
    assert lab.run("dump", lab.url, str(dump)).returncode == 0
    old = lab.url.replace("volume.db", "old.db")
    for path in lab.root.glob("volume.db*"):
        path.rename(lab.root / path.name.replace("volume", "old"))
    assert lab.json("load", lab.url, str(dump))["away"] == {}
    assert read_back(lab, b"/f") == content
    assert {disk["reachable"] for disk in lab.json("disk", "list", old)} == {False}, "they are not its any more"


def test_the_machine_with_the_metadata_is_lost_and_all_comes_back_from_buckets(
    lab: Lab, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caretaker, "CARE_FIRST_S", 0.0)
    monkeypatch.setattr(caretaker, "ABANDONED_LOOK_S", 0.05)
    names = [moto.new_bucket() for _ in range(2)]
    urls = [str(moto.url(name)) for name in names]
    format_over(lab, urls, "replica:2")
    content = os.urandom(3 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        stored(volume, b"/f", content)
        deadline_s = time.monotonic() + WAIT_S
        while not all(dump_keys(moto, name) for name in names):  # by itself
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    keys = dump_keys(moto, names[0])
    assert dump_keys(moto, names[1]) == keys
    for path in lab.root.glob("volume.db*"):
        path.unlink()
    shutil.rmtree(lab.root / "clients")
    report = lab.json("load", lab.url, *urls)
    assert report["dump"] == f"s3://{names[0]}/{keys[-1]}"
    assert (report["away"], report["unusable"]) == ({}, [])
    assert read_back(lab, b"/f") == content
    with Volume.open(lab.url, purpose="test") as opened:
        for _ in range(DUMPS_KEPT):
            newest = opened.dump_to_disks(lambda *_: None).paths
        assert [f"s3://{name}/{dump_keys(moto, name)[-1]}" for name in names] == list(newest)
        assert [len(dump_keys(moto, name)) for name in names] == [DUMPS_KEPT] * 2, "older ones went"
        moto.client.delete_object(Bucket=names[0], Key="p/tieredfs-disk.json")
        dumped = opened.dump_to_disks(lambda *_: None)
        assert [path.split("/")[2] for path in dumped.paths] == names[1:]
        assert names[0] in dumped.problems[0]


def dump_keys(moto: Moto, bucket: str) -> list[str]:
    return [key for key in moto.keys(bucket) if "/metadata/" in key]


def test_garbage_in_a_bucket_is_collected(lab: Lab, moto: Moto) -> None:
    name = moto.new_bucket()
    format_over(lab, [str(moto.url(name))], "replica:1")
    with FileSystem.at(lab.url, purpose="test") as volume:
        stored(volume, b"/f", os.urandom(MIB))
    key = chunk_keys(moto, name)[0]
    folder, _, file = key.rpartition("/")
    stray = f"{folder}/00000000000f00{file[14:16]}.00"
    moto.client.put_object(Bucket=name, Key=stray, Body=moto.read(name, key))
    lab.json("gc", lab.url)
    assert chunk_keys(moto, name) == [key]


def stored_with_data_in(volume: FileSystem, name: bytes, content: bytes, moto: Moto, bucket: str) -> bool:
    """Stores the file. True: the bucket has a chunk of it that reading asks for, not just parity."""
    before = set(chunk_keys(moto, bucket))
    stored(volume, name, content)
    return any(not key.endswith(".02") for key in set(chunk_keys(moto, bucket)) - before)


def test_reading_goes_on_while_a_bucket_fails(lab: Lab, moto: Moto) -> None:
    names = [moto.new_bucket() for _ in range(3)]
    wire = FaultyWire(moto.port)
    try:
        urls = [moto.url(names[0], port=wire.port), *(moto.url(name) for name in names[1:])]
        format_over(lab, [str(url) for url in urls], "rs:2+1")
        content = os.urandom(8 * MIB)
        with FileSystem.at(lab.url, purpose="test") as volume:
            name = next(
                name for name in UNTIL_CHANCE_HELPS if stored_with_data_in(volume, name, content, moto, names[0])
            )
            for fault in (WireFault.BUSY, WireFault.RESET, WireFault.HANG):
                wire.fail("GET", fault)
                volume.evict(name)
                with volume.open(name) as file:
                    target = bytearray(len(content))
                    assert file.read_into(0, memoryview(target)) == len(content)
                assert bytes(target) == content
            assert wire.happened.total() > 0
    finally:
        wire.close()


# ---- our own endpoint as the bucket ----------------------------------------------------------------------------------


def test_a_volume_on_the_s3_endpoint_of_another(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint("--workers", "1") as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.key.secret_access_key)
        client: Any = server.client()
        client.create_bucket(Bucket="chunks")
        wire = FaultyWire(server.port)
        try:
            urls = [BucketUrl("chunks", f"p{at}", f"http://127.0.0.1:{wire.port}", "us-east-1") for at in range(3)]
            format_over(lab, [str(url) for url in urls], "rs:2+1")
            content = os.urandom(8 * MIB + 7)
            with FileSystem.at(lab.url, purpose="test") as volume:
                stored(volume, b"/f", content)
            assert read_back(lab, b"/f") == content
            assert wire.requests["PUT"] >= 9
            assert wire.connections < wire.requests.total() / 2, "connections are kept"
            assert lab.run("fsck", lab.url).returncode == 0
            key = client.list_objects_v2(Bucket="chunks", Prefix="p0/chunks")["Contents"][0]["Key"]
            head = client.head_object(Bucket="chunks", Key=key, ChecksumMode="ENABLED")
            body = client.get_object(Bucket="chunks", Key=key)["Body"].read()
            assert base64.b64decode(head["ChecksumCRC32C"]) == google_crc32c.value(body).to_bytes(4, "big")
            assert lab.run("destroy", lab.url, "--yes").returncode == 0
            assert client.list_objects_v2(Bucket="chunks")["KeyCount"] == 0
        finally:
            wire.close()
            client.close()


def test_a_bucket_that_cannot_be_asked_is_told_without_a_secret(lab: Lab) -> None:
    url = BucketUrl("bucket", "p", "http://127.0.0.1:9", "us-east-1")
    done = lab.run("format", lab.url, "--data", str(url), "--code", "replica:1")
    assert done.returncode == 3
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (lab.root / "volume.db").exists()
