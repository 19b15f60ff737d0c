"""Conformance suite for shelves of dumps: what every implementation must do.

Subclass `DumpShelfSuite` in a test module, and give it a shelf and hooks that reach around the API:

    class TestMyShelf(DumpShelfSuite):
        def new_shelf(self, folder): ...              # an empty one
        def raw(self, shelf, name): ...               # the bytes below `metadata/` under that name, or None
        def set_raw(self, shelf, name, raw): ...      # put some there behind the shelf's back (None: remove)
        def give_away(self, shelf): ...               # the disk becomes another volume's
"""

import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tieredfs.chunk.dump_shelf import HEAD_BYTES, DumpShelf, DumpSource
from tieredfs.errors import NotFoundError, UnavailableError
from tieredfs.host import LocalFiles
from tieredfs.limits import DUMP_PIECE_BYTES, KIB

SIZES = (1, HEAD_BYTES, HEAD_BYTES + 1, DUMP_PIECE_BYTES, DUMP_PIECE_BYTES + HEAD_BYTES + 7, 2 * DUMP_PIECE_BYTES)
TAKEN_NS = 1_700_000_000_000_000_000


def content(size_bytes: int, seed: int = 0) -> bytes:
    """The same bytes for the same seed, others for another."""
    return random.Random(seed).randbytes(size_bytes)


@contextmanager
def source_of(raw: bytes) -> Iterator[DumpSource]:
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.flush()
        yield DumpSource(LocalFiles(), file.fileno(), len(raw))


def put(shelf: DumpShelf, taken_ns: int, raw: bytes) -> None:
    with source_of(raw) as source:
        shelf.put(taken_ns, source)


def read(shelf: DumpShelf, taken_ns: int) -> bytes:
    return b"".join(shelf.read(taken_ns))


def name_of(taken_ns: int) -> str:
    return f"{taken_ns:016x}.dump"


class BrokenSource(DumpSource):
    """One whose second piece cannot be read."""

    def piece(self, offset: int, length: int) -> bytes:
        if offset:
            raise UnavailableError("the source broke")
        return super().piece(offset, length)


class DumpShelfSuite:
    """Inherit, and implement the four hooks."""

    several_bytes = DUMP_PIECE_BYTES
    """Of each dump that is put beside others: more than a piece."""

    def new_shelf(self, folder: Path) -> DumpShelf:
        raise NotImplementedError

    def raw(self, shelf: DumpShelf, name: str) -> bytes | None:
        raise NotImplementedError

    def set_raw(self, shelf: DumpShelf, name: str, raw: bytes | None) -> None:
        raise NotImplementedError

    def give_away(self, shelf: DumpShelf) -> None:
        raise NotImplementedError

    @pytest.fixture
    def shelf(self, tmp_path: Path) -> DumpShelf:
        return self.new_shelf(tmp_path)

    @pytest.mark.parametrize("size_bytes", SIZES)
    def test_what_was_put_is_read_in_pieces_of_bounded_size(self, shelf: DumpShelf, size_bytes: int) -> None:
        raw = content(size_bytes)
        put(shelf, TAKEN_NS, raw)
        pieces = list(shelf.read(TAKEN_NS))
        assert b"".join(pieces) == raw == self.raw(shelf, name_of(TAKEN_NS))
        assert len(pieces[0]) == min(HEAD_BYTES, size_bytes)
        assert max(map(len, pieces)) <= DUMP_PIECE_BYTES

    def test_an_empty_shelf(self, shelf: DumpShelf) -> None:
        assert shelf.taken() == []
        shelf.delete(TAKEN_NS)
        with pytest.raises(NotFoundError):
            read(shelf, TAKEN_NS)

    def test_dumps_are_listed_newest_first_and_deleted_one_by_one(self, shelf: DumpShelf) -> None:
        for at in (2, 1, 3):
            put(shelf, TAKEN_NS + at, content(100, at))
        assert shelf.taken() == [TAKEN_NS + at for at in (3, 2, 1)]
        for _ in range(2):
            shelf.delete(TAKEN_NS + 2)
        assert shelf.taken() == [TAKEN_NS + at for at in (3, 1)]
        with pytest.raises(NotFoundError):
            read(shelf, TAKEN_NS + 2)
        assert read(shelf, TAKEN_NS + 1) == content(100, 1)

    def test_putting_again_is_harmless_and_putting_anew_replaces(self, shelf: DumpShelf) -> None:
        for seed in (0, 0, 1):
            put(shelf, TAKEN_NS, content(5 * KIB, seed))
            assert read(shelf, TAKEN_NS) == content(5 * KIB, seed)
        assert shelf.taken() == [TAKEN_NS]

    def test_labels_tell_dumps_apart(self, shelf: DumpShelf) -> None:
        labels = {shelf.label(TAKEN_NS + at) for at in range(3)}
        assert len(labels) == 3
        assert all(name_of(TAKEN_NS + at) in "".join(labels) for at in range(3))

    def test_what_is_no_dump_is_not_listed(self, shelf: DumpShelf) -> None:
        put(shelf, TAKEN_NS, content(10))
        for name in ("note.txt", f"{name_of(TAKEN_NS + 1)}.12-ab", f"{TAKEN_NS:x}", "0.dump"):
            self.set_raw(shelf, name, b"?")
        assert shelf.taken() == [TAKEN_NS]

    def test_one_that_breaks_off_is_not_there(self, shelf: DumpShelf) -> None:
        put(shelf, TAKEN_NS, content(10))
        with source_of(content(2 * DUMP_PIECE_BYTES)) as whole, pytest.raises(UnavailableError, match="broke"):
            shelf.put(TAKEN_NS + 1, BrokenSource(whole.files, whole.descriptor, whole.size_bytes))
        assert shelf.taken() == [TAKEN_NS]
        assert self.raw(shelf, name_of(TAKEN_NS + 1)) is None

    def test_one_that_replaces_and_breaks_off_changes_nothing(self, shelf: DumpShelf) -> None:
        put(shelf, TAKEN_NS, content(10))
        with source_of(content(2 * DUMP_PIECE_BYTES)) as whole, pytest.raises(UnavailableError, match="broke"):
            shelf.put(TAKEN_NS, BrokenSource(whole.files, whole.descriptor, whole.size_bytes))
        assert read(shelf, TAKEN_NS) == content(10)

    def test_what_became_another_volumes_is_out_of_reach(self, shelf: DumpShelf) -> None:
        put(shelf, TAKEN_NS, content(10))
        self.give_away(shelf)
        for act in (
            lambda: put(shelf, TAKEN_NS + 1, content(10)),
            lambda: put(shelf, TAKEN_NS + 1, content(DUMP_PIECE_BYTES + 1)),
            lambda: read(shelf, TAKEN_NS),
            lambda: shelf.delete(TAKEN_NS),
            shelf.taken,
        ):
            with pytest.raises(UnavailableError):
                act()
        assert self.raw(shelf, name_of(TAKEN_NS)) == content(10)
        assert self.raw(shelf, name_of(TAKEN_NS + 1)) is None

    def test_several_at_once(self, shelf: DumpShelf) -> None:
        def work(at: int) -> None:
            put(shelf, TAKEN_NS + at, content(self.several_bytes + at, at))

        threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert shelf.taken() == [TAKEN_NS + at for at in (2, 1, 0)]
        for at in range(3):
            assert read(shelf, TAKEN_NS + at) == content(self.several_bytes + at, at)
