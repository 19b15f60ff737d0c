"""A formatted volume on a real SQLite file, and a clock that moves only when told to."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tieredfs.kv.engine import Engine, Reader, Writer
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.meta.metadata import Metadata, format_volume
from tieredfs.model import (
    CacheId,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    VolumeConfig,
)
from tieredfs.testing.metadata_check import broken_invariants

T = TypeVar("T")

CODE = Code(CodeKind.REED_SOLOMON, 2, 1)
CONFIG = VolumeConfig("uuid", "name", 1, 1_000, CODE, 64 << 20, Durability.SSD)
DISKS = [
    Disk(DiskId(number), f"uuid-{number}", f"disk:///d{number}", f"domain-{number}", DiskState.ACTIVE)
    for number in (1, 2, 3)
]


class ManualClock:
    """Each look at the wall clock is 1 ns later than the one before, so that any two times differ."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000

    def wall_ns(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, duration_s: float) -> None:
        self.now_ns += int(duration_s * 1e9)


@dataclass
class Volume:
    path: str
    engine: Engine
    clock: ManualClock
    metadata: Metadata
    cache: CacheId


class _AgainError(Exception):
    pass


class SecondThoughts(SqliteEngine):
    """Runs each function once in vain, as an engine does that lost a race."""

    def read(self, function: Callable[[Reader], T]) -> T:
        super().read(function)
        return super().read(function)

    def write(self, function: Callable[[Writer], T]) -> T:
        def in_vain(writer: Writer) -> None:
            function(writer)
            raise _AgainError

        with suppress(_AgainError):
            super().write(in_vain)
        return super().write(function)


def make_volume(path: str, kind: type[SqliteEngine] = SqliteEngine) -> Volume:
    return volume_in(kind(path, create=True), path)


def volume_in(engine: Engine, path: str) -> Volume:
    """`path`: where the engine has it, for who opens another."""
    clock = ManualClock()
    format_volume(engine, CONFIG, DISKS)
    metadata = Metadata(engine, clock)
    return Volume(path, engine, clock, metadata, metadata.register_cache("cache", "host", "/cache").cache)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """Whatever the test did, the invariants hold afterwards."""
    volume = make_volume(str(tmp_path / "volume.db"))
    yield volume
    assert broken_invariants(volume.engine) == []
    volume.engine.close()


@pytest.fixture
def metadata(volume: Volume) -> Metadata:
    return volume.metadata
