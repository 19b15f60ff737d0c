"""Two tiers (as two mounts have) over one volume: what one closes the other opens; and one directory has one user."""

import os
import threading

import pytest

from tests.cache.rigs import WAIT_S, FastClock, Rig, in_threads, noise, opened, volume_folder, wait_until
from tieredfs.core.file_life import FileState
from tieredfs.errors import BusyError, ForeignDataError, NewerFormatError, NotFoundError, UnavailableError
from tieredfs.limits import KIB
from tieredfs.model import InodeId
from tieredfs.volume import Volume
from tieredfs.volume.ssd import drain_abandoned

BLOCK = 64 * KIB


def test_close_to_open_and_borrowing_what_is_staged_elsewhere() -> None:
    with volume_folder() as root, opened(root, cache="a", start=False) as one, opened(root, cache="b") as other:
        data = noise(3 * BLOCK)
        inode = one.put("file", data)
        assert other.get(inode) == data, "staged in the first, read by the second"
        assert other.blocks.reads == []
        assert not list(other.ssd.directory.contents()), "nothing was copied"
        held = other.tier.open_read(inode)
        one.change(inode, b"second version")
        assert other.get(inode)[:14] == b"second version"
        one.ssd.start()
        one.flush()
        assert other.get(inode)[:14] == b"second version"
        assert other.blocks.reads, "now it came from the store"
        assert os.pread(held.descriptor, 3 * BLOCK, 0)[BLOCK:] == data[BLOCK:], "whoever had it open goes on"
        other.tier.release(held, writer=False)
        one.change(inode, b"third")
        one.flush()
        assert other.get(inode)[:6] == b"thirdd", "a copy of an old version is not served"


def test_a_write_waits_until_the_other_tier_has_stored_the_file() -> None:
    with volume_folder() as root, opened(root, cache="a", start=False) as one, opened(root, cache="b") as other:
        inode = one.put("file", b"from one")
        done = threading.Event()

        def write() -> None:
            other.change(inode, b"by other")
            done.set()

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        assert not done.wait(0.3), "the first tier does not drain yet, so the second may not write"
        wait_until(lambda: one.ssd.drainer._hurry_until_s > 0, "the first is told that somebody waits")
        one.ssd.start()
        writer.join(30)
        assert done.is_set()
        assert one.get(inode) == b"by other"
        other.flush()
        assert one.get(inode) == b"by other"


def test_two_tiers_write_one_file_in_turn_and_neither_loses_a_turn() -> None:
    with volume_folder() as root, opened(root, cache="a") as one, opened(root, cache="b") as other:
        inode = one.put("file", bytes(64))
        for turn in range(8):
            writer, reader = (one, other) if turn % 2 else (other, one)
            writer.ssd.drainer.hurry(30)
            reader.ssd.drainer.hurry(30)
            writer.change(inode, bytes([turn + 1]), turn)
            assert reader.get(inode)[: turn + 1] == bytes(range(1, turn + 2))


def test_files_of_both_are_drained_side_by_side() -> None:
    with volume_folder() as root, opened(root, cache="a") as one, opened(root, cache="b") as other:

        def fill(made: Rig, name: str) -> list[InodeId]:
            return [made.put(f"{name}-{number}", noise(BLOCK, number)) for number in range(10)]

        first, second = in_threads([lambda: fill(one, "one"), lambda: fill(other, "other")])
        one.flush()
        other.flush()
        for reader, inodes in ((one, second), (other, first)):
            assert [reader.get(inode) for inode in inodes] == [noise(BLOCK, number) for number in range(10)]


def test_deleted_in_one_tier_gone_in_the_other() -> None:
    with volume_folder() as root, opened(root, cache="a") as one, opened(root, cache="b") as other:
        inode = one.put("file", b"short-lived")
        one.flush()
        assert other.get(inode) == b"short-lived"
        one.meta.unlink(one.meta.attributes(inode).parent, b"file", one.volume.session)
        one.meta.reclaim_orphan(inode, one.volume.session)
        one.tier.discard(inode)
        other.tier.evict(inode)
        with pytest.raises(NotFoundError):
            other.get(inode)


def test_a_cache_directory_has_one_user() -> None:
    with volume_folder() as root, opened(root) as made:
        with pytest.raises(BusyError, match="in use by another mount"):
            Rig(root)
        inode = made.put("file", b"data")
        made.flush()
        assert made.get(inode) == b"data"


def test_a_cache_directory_of_another_volume_or_of_a_newer_version_is_refused() -> None:
    with volume_folder() as root, volume_folder() as elsewhere:
        with opened(root):
            pass
        (root / "cache").rename(elsewhere / "cache")
        with pytest.raises(ForeignDataError, match="cache of another volume"):
            Rig(elsewhere)
        (elsewhere / "cache/tieredfs-cache.json").write_text('{"format": 2, "volume": "v", "cache": "c"}')
        with pytest.raises(NewerFormatError):
            Rig(elsewhere)


def test_a_session_lives_as_long_as_its_volume_is_open() -> None:
    with volume_folder() as root, opened(root) as made:
        number = made.volume.session
        with Volume.open(made.url, purpose="another") as other:
            assert {session.session for session in made.meta.sessions()} == {number, other.session}
            inode = made.put("file", b"data")
            other.metadata.unlink(other.metadata.attributes(inode).parent, b"file", other.session)
            assert other.metadata.orphans() == [(other.session, inode)]
        assert [session.session for session in made.meta.sessions()] == [number]
        assert made.meta.orphans() == [], "what it had open went with it"


@pytest.mark.allows_warnings("taken for dead", "session 1 was ended; it can reserve no block")
def test_a_process_that_was_taken_for_dead_stores_again_what_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Stopped for longer than sessions live, while garbage was collected: without a session no block can be reserved."""
    with volume_folder() as root, opened(root, cache="a") as one, opened(root, cache="b") as other:
        number = one.volume.session
        other.meta.end_session(number)
        data = noise(3 * BLOCK)
        inode = one.put("file", data)
        wait_until(lambda: not other.meta.staged(), "the drain of a process that has a session again")
        assert number in {session.session for session in other.meta.sessions()}
        assert "taken for dead" in caplog.text
        assert other.get(inode) == data
        other.change(inode, b"second")
        other.flush()
        assert one.get(inode)[:6] == b"second"


def test_what_was_staged_while_the_machine_was_called_otherwise_is_read_and_stored() -> None:
    """A lease or a container gives a machine another name; the SSD directory stays where it is, and what it is."""
    with volume_folder() as root:
        data = noise(3 * BLOCK)
        with opened(root, cache="a", start=False, host="before") as one:
            inode = one.put("file", data)
            with opened(root, cache="b", host="after") as other:
                assert other.get(inode) == data, "read where it is staged"
                assert drain_abandoned(other.volume, lambda *_: None, WAIT_S) == 0, "its process lives"
        with opened(root, cache="b", host="after") as other:
            assert drain_abandoned(other.volume, lambda *_: None, WAIT_S, other.tier.cache) == 1
            assert other.meta.staged() == []
            assert other.get(inode) == data
            other.change(inode, b"second")


@pytest.mark.allows_warnings("a reader was told")
def test_a_directory_that_another_cache_has_taken_is_not_read_as_the_one_before() -> None:
    with volume_folder() as root, opened(root, cache="a", start=False, host="before") as one:
        inode = one.put("file", noise(BLOCK))
        with opened(root, cache="b", host="after", clock=FastClock()) as other:
            identity = root / "a/tieredfs-cache.json"
            for damaged in (identity.read_text().replace('"cache": "', '"cache": "f'), "[]", "{", None):
                identity.unlink() if damaged is None else identity.write_text(damaged)
                with pytest.raises(UnavailableError, match="staged on host before"):
                    other.get(inode)


def test_what_a_mount_left_staged_is_found_again() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            inode = made.put("file", noise(BLOCK))
            copy = made.put("copy", noise(BLOCK, 2))
        with opened(root) as made:
            assert made.ssd.recovered.staged == 2
            assert made.get(inode) == noise(BLOCK)
            made.flush()
        with opened(root) as made:
            assert (made.ssd.recovered.staged, made.ssd.recovered.copies_kept) == (0, 2)
            assert made.get(copy) == noise(BLOCK, 2)
            assert made.blocks.reads == [], "the copies are kept"
            wait_until(lambda: made.state(copy) is FileState.RESIDENT, "it is idle")
