"""What the engine suite runs in processes of its own. Apart from the suite, so that a worker does not import pytest."""

import signal
import struct
import sys
from collections.abc import Callable

from tieredfs.kv.engine import Engine, Reader, Writer

Opener = Callable[[str], Engine]
"""Opens the database at a location that has one. Must be picklable: a class, or a function of a module."""

COUNTER = b"counter"
_U64 = struct.Struct(">Q")


def read_counter(reader: Reader) -> int:
    value = reader.get(COUNTER)
    return 0 if value is None else int(_U64.unpack(value)[0])


def increment(writer: Writer) -> int:
    """Add one to the counter, and leave a key of that number: two keys that must agree."""
    count = read_counter(writer) + 1
    writer.put(COUNTER, _U64.pack(count))
    writer.put(b"seen" + _U64.pack(count), b"")
    return count


def increment_many(opener: Opener, location: str, times: int) -> None:
    engine = opener(location)
    for _ in range(times):
        engine.write(increment)
    engine.close()


def pair_keys(number: int) -> tuple[bytes, bytes]:
    """Two keys far apart, written together."""
    return b"a" + _U64.pack(number), b"z" + _U64.pack(number)


def write_pairs(opener: Opener, location: str) -> None:
    """Commit pair after pair, reporting each on standard output after its commit, until killed."""
    signal.alarm(60)  # should the one who kills us be gone
    engine = opener(location)
    number = 0
    while True:
        first, second = pair_keys(number)

        def change(writer: Writer, first: bytes = first, second: bytes = second) -> None:
            writer.put(first, b"x" * 3000)
            writer.put(second, b"x" * 3000)

        engine.write(change)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1
