"""Conformance suite for chunk stores: what every implementation, and every stack of wrappers, must do.

Subclass `ChunkStoreSuite` in a test module, and give it a store and two hooks that reach around the API, so that a bug
in `put` can't hide a bug in `read_into`:

    class TestMyStore(ChunkStoreSuite):
        def new_store(self, folder): ...        # an empty store
        def raw(self, store, name): ...         # the stored bytes, header and payload, or None
        def set_raw(self, store, name, raw): ...  # replace them behind the store's back (None: remove)
"""

import random
import threading
from pathlib import Path

import pytest

from tieredfs.chunk.store import ChunkInfo, ChunkName, ChunkStore
from tieredfs.core.crc import join_cells
from tieredfs.errors import CorruptError, NotFoundError
from tieredfs.host import isal
from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES, CHUNK_FIXED_HEADER_BYTES, CHUNK_HEADER_BYTES
from tieredfs.model import BlockId, Code, CodeKind

CODE = Code(CodeKind.REED_SOLOMON, 4, 2)
SIZES = (CHUNK_ALIGNMENT_BYTES, CELL_BYTES, 3 * CELL_BYTES + 5 * CHUNK_ALIGNMENT_BYTES, 12 * CELL_BYTES)


def pattern(size_bytes: int, seed: int = 0) -> bytes:
    """The same bytes for the same seed, others for another; a shorter pattern is the start of a longer one."""
    return random.Random(seed).randbytes(-(-size_bytes // 4) * 4)[:size_bytes]


def info_of(name: ChunkName, payload: bytes, code: Code = CODE) -> tuple[ChunkInfo, memoryview]:
    """What `put` is told of a payload: the info, and the cells' checksums."""
    crcs = isal.cell_crcs(payload, CELL_BYTES)
    whole = join_cells(crcs, CELL_BYTES, len(payload))
    return ChunkInfo(name, code, code.data_count * len(payload), len(payload), whole), memoryview(crcs)


def put(store: ChunkStore, name: ChunkName, payload: bytes) -> ChunkInfo:
    info, crcs = info_of(name, payload)
    store.put(info, memoryview(payload), crcs)
    return info


def read(store: ChunkStore, name: ChunkName, offset: int, length: int) -> bytes:
    target = bytearray(length)
    store.read_into(name, offset, memoryview(target))
    return bytes(target)


def name_of(block: int, index: int = 0) -> ChunkName:
    return ChunkName(BlockId(block), index)


class ChunkStoreSuite:
    """Inherit, and implement the three hooks."""

    def new_store(self, folder: Path) -> ChunkStore:
        raise NotImplementedError

    def raw(self, store: ChunkStore, name: ChunkName) -> bytes | None:
        raise NotImplementedError

    def set_raw(self, store: ChunkStore, name: ChunkName, raw: bytes | None) -> None:
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> ChunkStore:
        return self.new_store(tmp_path)

    # ---- what is put can be read ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size_bytes", SIZES)
    def test_what_was_put_is_read(self, store: ChunkStore, size_bytes: int) -> None:
        payload = pattern(size_bytes)
        info = put(store, name_of(7, 3), payload)
        assert read(store, name_of(7, 3), 0, size_bytes) == payload
        assert store.info(name_of(7, 3)) == info
        raw = self.raw(store, name_of(7, 3))
        assert raw is not None
        assert raw[CHUNK_HEADER_BYTES:] == payload

    @pytest.mark.parametrize("start", [0, 1, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1, 3 * CELL_BYTES])
    @pytest.mark.parametrize("length", [0, 1, 4096, CELL_BYTES, CELL_BYTES + 1, 3 * CELL_BYTES])
    def test_any_range_is_read(self, store: ChunkStore, start: int, length: int) -> None:
        payload = pattern(6 * CELL_BYTES + CHUNK_ALIGNMENT_BYTES)
        put(store, name_of(1), payload)
        assert read(store, name_of(1), start, length) == payload[start : start + length]
        assert read(store, name_of(1), len(payload) - length, length) == payload[len(payload) - length :]

    def test_chunks_do_not_touch_each_other(self, store: ChunkStore) -> None:
        names = [name_of(block, index) for block in (0, 1, 256, 1 << 63) for index in (0, 5)]
        for seed, name in enumerate(names):
            put(store, name, pattern(CHUNK_ALIGNMENT_BYTES, seed))
        for seed, name in enumerate(names):
            assert read(store, name, 0, CHUNK_ALIGNMENT_BYTES) == pattern(CHUNK_ALIGNMENT_BYTES, seed)
        assert sorted(store.names(), key=str) == sorted(names, key=str)

    def test_the_payload_is_not_kept_after_put(self, store: ChunkStore) -> None:
        payload = bytearray(pattern(CELL_BYTES))
        info, crcs = info_of(name_of(1), bytes(payload))
        store.put(info, memoryview(payload), crcs)
        payload[:] = bytes(CELL_BYTES)
        assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)

    def test_putting_again_is_harmless_and_putting_anew_replaces(self, store: ChunkStore) -> None:
        for seed in (0, 0, 1):
            put(store, name_of(1), pattern(CELL_BYTES, seed))
            assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES, seed)
        assert list(store.names()) == [name_of(1)]

    # ---- absence ----------------------------------------------------------------------------------------------------

    def test_what_is_absent_is_not_found(self, store: ChunkStore) -> None:
        put(store, name_of(1, 0), pattern(CELL_BYTES))
        with pytest.raises(NotFoundError):
            read(store, name_of(1, 1), 0, 1)
        with pytest.raises(NotFoundError):
            store.info(name_of(2, 0))

    def test_deleted_is_absent_and_deleting_again_is_harmless(self, store: ChunkStore) -> None:
        put(store, name_of(1), pattern(CELL_BYTES))
        assert read(store, name_of(1), 0, 1) == pattern(1)
        for _ in range(2):
            store.delete(name_of(1))
        with pytest.raises(NotFoundError):
            read(store, name_of(1), 0, 1)
        assert list(store.names()) == []

    def test_space_is_what_the_medium_has(self, store: ChunkStore) -> None:
        space = store.space()
        assert 0 <= space.free_bytes <= space.total_bytes

    # ---- damage -----------------------------------------------------------------------------------------------------

    def expect_corrupt(self, store: ChunkStore, name: ChunkName, length: int) -> None:
        with pytest.raises(CorruptError):
            read(store, name, 0, length)

    @pytest.mark.parametrize(
        "at",
        [
            *(0, 8, 13, 17, CHUNK_FIXED_HEADER_BYTES, CHUNK_FIXED_HEADER_BYTES + 5, CHUNK_HEADER_BYTES - 1),
            *(CHUNK_HEADER_BYTES, CHUNK_HEADER_BYTES + CELL_BYTES - 1, CHUNK_HEADER_BYTES + 3 * CELL_BYTES + 100, -1),
        ],
    )
    def test_one_flipped_bit_is_recognised(self, store: ChunkStore, at: int) -> None:
        payload = pattern(3 * CELL_BYTES + CHUNK_ALIGNMENT_BYTES)
        put(store, name_of(1), payload)
        raw = bytearray(self.raw(store, name_of(1)) or b"")
        raw[at] ^= 0x10
        self.set_raw(store, name_of(1), bytes(raw))
        self.expect_corrupt(store, name_of(1), len(payload))

    def test_damage_in_one_cell_leaves_the_others_readable(self, store: ChunkStore) -> None:
        payload = pattern(4 * CELL_BYTES)
        put(store, name_of(1), payload)
        raw = bytearray(self.raw(store, name_of(1)) or b"")
        raw[CHUNK_HEADER_BYTES + CELL_BYTES] ^= 1
        self.set_raw(store, name_of(1), bytes(raw))
        assert read(store, name_of(1), 2 * CELL_BYTES + 5, CELL_BYTES) == payload[2 * CELL_BYTES + 5 :][:CELL_BYTES]
        self.expect_corrupt(store, name_of(1), CELL_BYTES + 1)

    @pytest.mark.parametrize("left", [0, 1, CHUNK_HEADER_BYTES - 1, CHUNK_HEADER_BYTES, CHUNK_HEADER_BYTES + 1, -1])
    def test_truncation_is_recognised(self, store: ChunkStore, left: int) -> None:
        payload = pattern(2 * CELL_BYTES)
        put(store, name_of(1), payload)
        self.set_raw(store, name_of(1), (self.raw(store, name_of(1)) or b"")[:left])
        self.expect_corrupt(store, name_of(1), 1)

    def test_trailing_bytes_are_recognised(self, store: ChunkStore) -> None:
        put(store, name_of(1), pattern(CELL_BYTES))
        self.set_raw(store, name_of(1), (self.raw(store, name_of(1)) or b"") + b"x")
        self.expect_corrupt(store, name_of(1), CELL_BYTES)

    def test_swapped_chunks_are_recognised(self, store: ChunkStore) -> None:
        first, second = name_of(1, 0), name_of(2, 0)
        put(store, first, pattern(CELL_BYTES, 1))
        put(store, second, pattern(CELL_BYTES, 2))
        one, two = self.raw(store, first), self.raw(store, second)
        self.set_raw(store, first, two)
        self.set_raw(store, second, one)
        self.expect_corrupt(store, first, CELL_BYTES)
        self.expect_corrupt(store, second, CELL_BYTES)

    def test_a_chunk_under_a_siblings_name_is_recognised(self, store: ChunkStore) -> None:
        put(store, name_of(1, 0), pattern(CELL_BYTES))
        self.set_raw(store, name_of(1, 1), self.raw(store, name_of(1, 0)))
        self.expect_corrupt(store, name_of(1, 1), CELL_BYTES)
        with pytest.raises(CorruptError):
            store.info(name_of(1, 1))

    def test_a_foreign_file_under_a_chunks_name_is_recognised(self, store: ChunkStore) -> None:
        self.set_raw(store, name_of(1), b"not a chunk at all\n" * 1000)
        self.expect_corrupt(store, name_of(1), 1)

    def test_asking_beyond_the_end_is_an_error(self, store: ChunkStore) -> None:
        put(store, name_of(1), pattern(CHUNK_ALIGNMENT_BYTES))
        self.expect_corrupt(store, name_of(1), CHUNK_ALIGNMENT_BYTES + 1)

    def test_a_damaged_chunk_can_be_put_anew(self, store: ChunkStore) -> None:
        put(store, name_of(1), pattern(CELL_BYTES))
        self.set_raw(store, name_of(1), b"")
        self.expect_corrupt(store, name_of(1), 1)
        put(store, name_of(1), pattern(CELL_BYTES))
        assert read(store, name_of(1), 0, CELL_BYTES) == pattern(CELL_BYTES)

    # ---- many at once -----------------------------------------------------------------------------------------------

    def test_threads_put_read_and_delete_at_once(self, store: ChunkStore) -> None:
        wrong: list[str] = []

        def work(worker: int) -> None:
            for turn in range(8):
                name = name_of(worker * 100 + turn)
                payload = pattern(2 * CELL_BYTES, worker * 100 + turn)
                put(store, name, payload)
                if read(store, name, 100, CELL_BYTES) != payload[100 : 100 + CELL_BYTES]:
                    wrong.append(str(name))
                if turn % 2:
                    store.delete(name)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert len(list(store.names())) == 6 * 4
