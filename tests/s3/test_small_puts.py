"""Small uploads that are carried out together: one transaction, and yet each succeeds or fails by itself."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tieredfs.config import parse_code
from tieredfs.errors import NoSpaceError, UnavailableError
from tieredfs.host.files import LocalFiles
from tieredfs.meta import names
from tieredfs.model import Durability, FileKind
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.contract import Naming, Writing
from tieredfs_gateway.s3 import conditions, record
from tieredfs_gateway.s3.bucket_rules import VERSIONING
from tieredfs_gateway.s3.checksums import Announced
from tieredfs_gateway.s3.conditions import Conditions
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import Response
from tieredfs_gateway.s3.ingest import Expected, Received
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.small_puts import SmallPut, SmallPuts
from tieredfs_gateway.s3.store import Committed, Store

ABSENT = Conditions(None, "*", None, None)
PLAIN, KEPT = b"plain-bucket", b"kept-bucket"


@pytest.fixture(params=[Durability.SSD, Durability.STORE])
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FileSystem]:
    url = f"sqlite://{tmp_path}/volume.db"
    format_volume(url, [f"disk://{tmp_path}/d"], code=parse_code("replica:1"), durability=request.param, name="small")
    with FileSystem.at(url, purpose="test") as opened:
        for bucket in (PLAIN, KEPT):
            opened.make_directories(bucket)
        opened.set_xattr(KEPT, VERSIONING, b"Enabled")
        yield opened


def put_of(
    store: Store,
    bucket: bytes,
    key: bytes,
    content: bytes,
    asked: Conditions = conditions.NONE,
    md5: bytes | None = None,
) -> SmallPut:
    def described(received: Received) -> Record:
        return Record(received.md5, record.CREATED_VERSION)

    def alone(writing: Writing, received: Received) -> Response:
        return answer(received, store.commit(bucket, key, writing, described(received), asked=asked))

    def plan(received: Received) -> Naming | None:
        return store.plan(bucket, key, described(received), asked=asked)

    def answer(received: Received, done: Committed) -> Response:
        return Response(200, [("etag", received.md5), ("version", done.version_id or "")])

    expected = Expected(len(content), Announced(md5, None, None, trailer=False), None)
    return SmallPut([content], lambda: expected, lambda: None, alone, plan, answer)


def carried_out(volume: FileSystem, puts: list[SmallPut]) -> list[Response | BaseException]:
    """All of them given in one turn of the loop: one group."""

    async def run() -> list[Response | BaseException]:
        small = SmallPuts(volume, executor)
        try:
            async with asyncio.timeout(60):
                return await asyncio.gather(*map(small.store, puts), return_exceptions=True)
        finally:
            small.close()

    with ThreadPoolExecutor(4) as executor:
        return asyncio.run(run())


def content_of(store: Store, bucket: bytes, key: bytes) -> bytes:
    reading, found = store.open(bucket, key)
    with reading:
        target = bytearray(found.attributes.size_bytes)
        assert reading.read_into(0, memoryview(target)) == len(target)
    return bytes(target)


def test_each_of_a_group_for_itself(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(volume, volume.volume.host.clock)
    put = partial(put_of, store)
    assert carried_out(volume, [put(PLAIN, b"there", b"before")])
    engine, transactions = volume.volume.metadata._engine, 0
    write = engine.write

    def counted(function: Any) -> Any:
        nonlocal transactions
        transactions += threading.current_thread().name.startswith("s3-small")
        return write(function)

    plain = [put(PLAIN, b"k%d" % number, b"%d" % number) for number in range(20)]
    with monkeypatch.context() as patched:
        patched.setattr(engine, "write", counted)
        done = carried_out(volume, plain)
    assert [answer.status for answer in done if isinstance(answer, Response)] == [200] * 20
    if volume.volume.config.durability is Durability.SSD:
        assert transactions == 1
    assert [content_of(store, PLAIN, b"k%d" % number) for number in range(20)] == [b"%d" % n for n in range(20)]

    mixed = [
        put(PLAIN, b"wrong", b"x", md5=hashlib.md5(b"y").digest()),
        put(PLAIN, b"there", b"after", ABSENT),
        put(PLAIN, b"new", b"first", ABSENT),
        put(PLAIN, b"new", b"second", ABSENT),
        put(KEPT, b"k", b"one"),
        put(KEPT, b"k", b"two"),
        put(PLAIN, b"k0/below/a/directory", b"deep"),
        put(b"no-such-bucket", b"k", b"x"),
        put(PLAIN, b"last", b"last"),
    ]
    said = [each.code if isinstance(each, S3Error) else each for each in carried_out(volume, mixed)]
    assert [each for each in said if isinstance(each, str)] == [
        "BadDigest",
        "PreconditionFailed",
        "PreconditionFailed",
        "NoSuchBucket",
    ]
    assert [isinstance(each, Response) for each in said] == [False, False, True, False, True, True, True, False, True]
    found = {key: content_of(store, PLAIN, key) for key in (b"there", b"new", b"k0", b"k0/below/a/directory", b"last")}
    assert found == {
        b"there": b"before",
        b"new": b"first",
        b"k0": b"0",
        b"k0/below/a/directory": b"deep",
        b"last": b"last",
    }
    assert volume.look([PLAIN + b"/k0"])[0][0].kind is FileKind.DIRECTORY  # type: ignore[index]
    assert [type(each) for each in carried_out(volume, [put(PLAIN, b"k0", b"again"), put(PLAIN, b"k1", b"too")])] == [
        Response
    ] * 2
    assert [content_of(store, PLAIN, key) for key in (b"k0", b"k0/below/a/directory", b"k1")] == [
        b"again",
        b"deep",
        b"too",
    ]
    assert content_of(store, KEPT, b"k") == b"two"
    assert len(list(store.archive.shelved(KEPT, b"k"))) == 1, "the version before is on its shelf"


def test_a_group_that_fails_fails_for_all_and_leaves_nothing(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(volume, volume.volume.host.clock)
    puts = [put_of(store, PLAIN, b"k%d" % number, b"x") for number in range(3)]

    def fail(*_: object) -> None:
        raise UnavailableError("the disk of the metadata is full")

    with monkeypatch.context() as patched:
        patched.setattr(names, "put_entry", fail)
        assert [type(outcome) for outcome in carried_out(volume, puts)] == [UnavailableError] * 3
    assert volume.entries(PLAIN) == []
    assert [type(outcome) for outcome in carried_out(volume, puts)] == [Response] * 3
    assert [entry.name for entry, _ in volume.entries(PLAIN)] == [b"k0", b"k1", b"k2"]


@pytest.mark.parametrize("volume", [Durability.SSD], indirect=True)
def test_a_group_whose_sync_fails_is_refused_and_the_next_one_goes_elsewhere(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync nobody knows what the disk has; the kernel says so once only."""
    store = Store(volume, volume.volume.host.clock)
    assert [type(each) for each in carried_out(volume, [put_of(store, PLAIN, b"before", b"b")])] == [Response]
    puts = [put_of(store, PLAIN, b"k%d" % number, b"%d" % number) for number in range(6)]
    sync, failed = LocalFiles.sync, list[str]()

    def dying(files: LocalFiles, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if "/segments/" in path and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "the disk is dying")
        sync(files, descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "sync", dying)
        assert [type(outcome) for outcome in carried_out(volume, puts)] == [OSError] * 6
        assert [entry.name for entry, _ in volume.entries(PLAIN)] == [b"before"]
        assert [type(outcome) for outcome in carried_out(volume, puts)] == [Response] * 6
    assert [content_of(store, PLAIN, b"k%d" % number) for number in range(6)] == [b"%d" % n for n in range(6)]
    assert content_of(store, PLAIN, b"before") == b"b"
    volume.flush(30)
    assert not os.path.exists(failed[0]), "what is left of it is used no more"


@pytest.mark.parametrize("volume", [Durability.SSD], indirect=True)
@pytest.mark.parametrize("refusals", [1, 2])
def test_without_room_for_a_segment_a_group_waits_for_some_and_is_refused_if_there_is_none(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """Others filled the file system since the evictor's last look."""
    store = Store(volume, volume.volume.host.clock)
    puts = [put_of(store, PLAIN, b"k%d" % number, b"%d" % number) for number in range(6)]
    write, refused = LocalFiles.write, list[str]()

    def full(files: LocalFiles, descriptor: int, buffers: list[bytes], offset: int) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if "/segments/" in path and len(refused) < refusals:
            refused.append(path)
            raise OSError(errno.ENOSPC, "no space left")
        return write(files, descriptor, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "write", full)
        outcomes = carried_out(volume, puts)
    assert len(refused) == refusals
    assert [type(outcome) for outcome in outcomes] == [Response if refusals == 1 else NoSpaceError] * 6
    assert [type(outcome) for outcome in carried_out(volume, puts)] == [Response] * 6
    assert [content_of(store, PLAIN, b"k%d" % number) for number in range(6)] == [b"%d" % n for n in range(6)]


def test_large_and_small_bodies_of_one_group_come_back(volume: FileSystem) -> None:
    """More than one segment holds, an empty body, and one that is a byte longer than a page."""
    store = Store(volume, volume.volume.host.clock)
    bodies = [os.urandom(size) for size in (0, 1, 63, 64, 65, 4032, 4096, 4097, 8129, 262_144)] + [
        os.urandom(262_144) for _ in range(40)
    ]
    puts = [put_of(store, PLAIN, b"k%02d" % number, body) for number, body in enumerate(bodies)]
    assert {type(outcome) for outcome in carried_out(volume, puts)} == {Response}
    for _ in range(2):
        assert [content_of(store, PLAIN, b"k%02d" % number) for number in range(len(bodies))] == bodies
        volume.flush(60)
