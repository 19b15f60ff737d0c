"""A volume whose metadata is in PostgreSQL, through every front end: what holds on a metadata file holds there."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.checkpoint.test_ranks import check_state, run_ranks
from tests.mount.volumes import Lab, lab, wait_until
from tests.postgres.server import Server
from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.config import parse_code
from tieredfs.errors import VolumeExistsError, VolumeNotFoundError
from tieredfs.host import local_host
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, Volume, format_volume
from tieredfs.volume.places import ENVIRONMENT
from tieredfs_client.checkpoint import CheckpointManager

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What volumes keep on this host."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def url(server: Server, database: str) -> str:
    return server.url(database)


@pytest.fixture
def made(url: str) -> Iterator[Lab]:
    with lab(url) as made:
        made.format("rs:2+1", 3)
        yield made


@pytest.fixture
def volume(made: Lab) -> Iterator[FileSystem]:
    with FileSystem.at(made.url, purpose="test") as volume:
        yield volume


def written(root: Path, count: int) -> dict[str, bytes]:
    """Files small and large, in directories."""
    contents = {}
    for number in range(count):
        name = f"run-{number % 4}/file-{number}"
        contents[name] = os.urandom(100 + number * 1000) if number % 8 else os.urandom(5 * MIB)
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(contents[name])
    return contents


def check(root: Path, contents: dict[str, bytes]) -> None:
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == contents


# ---- mounts and verbs ------------------------------------------------------------------------------------------------


def test_a_killed_daemon_an_empty_cache_and_every_verb(made: Lab, server: Server, database: str, state: Path) -> None:
    made.mount()
    contents = written(made.mnt, 24)
    os.kill(made.daemon_pid(), signal.SIGKILL)
    contents |= {"late": b"x" * 10_000}
    (made.mnt / "late").write_bytes(contents["late"])
    check(made.mnt, contents)
    logs = list(state.glob("*/mounts.log"))
    assert [log.read_text().count("a new daemon took over") for log in logs] == [1]
    made.unmount(flush=True)

    assert made.json("status", made.url)["safe"] is True
    assert made.json("fsck", made.url)["findings"] == []
    assert made.json("gc", made.url)["chunks_deleted"] == 0
    assert len(made.json("disk", "list", made.url)) == 3
    made.mount(cache_dir=str(made.root / "another-cache"))
    check(made.mnt, contents)
    assert made.run("destroy", made.url, "--yes").returncode == 3, "refused while it is mounted"
    made.unmount()
    with pytest.raises(VolumeExistsError):
        made.format("rs:2+1", 3)
    made.format("rs:2+1", 3, force=True)
    assert made.run("destroy", made.url, "--yes").returncode == 0
    with pytest.raises(VolumeNotFoundError):
        Volume.open(made.url, purpose="test")
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'tieredfs'", database=database) == []


def test_the_portable_driver(made: Lab) -> None:
    made.mount(driver="fuse-python")
    contents = written(made.mnt, 9)
    (made.mnt / "run-0" / "file-0").rename(made.mnt / "moved")
    contents["moved"] = contents.pop("run-0/file-0")
    check(made.mnt, contents)
    made.unmount(flush=True)
    assert made.json("fsck", made.url)["findings"] == []


def test_a_mount_is_told_what_another_process_changes(made: Lab, volume: FileSystem) -> None:
    made.mount()
    (made.mnt / "file").write_bytes(b"short")
    made.ask("flush")
    assert (made.mnt / "file").stat().st_size == 5
    with pytest.raises(FileNotFoundError):
        (made.mnt / "new").stat()
    for name, content in ((b"file", b"much longer"), (b"new", b"new")):
        writing = volume.create()
        os.write(writing.descriptor, content)
        writing.commit(name)
    wait_until(lambda: made.ask("status")["mount"]["pushed"] >= 2, "the mount was told")
    wait_until(lambda: (made.mnt / "file").read_bytes() == b"much longer", "the content is another")
    assert (made.mnt / "new").read_bytes() == b"new"


def test_a_server_that_restarts_under_a_mount_is_waited_for(state: Path) -> None:
    del state
    own = Server()
    try:
        with lab(own.url(own.database())) as made:
            made.format("rs:2+1", 3)
            made.mount()
            contents = written(made.mnt, 8)
            own.stop(signal.SIGQUIT)
            program = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(b'during')"
            with subprocess.Popen([sys.executable, "-c", program, str(made.mnt / "meanwhile")]) as writer:
                own.start()
                assert writer.wait(WAIT_S) == 0
            check(made.mnt, contents | {"meanwhile": b"during"})
            made.unmount(flush=True)
            assert made.json("fsck", made.url)["findings"] == []
    finally:
        own.close()


def test_a_snapshot_while_a_mount_writes_and_back(made: Lab) -> None:
    """Directories get one name after another meanwhile; so at any moment each has one."""
    mounted = made.mount()
    run = made.mnt / "run"
    run.mkdir()
    written(run, 100)
    stop = threading.Event()
    moved = dict.fromkeys("abc", 0)

    def move(letter: str) -> None:
        (run / f"{letter}-0").mkdir()
        while not stop.is_set():
            (run / f"{letter}-{moved[letter]}").rename(run / f"{letter}-{moved[letter] + 1}")
            moved[letter] += 1

    movers = [threading.Thread(target=move, args=(letter,)) for letter in moved]
    for mover in movers:
        mover.start()
    wait_until(lambda: all(moved.values()), "all are on the move")
    try:
        taken = [made.json("snapshot", "create", str(run), f"{number}") for number in range(2)]
    finally:
        stop.set()
        for mover in movers:
            mover.join()
    assert min(moved.values()) > 10
    for each in taken:
        wait_until(Path(each["place"]).exists, "the mount hears of it")
        assert [len(list(Path(each["place"]).glob(f"{letter}-*"))) for letter in moved] == [1, 1, 1]
        assert (each["file_count"], each["open_file_count"]) == (100, 0)
    before = {path.name: path.read_bytes() for path in run.rglob("file-*")}
    for path in run.rglob("file-*"):
        path.write_bytes(b"ruined")
    assert made.json("restore", str(run), "0", "--force")["file_count"] == 100
    wait_until(lambda: {path.name: path.read_bytes() for path in run.rglob("file-*")} == before, "the mount shows it")
    assert made.json("snapshot", "rm", str(run), "0")["entry_count"] == 108
    assert [row["name"] for row in made.json("snapshot", "list", str(run))] == ["1"]
    assert mounted.mount_id
    made.unmount(flush=True)
    assert made.json("fsck", made.url)["clean"] is True


def test_a_volume_moves_from_a_file_to_a_server_and_back_by_its_dumps(made: Lab, tmp_path: Path) -> None:
    """Also the way back when a database was lost."""
    made.mount()
    contents = written(made.mnt, 12)
    made.unmount(flush=True)
    made.json("dump", made.url, str(tmp_path / "of-server"))
    on_file = Lab(made.root)
    made.json("load", on_file.url, str(tmp_path / "of-server"))
    made.json("dump", on_file.url, str(tmp_path / "of-file"))
    assert made.run("load", made.url, str(tmp_path / "of-file")).returncode == 2, "there is a volume"
    elsewhere = Lab(made.root, meta_url=f"{made.url}?schema=elsewhere")
    assert made.json("load", elsewhere.url, str(tmp_path / "of-file"))["away"] == {}
    assert made.json("fsck", elsewhere.url)["findings"] == []
    made.meta_url = elsewhere.url
    made.mount(cache_dir=str(made.root / "another-cache"))
    check(made.mnt, contents)
    made.unmount()


def test_another_host_that_reaches_the_disks_sees_what_is_stored(made: Lab) -> None:
    """A host here is a name: the disks are reachable from both, their SSD directories are apart."""
    here, there = (replace(local_host(), name=name) for name in ("here", "there"))
    slots = made.root / "slots-of-there"
    with (
        FileSystem.at(made.url, purpose="test", host=here) as first,
        FileSystem.at(made.url, purpose="test", host=there, cache_dir=str(slots)) as second,
    ):
        writing = first.create()
        os.write(writing.descriptor, b"content")
        writing.commit(b"file")
        assert second.stat(b"file").size_bytes == 7, "a name is seen at once"
        first.flush(WAIT_S)
        with second.open(b"file") as reading:
            target = memoryview(bytearray(7))
            assert reading.read_into(0, target) == 7
        assert bytes(target) == b"content"
        second.rename(b"file", b"renamed")
        assert [entry.name for entry, _ in first.entries(b"")] == [b"renamed"]


# ---- S3 --------------------------------------------------------------------------------------------------------------


@contextmanager
def served(url: str) -> Iterator[Endpoint]:
    with endpoint("--workers", "2", database=url) as made:
        wait_until(lambda: (made.root / "log").read_text().count("serving postgresql") == 2, "both workers serve")
        yield made


def test_s3_with_several_workers(url: str) -> None:
    with served(url) as made:
        clients: list[Any] = [made.client() for _ in range(4)]
        bucket = new_bucket(clients[0])
        contents = {f"key-{number:02}": os.urandom(1000 + 40_000 * number) for number in range(24)}
        for number, (key, content) in enumerate(contents.items()):
            clients[number % 4].put_object(Bucket=bucket, Key=key, Body=content)
        upload = clients[1].create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
        parts = [os.urandom(5 * MIB), os.urandom(1000)]
        tags = [
            {
                "PartNumber": number,
                "ETag": clients[number].upload_part(
                    Bucket=bucket, Key="large", UploadId=upload, PartNumber=number, Body=part
                )["ETag"],
            }
            for number, part in enumerate(parts, start=1)
        ]
        clients[3].complete_multipart_upload(
            Bucket=bucket, Key="large", UploadId=upload, MultipartUpload={"Parts": tags}
        )
        contents["large"] = b"".join(parts)
        for client in clients:
            listed = client.list_objects_v2(Bucket=bucket)["Contents"]
            assert {entry["Key"]: entry["Size"] for entry in listed} == {k: len(v) for k, v in contents.items()}
        for number, (key, content) in enumerate(contents.items()):
            assert clients[(number + 1) % 4].get_object(Bucket=bucket, Key=key)["Body"].read() == content
        clients[0].delete_object(Bucket=bucket, Key="large")
        assert all("large" not in str(client.list_objects_v2(Bucket=bucket)) for client in clients)
        assert made.stop() == 0


# ---- checkpoints and datasets ----------------------------------------------------------------------------------------


def test_checkpoints_of_several_ranks(url: str, tmp_path: Path) -> None:
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    ended = run_ranks(url, 3, [10, 20], job="j")
    assert [(each.code, [report.get("error") for report in each.reports]) for each in ended] == [(0, [None, None])] * 3
    for rank in range(3):
        with CheckpointManager(url, "runs/r", rank=rank, world_size=3, job="k") as manager:
            for step in (10, 20):
                check_state(manager.load(step), step, rank, 3)


def test_drop_ins_and_datasets(made: Lab) -> None:
    table = pa.table({"number": pa.array(range(10_000)), "text": [f"row {number}" for number in range(10_000)]})
    target = f"tieredfs://{made.url}!/datasets/part.parquet"
    with fsspec.open(target, "wb") as file:
        pq.write_table(table, file)
    with fsspec.open(target, "rb") as file:
        assert pq.read_table(file).equals(table)
    file_system, path = fsspec.core.url_to_fs(target)
    assert file_system.unstrip_protocol(path) == target
    file_system.close()
    rows = json.loads(made.run("dataset", "head", made.url, "datasets", "-n", "3", "--json").stdout)
    assert [row["number"] for row in rows] == [0, 1, 2]
