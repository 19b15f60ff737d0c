"""Trainers that look at large values where they lie: the rows of those that do not, on good and on bad days."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.descriptors import open_paths
from tests.reading.files import put
from tests.reading.test_views import ALL, EACH, SHARDS, VIEWED_BYTES, shard
from tests.s3.endpoint import ROOT
from tests.serving.fakes import TableReader
from tests.serving.rig import SOURCE, WAIT_S, Gateway, eventually, gateway
from tieredfs.errors import AccessDeniedError, NotSupportedError, UnavailableError
from tieredfs.limits import MIB
from tieredfs_client.dataset import GatewayDataset, GatewayLoader, shared, viewing
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position
from tieredfs_gateway.datasets.parcels import SHARED, Encoders
from tieredfs_gateway.datasets.sessions import READERS_MAX, Session, Sessions
from tieredfs_gateway.datasets.slabs import SlabPool
from tieredfs_gateway.datasets.tokens import make_token
from tieredfs_gateway.datasets.transform_pool import TransformPool

SECRET = "a secret of more than sixteen bytes"
PICTURES = "pictures/train"
FULL: dict[str, Any] = {"batch_size": 8, "shuffle": "full", "seed": 3, "transport": "shared"}


@pytest.fixture(scope="module")
def pictured() -> Iterator[Gateway]:
    with gateway() as made:
        put_pictures(made)
        yield made


def put_pictures(made: Gateway, source: str = PICTURES) -> list[int]:
    """Their inodes."""
    with made.volume() as volume:
        found = [put(volume, f"{source}/{number}.tar", shard(number * EACH)) for number in range(SHARDS)]
        volume.flush(WAIT_S)
    return [int(each.inode) for each in found]


def put_long(made: Gateway) -> list[tuple[int, bytes | None]]:
    """More batches of one row than a trainer is ahead; the rows in the order of the files."""
    contents = [(row, np.random.default_rng(row).bytes(5000)) for row in range(800)]
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for row, content in contents:
            for suffix, data in (("jpg", content), ("cls", b"%d" % row)):
                info = tarfile.TarInfo(f"{row:04d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with made.volume() as volume:
        put(volume, "pictures/long/0.tar", sink.getvalue())
        volume.flush(WAIT_S)
    return list(contents)


def rows(batches: Any) -> list[tuple[int, bytes | None]]:
    return [
        (row, value)
        for batch in batches
        for row, value in zip(batch.column("cls").to_pylist(), batch.column("jpg").to_pylist(), strict=True)
    ]


def mapped_inodes(pid: int | str = "self") -> set[int]:
    """Of the volume, whose files of the SSD tier a process has mapped."""
    text = Path(f"/proc/{pid}/maps").read_text()
    return {int(found, 16) for found in re.findall(r"/content/[0-9a-f]{2}/([0-9a-f]{16})\.", text)}


def viewed_bytes(made: Gateway) -> float:
    return made.metric("readers_bytes_viewed")


# ---- the same rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", ["none", "shards", "window", "full"])
def test_an_epoch_with_views_has_the_rows_of_one_without(pictured: Gateway, shuffle: str, world_size: int) -> None:
    found: list[tuple[int, bytes | None]] = []
    for rank in range(world_size):
        options: dict[str, Any] = FULL | {
            "shuffle": shuffle, "window_rows": 25, "rank": rank, "world_size": world_size, "remainder": "wrap",
        }  # fmt: skip
        with pictured.dataset(PICTURES, **options) as plain, pictured.dataset(PICTURES, **options, views=True) as data:
            wanted = list(plain)
            batches = list(data)
            assert data.version == plain.version
            assert {batch.schema for batch in batches} == {data.schema}
            assert data.schema.field("jpg").type == pa.binary_view()
            assert plain.schema.field("jpg").type == pa.binary()
            assert rows(batches) == rows(wanted)
            assert [batch.num_rows for batch in batches] == [batch.num_rows for batch in wanted]
            for batch in batches:
                batch.validate(full=True)
        found += rows(batches)
    assert dict(found) == ALL


def test_what_is_viewed_is_mapped_and_no_longer_than_arrays_need_it(pictured: Gateway) -> None:
    assert mapped_inodes() == set()
    with pictured.dataset(PICTURES, **FULL, views=True) as data:
        batches = list(data)
        assert viewed_bytes(pictured) == VIEWED_BYTES
        assert len(mapped_inodes()) == SHARDS
        data.set_epoch(0)
        assert rows(data) == rows(batches)
        assert len(mapped_inodes()) == SHARDS, "the same mappings, and not one for each epoch"
    held = batches.pop().column("jpg")
    del batches
    assert len(mapped_inodes()) >= 1
    assert len(held.to_pylist()) == len(held)
    del held
    assert mapped_inodes() == set()


def test_an_epoch_is_asked_for_in_one_message_and_maps_nothing_that_was_mapped(
    pictured: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    mapped: list[int] = []
    plainly_sent, plainly_mapped = shared.SharedConnection._socket_send, viewing.MappedFile.of

    def sending(connection: shared.SharedConnection, message: dict[str, Any]) -> None:
        sent.append(message)
        plainly_sent(connection, message)

    def mapping(descriptor: int, size_bytes: int) -> viewing.MappedFile:
        mapped.append(size_bytes)
        return plainly_mapped(descriptor, size_bytes)

    monkeypatch.setattr(shared.SharedConnection, "_socket_send", sending)
    monkeypatch.setattr(viewing.MappedFile, "of", mapping)
    with pictured.dataset(PICTURES, **FULL, views=True) as data:
        for epoch in range(3):
            sent.clear()
            data.set_epoch(epoch)
            batches = iter(data)
            found = [next(batches)]
            assert [message.keys() & {"read", "waits"} for message in sent] == [{"read", "waits"}]
            assert dict(rows([*found, *batches])) == ALL
            assert [message for message in sent if "read" in message] == sent[:1]
    assert len(mapped) == SHARDS


def test_views_of_batches_that_come_together_are_made_at_once(
    pictured: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = put_long(pictured)
    taken: list[dict[str, Any]] = []
    made: list[int] = []
    plainly_taken = shared.SharedConnection._take

    def taking(connection: shared.SharedConnection, message: dict[str, Any], descriptors: list[int]) -> None:
        taken.append(message)
        plainly_taken(connection, message, descriptors)

    def making(batch: pa.RecordBatch, *rest: Any) -> pa.RecordBatch:
        made.append(batch.num_rows)
        return viewing.shown(batch, *rest)

    monkeypatch.setattr(shared.SharedConnection, "_take", taking)
    monkeypatch.setattr(shared, "shown", making)
    with pictured.dataset("pictures/long", **FULL, views=True) as data:
        assert sorted(rows(data)) == contents
        taken.clear()
        made.clear()
        assert sorted(rows(data)) == contents
    assert [len(message["rows"]) for message in taken] == [1, 4, 16, 64, 15], "batches that are at hand"
    assert made == [8, 32, 128, 512, 120]


@pytest.mark.parametrize("format_", ["numpy", "torch"])
def test_other_formats_have_bytes_made_of_views(pictured: Gateway, format_: str) -> None:
    found: dict[int, bytes | None] = {}
    with pictured.dataset(PICTURES, **FULL, format=format_, views=True) as data:
        assert data.schema.field("jpg").type == pa.binary()
        for batch in data:
            found |= zip(batch["cls"].tolist(), list(batch["jpg"]), strict=True)
        assert viewed_bytes(pictured) == VIEWED_BYTES
    assert found == ALL


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_a_state_does_not_depend_on_views(pictured: Gateway, first: bool, second: bool) -> None:
    with pictured.dataset(PICTURES, **FULL) as whole:
        wanted = rows(whole)
    with pictured.dataset(PICTURES, **FULL, views=first) as begun:
        found = rows(batch for _, batch in zip(range(3), begun, strict=False))
        state = json.loads(json.dumps(begun.state_dict()))
    with pictured.dataset(PICTURES, **FULL, views=second) as resumed:
        resumed.load_state_dict(state)
        found += rows(resumed)
    assert found == wanted


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (PICTURES, {"transport": "http"}),
        (PICTURES, {"filter": "cls >= 0"}),
        (SOURCE, {"columns": ["id", "word"]}),
    ],
)
def test_where_nothing_can_be_viewed_the_types_are_the_same_and_values_come_as_ever(
    pictured: Gateway, source: str, options: dict[str, Any]
) -> None:
    with pictured.dataset(source, **FULL | options) as plain, pictured.dataset(
        source, **FULL | options, views=True
    ) as data:  # fmt: skip
        batches = list(data)
        assert {batch.schema for batch in batches} == {data.schema}
        assert [batch.to_pylist() for batch in batches] == [batch.to_pylist() for batch in plain]
        assert viewed_bytes(pictured) == 0
    assert mapped_inodes() == set()


def test_workers_that_have_to_send_batches_on_look_at_nothing(pictured: Gateway) -> None:
    import torch.utils.data  # before the dataset is made, as a program that has loaders does

    assert torch.utils.data.get_worker_info() is None
    with pictured.dataset(PICTURES, **FULL, views=True) as data:
        found = list(GatewayLoader(data, num_workers=2, multiprocessing_context="fork"))
        assert {batch.schema.field("jpg").type for batch in found} == {pa.binary_view()}
        assert dict(rows(found)) == ALL
        assert viewed_bytes(pictured) == 0
    with pictured.dataset(PICTURES, **FULL, views=True, format="torch") as data:
        loader = GatewayLoader(data, num_workers=2, multiprocessing_context="fork")
        made = {row: value for batch in loader for row, value in zip(batch["cls"].tolist(), batch["jpg"], strict=True)}
        assert made == ALL
        assert viewed_bytes(pictured) >= VIEWED_BYTES


def test_a_program_that_keeps_all_batches_has_their_values_still(pictured: Gateway) -> None:
    """More than are lent: those beyond are copied, and refer to the same files."""
    options = FULL | {"batch_size": 1}
    with pictured.dataset(PICTURES, **options) as plain, pictured.dataset(PICTURES, **options, views=True) as data:
        assert rows(list(data)) == rows(plain)


# ---- bad days --------------------------------------------------------------------------------------------------------


def test_a_gateway_that_is_killed_costs_a_wait_and_what_was_mapped_is_still_there() -> None:
    with gateway() as mortal:
        contents = put_long(mortal)
        options = FULL | {"batch_size": 1}
        with mortal.dataset("pictures/long", **options) as plain:
            wanted = rows(plain)
        assert sorted(wanted) == contents
        data = mortal.dataset("pictures/long", **options, views=True)
        found: list[Any] = []
        for batch in data:
            found.append(batch)
            if len(found) == 2:
                mortal.stop(signal.SIGKILL)
                threading.Timer(0.5, mortal.start).start()
        assert rows(found) == wanted
        assert data.reconnects >= 1
        assert viewed_bytes(mortal) > 0, "the new gateway shows values, too"
        mortal.stop()
        assert rows(found) == wanted
        with (
            mortal.volume(),
            mortal.volume() as volume,
        ):  # the second has the copy, which the gateway read as a neighbour's
            assert volume.evict(b"pictures/long/0.tar")
            volume.remove(b"pictures/long/0.tar")
        assert rows(found) == wanted, "and it does not depend on the files' names"


def test_files_that_are_replaced_while_they_are_read_do_not_change_what_is_seen() -> None:
    with gateway() as made:
        put_pictures(made)
        data = made.dataset(PICTURES, **FULL, views=True)
        found = []
        for batch in data:
            found.append(batch)
            if len(found) == 2:
                with made.volume() as volume:
                    for number in range(SHARDS):
                        put(volume, f"{PICTURES}/{number}.tar", shard(1000))
                    volume.flush(WAIT_S)
        assert dict(rows(found)) == ALL


def test_a_token_opens_the_files_of_its_datasets_and_no_others() -> None:
    with gateway(TIEREDFS_GATEWAY_SECRET=SECRET) as made:
        inodes, others = put_pictures(made), put_pictures(made, "pictures/other")
        assert not set(inodes) & set(others)
        token = make_token(SECRET.encode(), [PICTURES], 1 << 33)
        everything = make_token(SECRET.encode(), ["*"], 1 << 33)
        with made.dataset("pictures/other", **FULL, views=True, token=everything) as other:
            assert dict(rows(other)) == ALL
        with made.dataset(PICTURES, **FULL, views=True, token=token) as data:
            assert dict(rows(data)) == ALL
            assert mapped_inodes() == set(inodes)
        with (
            made.dataset("pictures/other", **FULL, views=True, token=token) as refused,
            pytest.raises(AccessDeniedError),
        ):
            list(refused)
        assert mapped_inodes() == set()


def test_a_trainer_that_is_killed_leaves_nothing(pictured: Gateway) -> None:
    assert open_contents(pictured) == 0
    options = json.dumps(FULL | {"views": True})
    line = [sys.executable, "-m", "tests.serving.trainer", pictured.url, PICTURES, options, "hold"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout is not None
            for _ in range(6):
                assert trainer.stdout.readline()
            assert len(mapped_inodes(trainer.pid)) == SHARDS
            assert pictured.metric("slabs_held") > 0
        finally:
            trainer.kill()
            trainer.wait(WAIT_S)
    eventually(lambda: pictured.metric("slabs_held"), 0)
    assert open_contents(pictured) > 0, "for the session that nobody has ended"
    with pictured.dataset(PICTURES, **FULL, views=True) as data:
        assert dict(rows(data)) == ALL
        close_sessions(pictured)
    eventually(lambda: open_contents(pictured), 0)


def open_contents(made: Gateway) -> int:
    """Files of the SSD tier that the gateway has open."""
    return sum("/content/" in path for path in open_paths(made.pid))


def close_sessions(made: Gateway) -> None:
    """As if they had been idle for long."""
    with urllib.request.urlopen(f"{made.url}/v1/sessions", timeout=WAIT_S) as answer:
        listed = json.loads(answer.read())
    for session in listed["sessions"] if isinstance(listed, dict) else listed:
        asked = urllib.request.Request(f"{made.url}/v1/sessions/{session['session']}", method="DELETE")
        urllib.request.urlopen(asked, timeout=WAIT_S).close()


# ---- readers with views ------------------------------------------------------------------------------------------------


class Opening:
    """Stands in for a volume: readers of any dataset, each noted; those with views only while `views` are to be had."""

    def __init__(self) -> None:
        self.opened: list[DatasetSpec] = []
        self.made: list[TableReader] = []
        self.views: Exception | None = None

    def __call__(self, spec: DatasetSpec, _order: OrderSpec, _version: str | None) -> TableReader:
        self.opened.append(spec)
        if spec.views and self.views is not None:
            raise self.views
        self.made.append(TableReader(pa.table({"x": pa.array([b"value"] * 10)})))
        return self.made[-1]


@pytest.fixture
def opening() -> Opening:
    return Opening()


@pytest.fixture
def sessions(opening: Opening) -> Iterator[Sessions]:
    made = Sessions(opening, TransformPool({}), Encoders(SlabPool(4 * MIB)), MIB)
    yield made
    made.close_all()
    made.encoders.pool.shutdown()


def session_of(sessions: Sessions, source: str, **options: Any) -> Session:
    return sessions.open((DatasetSpec(source, **options), OrderSpec(5)), "a trainer")


def followed(sessions: Sessions, session: Session) -> None:
    with sessions.follow(session, Position(0, 0), 1, SHARED, "same host", views=True) as stream:
        assert stream.follower.next() is not None


def test_sessions_share_a_reader_with_views_and_the_last_one_closes_it(sessions: Sessions, opening: Opening) -> None:
    first, second = session_of(sessions, "a"), session_of(sessions, "a")
    for session in (first, second, first):
        followed(sessions, session)
    assert [spec.views for spec in opening.opened] == [False, True]
    sessions.close(first.id)
    assert not any(reader.closed for reader in opening.made)
    sessions.close(second.id)
    assert all(reader.closed for reader in opening.made)


def test_where_views_cannot_be_opened_a_trainer_reads_without(sessions: Sessions, opening: Opening) -> None:
    session = session_of(sessions, "a")
    opening.views = UnavailableError("not now")
    followed(sessions, session)
    opening.views = NotSupportedError("never")
    followed(sessions, session)
    assert len(opening.opened) == 3, "it was tried again"
    followed(sessions, session)
    assert len(opening.opened) == 3, "and that is not tried again"
    assert len(opening.made) == 1
    filtered = session_of(sessions, "a", filter="x is not null")
    followed(sessions, filtered)
    assert [spec.views for spec in opening.opened[3:]] == [False]


def test_readers_with_views_take_no_other_readers_place(sessions: Sessions, opening: Opening) -> None:
    every = [session_of(sessions, f"dataset-{number}") for number in range(READERS_MAX)]
    for session in every:
        followed(sessions, session)
    assert len(opening.made) == 2 * READERS_MAX
    assert not any(session.closed for session in every)
    more = session_of(sessions, "one more")
    followed(sessions, more)
    assert [session.closed for session in every] == [True] + [False] * (READERS_MAX - 1)
    closed = [spec.source for spec, reader in zip(opening.opened, opening.made, strict=True) if reader.closed]
    assert closed == ["dataset-0"] * 2


# ---- views of what is far into a file ----------------------------------------------------------------------------------


def placed(offsets: Sequence[int], length: int) -> pa.RecordBatch:
    """A value of each offset of file 7, and one that is carried, and a null."""
    count = len(offsets)
    kind = pa.struct([("file", pa.int32()), ("offset", pa.int64()), ("length", pa.int32()), ("bytes", pa.binary())])
    values = [{"file": 7, "offset": at, "length": length, "bytes": b""} for at in offsets]
    carried = {"file": -1, "offset": -1, "length": -1, "bytes": b"carried, and longer than what is inline"}
    return pa.record_batch({"n": pa.array(range(count + 2)), "x": pa.array([*values, carried, None], kind)})


def test_values_anywhere_in_a_large_file_are_seen() -> None:
    """Five times what an offset reaches; but for the values the file is a hole."""
    length, offsets = 5000, [0, (1 << 30) - 10, (1 << 31) - 2500, 3 << 30, (10 << 30) - 5000]
    with tempfile.TemporaryFile() as file:
        file.truncate(10 << 30)
        wanted = [np.random.default_rng(at).bytes(length) for at in offsets]
        for at, content in zip(offsets, wanted, strict=True):
            os.pwrite(file.fileno(), content, at)
        files = {7: viewing.MappedFile.of(os.dup(file.fileno()), 10 << 30)}
    batch = viewing.shown(placed(offsets, length), ["x"], files)
    batch.validate(full=True)
    assert batch.column("x").to_pylist() == [*wanted, b"carried, and longer than what is inline", None]
    for start in range(batch.num_rows):
        piece = viewing.shown(placed(offsets, length).slice(start, 2), ["x"], files)
        assert piece.column("x").to_pylist() == batch.column("x").to_pylist()[start : start + 2]
        assert piece.column("x").equals(batch.column("x").slice(start, 2))


@pytest.mark.parametrize(("number", "offset"), [(8, 0), (7, 4096 - 100)])
def test_a_place_that_is_not_there_is_an_error_and_no_view(number: int, offset: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        files = {number: viewing.MappedFile.of(os.dup(file.fileno()), 4096)}
    with pytest.raises(UnavailableError):
        viewing.shown(placed([offset], 200), ["x"], files)


def test_what_a_view_can_do_in_arrow_is_what_the_documentation_says() -> None:
    """When one of these fails, `GatewayDataset` can promise more."""
    views = pa.array([b"a value of more than twelve bytes", None, b"b"], pa.binary_view())
    assert views.cast(pa.binary()).to_pylist() == views.to_pylist()
    assert views[0].as_buffer().to_pybytes() == views[0].as_py()
    assert "binary_view" in str(GatewayDataset.__doc__)
    works: list[Callable[[], object]] = [lambda: views.take(pa.array([0])), lambda: pa.compute.binary_length(views)]
    for work in works:
        with pytest.raises(pa.ArrowNotImplementedError):
            work()
