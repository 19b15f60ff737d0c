"""Large buffers come from memory that was touched before, and an array that somebody keeps is never written to again."""

import gc

import pyarrow as pa

from tieredfs.limits import MIB
from tieredfs_gateway.datasets.warm_memory import SMALL_BYTES_MAX, WarmMemory

LARGE = 8 * MIB
KEEP = 40 * MIB


def filled(memory: WarmMemory, value: int, length: int = LARGE) -> pa.Buffer:
    buffer = memory.take(length, KEEP)
    memoryview(buffer).cast("B")[:] = bytes([value]) * length
    return buffer


def test_what_was_let_go_is_taken_again() -> None:
    memory = WarmMemory()
    for value in range(10):
        assert filled(memory, value).size == LARGE
    assert memory.made == 1
    assert memory.usage() == {"used_bytes": 0, "idle_bytes": LARGE}


def test_an_array_that_is_kept_keeps_its_bytes() -> None:
    memory = WarmMemory()
    kept = []
    for value in range(4):
        buffers = [None, pa.py_buffer(b"\0\0\0\0" + LARGE.to_bytes(4, "little")), filled(memory, value)]
        kept.append(pa.BinaryArray.from_buffers(pa.binary(), 1, buffers).slice(0, 1))
    assert memory.made == 4
    assert [bytes(memoryview(array.buffers()[2])) for array in kept] == [bytes([value]) * LARGE for value in range(4)]
    assert memory.usage()["used_bytes"] == 4 * LARGE
    del kept, buffers
    gc.collect()
    assert memory.usage()["used_bytes"] == 0


def test_what_is_kept_has_a_limit() -> None:
    memory = WarmMemory()
    held = [memory.take(LARGE, KEEP) for _ in range(8)]  # what is needed is never refused
    assert memory.usage() == {"used_bytes": 8 * LARGE, "idle_bytes": 0}
    held.clear()
    assert memory.usage() == {"used_bytes": 0, "idle_bytes": KEEP}
    large = memory.take(4 * LARGE, KEEP)
    assert memory.usage() == {"used_bytes": 4 * LARGE, "idle_bytes": KEEP - 4 * LARGE}, "the others make room"
    del large
    assert memory.usage()["idle_bytes"] <= KEEP


def test_memory_is_not_wasted_on_a_buffer_of_half_its_size() -> None:
    memory = WarmMemory()
    filled(memory, 1, 2 * LARGE + MIB)
    filled(memory, 2, LARGE)
    assert memory.made == 2
    filled(memory, 3, LARGE - MIB)
    assert memory.made == 2


def test_small_buffers_are_arrows_own() -> None:
    memory = WarmMemory()
    buffer = memory.take(SMALL_BYTES_MAX, KEEP)
    assert (buffer.size, memory.made) == (SMALL_BYTES_MAX, 0)


def test_a_buffer_may_end_while_its_thread_has_the_lock() -> None:
    """Garbage is collected anywhere."""
    memory = WarmMemory()
    buffer = memory.take(LARGE, KEEP)
    with memory._lock:
        del buffer
    assert memory.usage() == {"used_bytes": 0, "idle_bytes": LARGE}
