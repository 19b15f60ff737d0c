"""Lanes, followers and slabs over a reader in memory: what is made once, who waits for whom, what is given back."""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from tests.serving.fakes import TableReader
from tests.serving.rig import eventually, ids, numbers
from tieredfs.errors import CorruptError, TooLargeError, WaitInterruptedError
from tieredfs_gateway.datasets import frames, sharing, slabs
from tieredfs_gateway.datasets.contract import DatasetSpec, NumberedBatch, OrderSpec, Position
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.parcels import FRAME_BATCHES, SHARED, Encoders, Packing
from tieredfs_gateway.datasets.sessions import IDLE_S, Sessions
from tieredfs_gateway.datasets.sharing import Follower, Share
from tieredfs_gateway.datasets.slabs import Slab, SlabPool
from tieredfs_gateway.datasets.transform_pool import TransformPool
from tieredfs_gateway.datasets.wire import Link, next_piece

MIB = 1 << 20


@pytest.fixture
def encoders() -> Iterator[Encoders]:
    made = Encoders(SlabPool(16 * MIB))
    yield made
    made.pool.shutdown()
    made.slabs.close()


def share_of(reader: TableReader, encoders: Encoders, window_bytes: int = 4 * MIB) -> Share:
    return Share(reader.schema, reader.batches, encoders, window_bytes, lambda: reader.is_at_hand)


@pytest.fixture(params=[False, True], ids=["by a thread", "at hand"])
def at_hand(request: pytest.FixtureRequest) -> bool:
    """Whether followers make batches themselves."""
    return bool(request.param)


def lanes() -> list[str]:
    """Threads that make batches."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane-")]


def read_shared(follower: Follower, count: int = 1 << 30) -> list[int]:
    """The ids of the next batches, out of their slabs."""
    found: list[int] = []
    for _ in range(count):
        item = follower.next()
        if item is None:
            break
        slab = item.parcel.slab()
        assert slab is not None
        batches = frames.cut(slab.writable(), item.parcel.row_counts)
        found += ids(batches[item.place : item.place + 1])
        del batches
        slab.release()
    return found


def test_four_trainers_of_one_epoch_make_each_batch_once_and_encode_it_once(encoders: Encoders, at_hand: bool) -> None:
    reader = TableReader()
    reader.is_at_hand = at_hand
    reader.pause_s = 0.01  # each waits for the others
    share = share_of(reader, encoders)
    followers = [share.follow(Position(0, 0), 1, SHARED) for _ in range(4)]
    found: list[list[int]] = [[] for _ in followers]

    def read(number: int) -> None:
        found[number] = read_shared(followers[number])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for follower in followers:
        follower.close()
    share.close()
    assert found == [list(range(1000))] * 4
    assert set(reader.made.values()) == {1}
    assert encoders.counts.encoded == {SHARED: 10}
    assert (encoders.counts.served, encoders.counts.lanes) == (40, 1)
    eventually(lambda: encoders.slabs.usage()["slabs_held"], 0)
    assert reader.open_iterators == 0


def test_who_comes_later_joins_while_the_beginning_is_in_the_window(encoders: Encoders, at_hand: bool) -> None:
    reader = TableReader()
    reader.is_at_hand = at_hand
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 1, SHARED) as early, share.follow(Position(0, 0), 1, SHARED) as late:
        assert read_shared(early) == list(range(1000))
        assert read_shared(late) == list(range(1000))
    share.close()
    assert set(reader.made.values()) == {1}


def test_ranks_have_lanes_of_their_own_and_each_batch_is_made_once(encoders: Encoders, at_hand: bool) -> None:
    reader = TableReader()
    reader.is_at_hand = at_hand
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 2, SHARED) as even, share.follow(Position(0, 1), 2, SHARED) as odd:
        found = read_shared(even) + read_shared(odd)
    share.close()
    assert sorted(found) == list(range(1000))
    assert set(reader.made.values()) == {1}


def test_a_slow_trainer_slows_the_others_once_and_still_gets_everything(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch, at_hand: bool
) -> None:
    monkeypatch.setattr(sharing, "GRACE_S", 0.05)
    reader = TableReader(numbers(20_000))
    reader.is_at_hand = at_hand
    size = reader.rows(0).nbytes
    share = share_of(reader, encoders, window_bytes=20 * size)
    with share.follow(Position(0, 0), 1, SHARED) as slow, share.follow(Position(0, 0), 1, SHARED) as fast:
        first = read_shared(slow, 1)
        assert read_shared(fast) == list(range(20_000)), "the fast one is done while the slow one has one batch"
        assert encoders.counts.left_behind == 1
        assert first + read_shared(slow) == list(range(20_000))
    share.close()
    assert max(reader.made.values()) == 2
    assert encoders.counts.lanes == 2
    eventually(lambda: encoders.slabs.usage()["slabs_held"], 0)


def test_a_trainer_that_stands_still_does_not_fill_the_memory(encoders: Encoders) -> None:
    reader = TableReader(numbers(20_000))
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 1, SHARED) as follower:
        read_shared(follower, 1)
        eventually(lambda: sum(reader.made.values()) >= sharing.AHEAD_BATCHES)
        time.sleep(0.2)
        assert sum(reader.made.values()) <= sharing.AHEAD_BATCHES + 2
    share.close()


def test_what_the_reader_raises_reaches_every_trainer_after_what_was_good(encoders: Encoders, at_hand: bool) -> None:
    reader = TableReader()
    reader.is_at_hand = at_hand
    reader.failing[3] = CorruptError("datasets/a.parquet: rotten")
    share = share_of(reader, encoders)
    for _ in range(2):
        with share.follow(Position(0, 0), 1, SHARED) as follower:
            assert read_shared(follower, 3) == list(range(300))
            with pytest.raises(CorruptError, match="rotten"):
                follower.next()
    share.close()


def test_small_batches_that_do_not_lie_beside_each_other_are_copied_into_one_but_for_dictionaries() -> None:
    wholes = [numbers(100).combine_chunks().to_batches()[0] for _ in range(3)]
    batches = [NumberedBatch(index, whole, 10 * index, 20) for index, whole in enumerate(wholes)]
    apart, copied = frames.joined(batches), frames.joined(batches, copies=True)
    assert ([rows.num_rows for rows in apart], [rows.num_rows for rows in copied]) == ([20] * 3, [60])
    assert ids(copied) == ids(apart)
    encoded = [NumberedBatch(n, pa.record_batch({"x": pa.array([str(n)]).dictionary_encode()})) for n in range(2)]
    assert [rows.num_rows for rows in frames.joined(encoded, copies=True)] == [1, 1]


def test_what_is_at_hand_is_made_by_who_takes_it_and_not_before(encoders: Encoders) -> None:
    reader = OneWhole(numbers(10_000))
    reader.is_at_hand = True
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 1, SHARED) as follower:
        made = []
        while (item := follower.next()) is not None:
            made.append(follower.rest(item))
            assert sum(reader.made.values()) == sum(made), "nothing is made ahead"
            assert lanes() == []
        assert made == [1, 4, 16, 64, 15]
    share.close()
    assert reader.open_iterators == 0
    reader.is_at_hand = False
    with share_of(reader, encoders).follow(Position(1, 0), 1, SHARED) as follower:
        assert follower.next() is not None
        assert lanes() == ["lane-1-0-1"]
    eventually(lambda: (lanes(), reader.open_iterators), ([], 0))


def test_what_is_closed_while_a_trainer_makes_a_batch_is_ended_by_that_trainer(encoders: Encoders) -> None:
    """Another one that waits for it learns of it at once."""
    reader = OneWhole(numbers(10_000))
    reader.is_at_hand = True
    reader.pause_s = 0.5
    share = share_of(reader, encoders)
    followers = [share.follow(Position(0, 0), 1, SHARED) for _ in range(2)]
    ends: list[type[BaseException] | None] = []

    def read(follower: Follower) -> None:
        with follower:
            try:
                follower.next()
            except BaseException as error:  # noqa: BLE001 - looked at below
                ends.append(type(error))

    threads = [threading.Thread(target=read, args=(follower,)) for follower in followers]
    for thread in threads:
        thread.start()
    eventually(lambda: reader.open_iterators)
    share.close()
    assert reader.open_iterators == 0
    for thread in threads:
        thread.join(30)
    assert ends == [WaitInterruptedError] * 2
    assert encoders.kept_bytes == 0


def test_one_batch_in_two_forms_is_made_once(encoders: Encoders) -> None:
    reader = TableReader()
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 1, SHARED) as local, share.follow(Position(0, 0), 1, "zstd") as remote:
        mine = read_shared(local)
        bodies = b"".join(item.frame(Packing(Codec.ZSTD))[0] for item in iter(remote.next, None))
        assert ids(frames.batches_of(share.head + bodies + frames.END)) == mine
    share.close()
    assert set(reader.made.values()) == {1}
    assert encoders.counts.encoded == {SHARED: 10, "zstd": 10}


def test_batches_at_hand_together_share_a_slab_and_neighbours_are_written_as_one(encoders: Encoders) -> None:
    whole = numbers(1000).combine_chunks().to_batches()[0]

    def batches(position: Position, stride: int) -> Iterator[NumberedBatch]:
        for index in range(position.batches, 10, stride):
            yield NumberedBatch(index, whole, 100 * index, 100, is_followed=index + stride < 10)

    share = Share(whole.schema, batches, encoders, 4 * MIB)
    with share.follow(Position(0, 0), 1, SHARED) as follower, share.follow(Position(0, 1), 3, SHARED) as strided:
        sizes, found = [], []
        while (item := follower.next()) is not None:
            sizes.append(follower.rest(item))
            slab = item.parcel.slab()
            assert slab is not None
            stream = pa.ipc.open_stream(pa.py_buffer(slab.writable()))
            assert [rows.num_rows for rows in stream] == [100 * sizes[-1]], "one copy for all of them"
            found += ids(frames.cut(slab.writable(), item.parcel.row_counts))
            del stream
            slab.release()
        assert sizes == [1, 2, 4, 3]
        assert found == list(range(1000))
        assert read_shared(strided) == [n for index in (1, 4, 7) for n in range(100 * index, 100 * index + 100)]
    share.close()
    eventually(lambda: encoders.slabs.usage()["slabs_held"], 0)


# ---- slabs -------------------------------------------------------------------------------------------------------------


# ---- frames of several batches -----------------------------------------------------------------------------------------


class OneWhole(TableReader):
    """Batches that lie beside each other, and are all at hand."""

    def batches(self, position: Position, stride: int = 1) -> Iterator[NumberedBatch]:
        whole = self._table.to_batches()[0]
        for batch in super().batches(position, stride):
            yield NumberedBatch(batch.index, whole, batch.index * 100, batch.rows.num_rows, is_followed=True)


def frames_of(follower: Follower, packing: Packing) -> tuple[list[int], bytes]:
    """How many batches each frame is, and all of them."""
    counts, bodies = [], b""
    while (item := follower.next()) is not None:
        body, count = item.frame(packing)
        follower.rest(item, count)
        counts.append(count)
        bodies += body
    return counts, bodies


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4, Codec.ZSTD])
def test_neighbours_are_one_message_for_who_cuts_them_apart_and_the_first_batch_comes_alone(
    encoders: Encoders, codec: Codec
) -> None:
    reader = OneWhole(numbers(10_000))
    share = share_of(reader, encoders)
    packing = Packing(codec, joins=True)
    with share.follow(Position(0, 0), 1, packing.form) as follower:
        counts, bodies = frames_of(follower, packing)
    share.close()
    assert counts[:4] == [1, 2, 4, 8]
    assert (sum(counts), max(counts)) == (100, FRAME_BATCHES)
    assert len(list(frames.batches_of(share.head + bodies + frames.END))) == len(counts)
    assert ids(frames.batches_of(share.head + bodies + frames.END)) == list(range(10_000))
    assert encoders.counts.encoded == {codec: 100}
    assert (encoders.counts.made, encoders.counts.served) == (100, 100)


def test_who_comes_in_the_middle_of_a_frame_gets_its_batches_one_by_one_until_the_next(encoders: Encoders) -> None:
    reader = OneWhole(numbers(3_100))
    share = share_of(reader, encoders)
    packing = Packing(Codec.LZ4, joins=True)
    with (
        share.follow(Position(0, 0), 1, packing.form) as first,
        share.follow(Position(0, 9), 1, packing.form) as second,
        share.follow(Position(0, 0), 1, SHARED) as local,
    ):
        assert frames_of(first, packing)[0] == [1, 2, 4, 8, 8, 8]
        counts, bodies = frames_of(second, packing)
        assert counts == [1] * 6 + [8, 8]
        assert ids(frames.batches_of(share.head + bodies + frames.END)) == list(range(900, 3_100))
        assert read_shared(local) == list(range(3_100)), "out of frames, for the rows were let go"
    share.close()
    assert set(reader.made.values()) == {1}
    assert encoders.counts.lanes == 1


def test_batches_that_do_not_lie_beside_each_other_are_a_frame_each(encoders: Encoders) -> None:
    share = share_of(OneWhole(numbers(3_100)), encoders)
    packing = Packing(Codec.LZ4, joins=True)
    with share.follow(Position(0, 1), 2, packing.form) as follower:
        counts, bodies = frames_of(follower, packing)
    share.close()
    assert counts == [1] * 15
    found = ids(frames.batches_of(share.head + bodies + frames.END))
    assert found == [number for number in range(3_100) if number // 100 % 2]


def test_what_a_link_no_longer_wants_is_not_compressed_for_it(sessions: Sessions, encoders: Encoders) -> None:
    session = sessions.open(KEY, "a")
    link = Link.to("10.0.0.1", Codec.AUTO, joins=True)
    with sessions.follow(session, Position(0, 0), 1, link.packing.form, "a") as stream:
        for _ in range(2):
            assert next_piece(stream, link) is not None
        link.codec = Codec.ZSTD
        while next_piece(stream, link) is not None:
            assert stream.follower.forms == (link.packing.form,)
    assert encoders.counts.encoded["zstd"] >= 8


def descriptors() -> int:
    """How many slabs this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        with contextlib.suppress(FileNotFoundError):  # closed while one looks
            if "memfd:tieredfs-slab" in os.readlink(path):
                found.add(os.stat(path).st_ino)
    return len(found)


def taken_from(pool: SlabPool, length: int) -> Slab:
    slab = pool.take(length)
    assert slab is not None
    return slab


def test_slabs_are_used_again_and_their_number_is_bounded() -> None:
    gc.collect()
    before = descriptors()
    pool = SlabPool(4 * slabs.SLAB_BYTES_MIN)
    for _ in range(100):
        taken = [taken_from(pool, 1000) for _ in range(4)]
        for slab in taken:
            slab.release()
    assert pool.made == 4
    assert descriptors() == before + 4
    large = taken_from(pool, 3 * slabs.SLAB_BYTES_MIN)
    assert pool.usage()["slab_bytes"] <= pool.limit_bytes
    large.release()
    with pytest.raises(TooLargeError):
        pool.take(5 * slabs.SLAB_BYTES_MIN)
    pool.close()
    assert descriptors() == before


def test_a_full_pool_gives_only_what_a_trainer_waits_for() -> None:
    pool = SlabPool(slabs.SLAB_BYTES_MIN)
    slab = taken_from(pool, 10)
    assert pool.take(10) is None
    needed = pool.take(10, is_needed=True)
    assert needed is not None
    assert pool.usage()["slab_bytes"] == 2 * pool.limit_bytes
    needed.release()
    assert pool.usage()["slab_bytes"] == pool.limit_bytes, "what is beyond the limit is not kept"
    slab.release()
    assert taken_from(pool, 10).number == slab.number
    pool.close()


def test_an_abandoned_slab_is_never_written_again() -> None:
    pool = SlabPool(2 * slabs.SLAB_BYTES_MIN)
    slab = taken_from(pool, 10)
    slab.retain()
    pool.abandon(slab)
    slab.release()
    assert taken_from(pool, 10).number != slab.number
    pool.close()


def test_nobody_but_the_gateway_can_write_to_a_slab_or_change_its_size() -> None:
    import mmap

    pool = SlabPool(MIB)
    slab = taken_from(pool, 10)
    with pytest.raises(OSError):  # noqa: PT011 - EPERM from the seals
        os.ftruncate(slab.descriptor, 0)
    with pytest.raises(OSError):  # noqa: PT011
        mmap.mmap(slab.descriptor, slab.capacity_bytes)
    with pytest.raises(OSError):  # noqa: PT011
        os.pwrite(slab.descriptor, b"x", 0)
    slab.writable()[:1] = b"x"
    slab.release()
    pool.close()


# ---- sessions ----------------------------------------------------------------------------------------------------------

KEY = (DatasetSpec("datasets/a"), OrderSpec(100))


class Volume:
    """Readers of a dataset that changes."""

    def __init__(self) -> None:
        self.version = "v1"
        self.is_at_hand = False
        self.readers: list[TableReader] = []

    def open(self, _spec: DatasetSpec, _order: OrderSpec, _version: str | None) -> TableReader:
        self.readers.append(TableReader(version=self.version))
        self.readers[-1].is_at_hand = self.is_at_hand
        return self.readers[-1]


@pytest.fixture
def volume() -> Volume:
    return Volume()


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def sessions(encoders: Encoders, volume: Volume, clock: list[float]) -> Iterator[Sessions]:
    made = Sessions(volume.open, TransformPool({}), encoders, 4 * MIB, now=lambda: clock[0])
    yield made
    made.close_all()


def test_sessions_of_one_dataset_share_a_reader_that_is_closed_with_the_last(
    sessions: Sessions, volume: Volume
) -> None:
    one, two = sessions.open(KEY, "a"), sessions.open(KEY, "b")
    assert len(volume.readers) == 1
    sessions.close(one.id)
    assert [reader.closed for reader in volume.readers] == [False]
    sessions.close(two.id)
    sessions.close(two.id)
    assert [reader.closed for reader in volume.readers] == [True]
    with pytest.raises(Refusal, match="no such session"):
        sessions.get(two.id)


def test_a_version_is_pinned_while_somebody_reads_it(sessions: Sessions, volume: Volume) -> None:
    old = sessions.open(KEY, "a")
    volume.version = "v2"
    assert sessions.open(KEY, "b").opened is old.opened
    fresh = sessions.open(KEY, "c", fresh=True)
    assert fresh.opened.reader.version == "v2"
    assert sessions.open(KEY, "d", version="v1").opened is old.opened
    with pytest.raises(Refusal) as caught:
        sessions.open(KEY, "e", version="v0")
    assert caught.value.code == "version_gone"


def test_sessions_that_nobody_uses_expire_and_those_that_read_do_not(sessions: Sessions, clock: list[float]) -> None:
    idle, busy = sessions.open(KEY, "a"), sessions.open(KEY, "b")
    with sessions.follow(busy, Position(0, 0), 1, SHARED, "b") as stream:
        assert stream.follower.next() is not None
        clock[0] = IDLE_S + 1
        assert sessions.expire() == 1
        assert sessions.get(busy.id) is busy
    with pytest.raises(Refusal):
        sessions.get(idle.id)


def test_past_their_number_the_one_that_was_idle_longest_gives_way(
    sessions: Sessions, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tieredfs_gateway.datasets.sessions.SESSIONS_MAX", 3)
    busy, idle, later = (sessions.open(KEY, name) for name in "abc")
    with sessions.follow(busy, Position(0, 0), 1, SHARED, "a"):
        clock[0] = 1.0
        sessions.get(later.id)
        fourth = sessions.open(KEY, "d")
        with pytest.raises(Refusal, match="no such session"):
            sessions.get(idle.id)
        assert [sessions.get(one.id) for one in (busy, later, fourth)] == [busy, later, fourth]
        with (
            sessions.follow(later, Position(0, 0), 1, SHARED, "c"),
            sessions.follow(fourth, Position(0, 0), 1, SHARED, "d"),
            pytest.raises(Refusal) as caught,
        ):
            sessions.open(KEY, "e")
    assert caught.value.code == "too_many_sessions"


def test_a_reader_that_nobody_reads_makes_place_for_another(
    sessions: Sessions, volume: Volume, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tieredfs_gateway.datasets.sessions.READERS_MAX", 2)
    keys = [(DatasetSpec(name), OrderSpec(100)) for name in "abc"]
    busy = sessions.open(keys[0], "a")
    with sessions.follow(busy, Position(0, 0), 1, SHARED, "a"):
        clock[0] = 1.0
        idle = sessions.open(keys[1], "b")
        third = sessions.open(keys[2], "c")
        assert [reader.closed for reader in volume.readers] == [False, True, False]
        with pytest.raises(Refusal):
            sessions.get(idle.id)
        with sessions.follow(third, Position(0, 0), 1, SHARED, "c"), pytest.raises(Refusal) as caught:
            sessions.open(keys[1], "b")
        assert caught.value.code == "too_many_sessions"


IMPOSSIBLE = [(Position(-1, 0), 1), (Position(0, -1), 1), (Position(0, 0), 0), (Position(0, 1 << 70), 1)]


@pytest.mark.parametrize(("position", "stride"), IMPOSSIBLE)
def test_positions_that_cannot_be(sessions: Sessions, position: Position, stride: int) -> None:
    with pytest.raises(Refusal) as caught:
        sessions.follow(sessions.open(KEY, "a"), position, stride, SHARED, "a")
    assert caught.value.code == "bad_position"


def test_a_batch_without_columns_has_a_size(encoders: Encoders) -> None:
    reader = TableReader(pa.table({"id": pa.array([], pa.int64())}))
    share = share_of(reader, encoders)
    with share.follow(Position(0, 0), 1, SHARED) as follower:
        assert follower.next() is None
    share.close()


def test_batches_that_transforms_make_are_made_by_a_thread(
    sessions: Sessions, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from another process: nobody who waits for one should be the only one to make it."""
    volume.is_at_hand = True
    monkeypatch.setattr(TransformPool, "schema", lambda *_: numbers(1).schema)
    monkeypatch.setattr(TransformPool, "apply", lambda _pool, _names, batches: batches)
    for names, expected in ((), []), (("doubled",), ["lane-0-0-1"]):
        session = sessions.open((DatasetSpec("datasets/a", transforms=names), OrderSpec(100)), "a")
        with sessions.follow(session, Position(0, 0), 1, SHARED, "a") as stream:
            assert stream.follower.next() is not None
            assert lanes() == expected
        eventually(lanes, [])
