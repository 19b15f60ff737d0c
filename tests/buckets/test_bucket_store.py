"""A bucket as a chunk store: conformance, identity, and wires and servers on bad days."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader

from tests.buckets.moto_server import CREDENTIALS, Moto
from tieredfs.chunk import bucket_client
from tieredfs.chunk.bucket import BucketObjects, BucketSite
from tieredfs.chunk.bucket_client import new_client, translate
from tieredfs.chunk.bucket_dumps import FORGOTTEN_S, BucketDumps
from tieredfs.chunk.directory import DiskIdentity, chunk_file_name
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.remote import RemoteStore
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.config import BucketUrl
from tieredfs.errors import (
    CorruptError,
    ForeignDataError,
    NewerFormatError,
    NoSpaceError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.host import SystemClock, local_host
from tieredfs.limits import BUCKET_BYTES_DEFAULT, CELL_BYTES, DUMP_PIECE_BYTES, MIB
from tieredfs.testing import dump_suite
from tieredfs.testing.chunk_suite import ChunkStoreSuite, name_of, pattern, put, read
from tieredfs.testing.dump_suite import TAKEN_NS, DumpShelfSuite
from tieredfs.testing.wire_faults import FaultyWire, WireFault

IDENTITY = DiskIdentity("volume-1", "disk-1")
OTHER = DiskIdentity("volume-2", "disk-1")


def formatted(url: BucketUrl, identity: DiskIdentity = IDENTITY) -> RemoteStore:
    site = BucketSite(url, local_host())
    site.format(identity)
    store = site.open(identity)
    assert isinstance(store, RemoteStore)
    return store


def key_of(url: BucketUrl, name: ChunkName) -> str:
    return f"{url.prefix}/chunks/{name.block % 256:02x}/{chunk_file_name(name)}"


class TestBucketStoreConforms(ChunkStoreSuite):
    @pytest.fixture(autouse=True)
    def remote(self, moto: Moto) -> None:
        self.moto = moto
        self.url = moto.url(moto.new_bucket(), "a/b")

    def new_store(self, folder: Path) -> ChunkStore:
        return formatted(self.url)

    def raw(self, store: ChunkStore, name: ChunkName) -> bytes | None:
        key = key_of(self.url, name)
        return self.moto.read(self.url.bucket, key) if key in self.moto.keys(self.url.bucket) else None

    def set_raw(self, store: ChunkStore, name: ChunkName, raw: bytes | None) -> None:
        if raw is None:
            self.moto.client.delete_object(Bucket=self.url.bucket, Key=key_of(self.url, name))
        else:
            self.moto.client.put_object(Bucket=self.url.bucket, Key=key_of(self.url, name), Body=raw)


class TestBucketDumpsConform(DumpShelfSuite):
    several_bytes = 100_000  # moto answers 500 to a part now and then when several uploads of parts run at once

    @pytest.fixture(autouse=True)
    def remote(self, moto: Moto) -> None:
        self.moto = moto
        self.url = moto.url(moto.new_bucket(), "a/b")

    def new_shelf(self, folder: Path) -> DumpShelf:
        return formatted(self.url).dumps

    def raw(self, shelf: DumpShelf, name: str) -> bytes | None:
        key = f"a/b/metadata/{name}"
        return self.moto.read(self.url.bucket, key) if key in self.moto.keys(self.url.bucket) else None

    def set_raw(self, shelf: DumpShelf, name: str, raw: bytes | None) -> None:
        key = f"a/b/metadata/{name}"
        if raw is None:
            self.moto.client.delete_object(Bucket=self.url.bucket, Key=key)
        else:
            self.moto.client.put_object(Bucket=self.url.bucket, Key=key, Body=raw)

    def give_away(self, shelf: DumpShelf) -> None:
        BucketSite(self.url, local_host()).give(OTHER)


@pytest.fixture
def url(moto: Moto) -> BucketUrl:
    return moto.url(moto.new_bucket())


@pytest.fixture
def wire(moto: Moto) -> Iterator[FaultyWire]:
    made = FaultyWire(moto.port)
    yield made
    made.close()


@pytest.fixture
def wired(moto: Moto, wire: FaultyWire) -> RemoteStore:
    return formatted(moto.url(moto.new_bucket(), port=wire.port))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_client, "REMOTE_SILENCE_S", 0.5)
    monkeypatch.setattr(bucket_client, "REMOTE_CONNECT_S", 0.5)


# ---- identity --------------------------------------------------------------------------------------------------------


def test_formatting_twice_is_harmless(url: BucketUrl) -> None:
    put(formatted(url), name_of(1), pattern(CELL_BYTES))
    assert read(formatted(url), name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)


def test_a_bucket_of_another_volume_is_refused(url: BucketUrl) -> None:
    formatted(url)
    with pytest.raises(ForeignDataError, match="belongs to volume volume-1"):
        formatted(url, OTHER)
    with pytest.raises(ForeignDataError):
        BucketSite(url, local_host()).open(DiskIdentity("volume-1", "disk-2"))


def test_foreign_objects_are_refused_and_left_alone(moto: Moto, url: BucketUrl) -> None:
    moto.client.put_object(Bucket=url.bucket, Key="p/thesis.tex", Body=b"years of work")
    with pytest.raises(ForeignDataError, match=r"thesis\.tex"):
        formatted(url)
    assert moto.keys(url.bucket) == ["p/thesis.tex"]


def test_a_neighbour_prefix_is_not_ours(moto: Moto, url: BucketUrl) -> None:
    moto.client.put_object(Bucket=url.bucket, Key="prefix-that-begins-alike", Body=b"?")
    store = formatted(url)
    moto.client.put_object(Bucket=url.bucket, Key="p/chunks/ff/note.txt", Body=b"?")
    put(store, name_of(0x1FF), pattern(4096))
    assert list(store.names()) == [name_of(0x1FF)]


def test_of_two_that_format_at_once_one_wins(moto: Moto, url: BucketUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    late = BucketSite(url, local_host())
    monkeypatch.setattr(late, "_refuse_foreign", lambda: formatted(url, OTHER))  # between its look and its claim
    with pytest.raises(ForeignDataError):
        late.format(IDENTITY)
    assert BucketSite(url, local_host()).identity() == OTHER


def test_identities_that_are_broken_or_newer_are_told_apart(moto: Moto, url: BucketUrl) -> None:
    formatted(url)
    for raw, error in ((b"{", CorruptError), (b'{"version":9,"volume_uuid":"","disk_uuid":""}', NewerFormatError)):
        moto.client.put_object(Bucket=url.bucket, Key="p/tieredfs-disk.json", Body=raw)
        with pytest.raises(error):
            BucketSite(url, local_host()).open(IDENTITY)


def test_a_bucket_that_is_not_there_is_unavailable(moto: Moto) -> None:
    site = BucketSite(moto.url("no-such-bucket-anywhere"), local_host())
    for call in (site.identity, lambda: site.format(IDENTITY), lambda: site.open(IDENTITY)):
        with pytest.raises(UnavailableError, match="NoSuchBucket"):
            call()


def test_erasing_leaves_what_is_not_ours(moto: Moto, url: BucketUrl) -> None:
    store = formatted(url)
    for block in range(5):
        put(store, name_of(block), pattern(4096))
    moto.client.put_object(Bucket=url.bucket, Key="p/chunks/01/note.txt", Body=b"mine")
    BucketSite(url, local_host()).erase()
    assert moto.keys(url.bucket) == ["p/chunks/01/note.txt"]


def test_a_bucket_that_was_emptied_is_unavailable_not_empty(moto: Moto, url: BucketUrl) -> None:
    store = formatted(url)
    put(store, name_of(1), pattern(CELL_BYTES))
    for key in moto.keys(url.bucket):
        moto.client.delete_object(Bucket=url.bucket, Key=key)
    for call in (lambda: read(store, name_of(1), 0, 1), lambda: store.info(name_of(1)), lambda: list(store.names())):
        with pytest.raises(UnavailableError):
            call()
    with pytest.raises(UnavailableError):
        store.objects.space()


# ---- space -----------------------------------------------------------------------------------------------------------


def test_without_a_capacity_a_bucket_is_large(url: BucketUrl) -> None:
    assert formatted(url).space().free_bytes == BUCKET_BYTES_DEFAULT


def test_a_capacity_is_kept_to(moto: Moto, url: BucketUrl) -> None:
    small = moto.url(url.bucket, capacity="2MiB")
    store = formatted(small)
    assert store.space().total_bytes == 2 * MIB
    put(store, name_of(1), pattern(MIB))
    with pytest.raises(NoSpaceError):
        put(store, name_of(2), pattern(MIB))
    assert list(store.names()) == [name_of(1)]


# ---- wires and servers on bad days -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [WireFault.BUSY, WireFault.RESET, WireFault.LOST])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_one_failure_is_not_noticed(wired: RemoteStore, wire: FaultyWire, fault: WireFault, method: str) -> None:
    put(wired, name_of(1), pattern(CELL_BYTES, 1))
    wire.fail(method, fault, times=1)
    put(wired, name_of(2), pattern(CELL_BYTES, 2))
    assert read(wired, name_of(2), 0, CELL_BYTES) == pattern(CELL_BYTES, 2)
    wired.delete(name_of(1))
    assert wire.happened == {fault: 1}
    wire.heal()
    assert list(wired.names()) == [name_of(2)]


@pytest.mark.parametrize("fault", [WireFault.BUSY, WireFault.RESET, WireFault.LOST])
def test_a_server_that_keeps_failing_is_unavailable(wired: RemoteStore, wire: FaultyWire, fault: WireFault) -> None:
    put(wired, name_of(1), pattern(CELL_BYTES))
    for method in ("GET", "PUT", "DELETE"):
        wire.fail(method, fault)
    for call in (
        lambda: read(wired, name_of(1), 0, 1),
        lambda: put(wired, name_of(2), pattern(CELL_BYTES)),
        lambda: wired.info(name_of(1)),
        lambda: wired.delete(name_of(3)),
        lambda: list(wired.names()),
        wired.objects.space,
    ):
        with pytest.raises(UnavailableError) as raised:
            call()
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    assert wire.happened[fault] == 6 * bucket_client.ATTEMPTS, "few retries"
    wire.heal()
    assert read(wired, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)


def test_a_put_whose_answer_was_lost_is_there(wired: RemoteStore, wire: FaultyWire) -> None:
    wire.fail("PUT", WireFault.LOST)
    with pytest.raises(UnavailableError):
        put(wired, name_of(1), pattern(CELL_BYTES))
    assert wire.happened[WireFault.LOST] == bucket_client.ATTEMPTS
    wire.heal()
    assert read(wired, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)
    put(wired, name_of(1), pattern(CELL_BYTES))
    assert list(wired.names()) == [name_of(1)]


def test_an_answer_that_broke_off_is_asked_for_again(wired: RemoteStore, wire: FaultyWire) -> None:
    put(wired, name_of(1), pattern(4 * CELL_BYTES))
    wire.fail("GET", WireFault.TORN, times=1, after_bytes=2 * CELL_BYTES)
    assert read(wired, name_of(1), 0, 4 * CELL_BYTES) == pattern(4 * CELL_BYTES)
    wire.fail("GET", WireFault.TORN, after_bytes=2 * CELL_BYTES)
    with pytest.raises(UnavailableError):  # not damaged: the next read may get it whole
        read(wired, name_of(1), 0, 4 * CELL_BYTES)
    assert wire.happened[WireFault.TORN] == 1 + bucket_client.ATTEMPTS


@pytest.mark.usefixtures("impatient")
def test_a_server_that_says_nothing_is_left(moto: Moto, wire: FaultyWire) -> None:
    store = formatted(moto.url(moto.new_bucket(), port=wire.port))
    put(store, name_of(1), pattern(CELL_BYTES))
    for method in ("GET", "PUT"):
        wire.fail(method, WireFault.HANG)
    with pytest.raises(UnavailableError):
        read(store, name_of(1), 0, 1)
    with pytest.raises(UnavailableError):
        put(store, name_of(2), pattern(CELL_BYTES))
    assert wire.happened[WireFault.HANG] >= 2


def test_a_wrong_key_is_unavailable_and_names_no_secret(caplog: pytest.LogCaptureFixture, moto: Moto) -> None:
    from botocore.exceptions import ClientError, NoCredentialsError

    caplog.set_level(logging.DEBUG, "tieredfs")
    for error in (
        ClientError({"Error": {"Code": "SignatureDoesNotMatch", "Message": "key hush"}}, "GetObject"),
        ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"),
        NoCredentialsError(),
    ):
        made = translate(error, "chunk 1.0 cannot be read")
        assert isinstance(made, UnavailableError)
        assert "hush" not in str(made)
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NoSuchKey", NotFoundError),
        ("404", NotFoundError),
        ("InvalidRange", CorruptError),
        ("QuotaExceeded", NoSpaceError),
        ("XMinioStorageFull", NoSpaceError),
        ("NoSuchBucket", UnavailableError),
        ("SlowDown", UnavailableError),
        ("SomethingNew", UnavailableError),
    ],
)
def test_codes_become_our_errors(code: str, kind: type[TieredError]) -> None:
    from botocore.exceptions import ClientError

    assert type(translate(ClientError({"Error": {"Code": code}}, "PutObject"), "?")) is kind


# ---- dumps -----------------------------------------------------------------------------------------------------------


def uploads(moto: Moto, url: BucketUrl) -> list[str]:
    return [entry["Key"] for entry in moto.client.list_multipart_uploads(Bucket=url.bucket).get("Uploads", ())]


@pytest.mark.parametrize("fault", [WireFault.BUSY, WireFault.RESET, WireFault.LOST])
def test_a_dump_in_parts_outlives_a_bad_wire(moto: Moto, wire: FaultyWire, fault: WireFault) -> None:
    url = moto.url(moto.new_bucket(), port=wire.port)
    shelf = formatted(url).dumps
    raw = dump_suite.content(2 * DUMP_PIECE_BYTES + 5)
    wire.fail("PUT", fault, times=1)
    wire.fail("POST", fault, times=1)
    dump_suite.put(shelf, TAKEN_NS, raw)
    assert wire.happened == {fault: 2}
    wire.fail("GET", fault, times=1)
    assert dump_suite.read(shelf, TAKEN_NS) == raw


def test_the_end_of_a_dump_whose_answer_was_lost_is_the_end(
    moto: Moto, wire: FaultyWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = moto.url(moto.new_bucket(), port=wire.port)
    shelf = formatted(url).dumps
    assert isinstance(shelf, BucketDumps)
    complete = shelf._complete
    monkeypatch.setattr(
        shelf, "_complete", lambda *arguments: (wire.fail("POST", WireFault.LOST, times=1), complete(*arguments))
    )
    raw = dump_suite.content(DUMP_PIECE_BYTES + 5)
    dump_suite.put(shelf, TAKEN_NS, raw)
    assert wire.happened == {WireFault.LOST: 1}
    assert dump_suite.read(shelf, TAKEN_NS) == raw
    assert uploads(moto, url) == []


def test_parts_that_nobody_puts_together_are_aborted(moto: Moto, url: BucketUrl) -> None:
    formatted(url)
    for key in (f"p/metadata/{TAKEN_NS:016x}.dump", "p/metadata-of-somebody", "q/x"):
        moto.client.create_multipart_upload(Bucket=url.bucket, Key=key)
    begun_s = moto.client.list_multipart_uploads(Bucket=url.bucket)["Uploads"][0]["Initiated"].timestamp()
    for age_s, left in ((FORGOTTEN_S - 60, 3), (FORGOTTEN_S + 60, 2)):
        BucketDumps(new_client(url), url, ClockAt(begun_s + age_s), IDENTITY).abort_uploads(FORGOTTEN_S)
        assert len(uploads(moto, url)) == left
    assert uploads(moto, url) == ["p/metadata-of-somebody", "q/x"]


class ClockAt(SystemClock):
    """One that stands."""

    def __init__(self, wall_s: float) -> None:
        self._wall_s = wall_s

    def wall_ns(self) -> int:
        return int(self._wall_s * 1e9)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_a_whole_chunk_is_one_request(wired: RemoteStore, wire: FaultyWire) -> None:
    for block in range(4):
        put(wired, name_of(block), pattern(2 * CELL_BYTES + 4096))
    wire.requests.clear()
    for block in range(4):
        read(wired, name_of(block), 0, 2 * CELL_BYTES + 4096)
    assert wire.requests == {"GET": 4}
    read(wired, name_of(0), CELL_BYTES, CELL_BYTES)
    assert wire.requests == {"GET": 5}, "its header is known"


def test_what_describes_s3_is_read_once_for_all_clients(url: BucketUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    bucket_client._descriptions.cache_clear()
    new_client(url).close()
    assert read
    read.clear()
    places = len(bucket_client._descriptions().search_paths)
    new_client(url).close()
    assert read == []
    assert len(bucket_client._descriptions().search_paths) == places, "not one more for each client"


def test_listing_goes_on_past_a_page(moto: Moto, url: BucketUrl) -> None:
    store = formatted(url)
    put(store, name_of(0), pattern(4096))
    for block in range(1, 1100):
        moto.client.put_object(Bucket=url.bucket, Key=key_of(url, name_of(block)), Body=b"")
    assert isinstance(store.objects, BucketObjects)
    assert {name.block for name in store.names()} == set(range(1100))
