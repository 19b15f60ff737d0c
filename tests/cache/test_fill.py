"""Filling: parallel, once, in the order that readers need, and honest when the store cannot deliver."""

import os
import threading
from collections import Counter

import pytest

from tests.cache.rigs import WIDE, Rig, in_threads, noise, rig, wait_until
from tests.descriptors import open_paths
from tieredfs.core.file_life import FileState
from tieredfs.errors import DataLossError
from tieredfs.limits import KIB
from tieredfs.model import InodeId

BLOCK = 64 * KIB
DATA = noise(8 * BLOCK)


def evicted_file(made: Rig, data: bytes = DATA) -> InodeId:
    inode = made.put("file", data)
    made.flush()
    assert made.tier.evict(inode)
    assert made.state(inode) is FileState.ABSENT
    return inode


def read_part(made: Rig, inode: InodeId, offset: int, length: int) -> bytes:
    file = made.tier.open_read(inode, fill_before=0)
    try:
        if file.fill is not None:
            file.fill.wait(offset, length)
        return os.pread(file.descriptor, length, offset)
    finally:
        made.tier.release(file, writer=False)


def test_what_a_reader_waits_for_is_fetched_next_and_served_before_the_file_is_whole() -> None:
    with rig() as made:
        inode = evicted_file(made)
        order = [extent.block for extent in made.meta.extents(inode)]
        served = threading.Event()
        made.blocks.hold(lambda kind, block: kind == "read" and not (served.is_set() or block == int(order[6])))
        file = made.tier.open_read(inode, fill_before=0)
        wait_until(lambda: made.blocks.waiting >= 2, "both fillers are held at the first blocks")
        assert set(made.blocks.reads) == set(order[:2])
        assert not file.whole
        reader: list[bytes] = []
        thread = threading.Thread(target=lambda: reader.append(read_part(made, inode, 6 * BLOCK + 5, 100)))
        thread.start()
        wait_until(lambda: file.fill is not None and file.fill._pending[0] == 6, "the reader's part is hastened")
        made.blocks.hold(lambda kind, block: kind == "read" and block not in {int(order[0]), int(order[6])})
        thread.join(20)
        assert reader == [DATA[6 * BLOCK + 5 : 6 * BLOCK + 105]]
        assert made.blocks.reads[2] == order[6], "after those under way came the one that was waited for"
        assert not file.whole, "the reader was served meanwhile"
        made.blocks.open_all()
        assert file.fill is not None
        file.fill.wait_whole()
        assert os.pread(file.descriptor, len(DATA), 0) == DATA
        made.tier.release(file, writer=False)
        wait_until(lambda: made.state(inode) is FileState.RESIDENT, "the copy is idle")


def test_many_readers_of_one_file_fetch_each_block_once() -> None:
    with rig() as made:
        inode = evicted_file(made)
        found = in_threads([lambda at=at: read_part(made, inode, at * BLOCK, BLOCK) for at in range(8)] * 2)
        assert found == [DATA[at * BLOCK : (at + 1) * BLOCK] for at in range(8)] * 2
        assert set(Counter(made.blocks.reads).values()) == {1}
        assert len(made.blocks.reads) == 8


@pytest.mark.allows_warnings("damaged beyond repair")
def test_a_fill_that_fails_tells_every_reader_and_the_next_open_begins_anew() -> None:
    with rig(**WIDE) as made:
        inode = evicted_file(made)
        made.hide(0, 1, 2)
        made.blocks.hold(lambda kind, _block: kind == "read")
        file = made.tier.open_read(inode, fill_before=0)
        assert file.fill is not None
        fill = file.fill
        wait_until(lambda: made.blocks.waiting >= 2, "the fill has begun")
        errors: list[BaseException] = []

        def wait(offset: int) -> None:
            try:
                fill.wait(offset, 10)
            except DataLossError as error:
                errors.append(error)

        readers = [threading.Thread(target=wait, args=(at * BLOCK,)) for at in range(8)]
        for reader in readers:
            reader.start()
        made.blocks.open_all()
        for reader in readers:
            reader.join(20)
        assert len(errors) == 8
        made.tier.release(file, writer=False)
        with pytest.raises(DataLossError):
            made.get(inode)
        with pytest.raises(DataLossError):
            made.tier.open_write(inode, truncate=False)
        assert made.state(inode) is FileState.ABSENT
        assert not os.listdir(made.root / "cache/filling")
        made.show(0, 1, 2)
        assert made.get(inode) == DATA
        made.change(inode, b"new")
        made.flush()
        assert made.get(inode) == b"new" + DATA[3:]


def test_two_lost_disks_are_decoded_around() -> None:
    with rig(**WIDE) as made:
        inode = evicted_file(made)
        made.hide(1, 4)
        assert made.get(inode) == DATA


def test_a_file_that_is_deleted_while_it_is_filled_leaves_nothing() -> None:
    with rig() as made:
        inode = evicted_file(made)
        made.blocks.hold(lambda kind, _block: kind == "read")
        file = made.tier.open_read(inode, fill_before=0)
        wait_until(lambda: made.blocks.waiting >= 2, "the fill has begun")
        made.meta.unlink(made.meta.attributes(inode).parent, b"file", made.volume.session)
        made.tier.mark_deleted(inode)
        made.blocks.open_all()
        assert file.fill is not None
        file.fill.wait_whole()
        assert os.pread(file.descriptor, len(DATA), 0) == DATA
        made.tier.release(file, writer=False)
        made.meta.reclaim_orphan(inode, made.volume.session)
        made.tier.discard(inode)
        assert not list(made.ssd.directory.contents())
        assert made.state(inode) is FileState.ABSENT


def test_a_file_that_is_discarded_under_its_fill_leaves_nothing() -> None:
    with rig() as made:
        inode = evicted_file(made)
        made.blocks.hold(lambda kind, _block: kind == "read")
        file = made.tier.open_read(inode, fill_before=0)
        wait_until(lambda: made.blocks.waiting >= 2, "the fill has begun")
        made.tier.release(file, writer=False)
        made.tier.discard(inode)
        made.blocks.open_all()
        made.ssd.filler.close()
        assert not os.listdir(made.root / "cache/filling")
        assert not list(made.ssd.directory.contents())


def test_a_hole_needs_no_block_and_a_file_of_holes_none_at_all() -> None:
    with rig() as made:
        inode, file = made.create("holes")
        made.files.truncate(file.descriptor, 10 * BLOCK)
        made.tier.release(file, writer=True)
        made.flush()
        made.tier.evict(inode)
        held = made.tier.open_read(inode)
        assert held.state is FileState.STORED, "a copy with a handle is not idle"
        made.tier.release(held, writer=False)
        assert made.get(inode) == bytes(10 * BLOCK)
        assert made.blocks.reads == []
        assert made.state(inode) is FileState.RESIDENT


def descriptors(made: Rig) -> list[str]:
    """What this process has open in the cache directory, of contents."""
    places = (f"{made.root}/cache/content", f"{made.root}/cache/filling")
    return [path for path in open_paths() if path.startswith(places)]


def test_no_descriptor_is_left_behind() -> None:
    with rig() as made:
        inode = evicted_file(made)
        assert descriptors(made) == []
        made.change(inode, b"fetched in order to be written to")
        made.flush()
        made.tier.evict(inode)
        made.get(inode)
        made.tier.evict(inode)
        made.tier.warm(inode, pin=False)
        wait_until(lambda: made.state(inode) is FileState.RESIDENT, "it is idle")
        made.change(inode, b"")
        made.put("another", b"data")
        made.flush()
        wait_until(lambda: descriptors(made) == [], "the last one is closed")


@pytest.mark.allows_warnings("damaged beyond repair")
def test_no_descriptor_is_left_behind_by_a_fill_that_fails() -> None:
    with rig(**WIDE) as made:
        inode = evicted_file(made)
        made.hide(0, 1, 2)
        for _ in range(5):
            with pytest.raises(DataLossError):
                made.tier.open_write(inode, truncate=False)
            with pytest.raises(DataLossError):
                made.get(inode)
        wait_until(lambda: descriptors(made) == [], "the last one is closed")
        made.show(0, 1, 2)
