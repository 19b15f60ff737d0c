"""Pins: a version outlives its gateway, and is let go when nobody comes back for it. Gateways here are `Pins` on one volume."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reading.conftest import new_volume
from tests.reading.files import json_lines, numbered, parquet_bytes, put
from tieredfs.errors import CorruptError, NewerFormatError, NotFoundError
from tieredfs.host import SystemClock
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets import pin_record
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.pin_record import Pin
from tieredfs_gateway.datasets.pins import FOLDER, Kept, Pins
from tieredfs_gateway.datasets.reader import DatasetReader, open_reader

WAIT_S = 30
SPEC = DatasetSpec("data")


class Clock(SystemClock):
    """Time that passes when it is told to."""

    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[FileSystem]:
    with FileSystem.at(new_volume(tmp_path), purpose="test") as opened:
        for number in range(3):
            put(opened, f"data/{number}.parquet", parquet_bytes(numbered(500, number * 500), 100))
        opened.flush(WAIT_S)
        yield opened


def eventually(check: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def names(volume: FileSystem, record: bool = True) -> list[bytes]:
    """Of pins that can be found, or that are there at all."""
    try:
        found = [entry.name for entry, _ in volume.entries(FOLDER)]
    except NotFoundError:
        return []
    return [name for name in found if not record or volume.look([FOLDER + b"/" + name + b"/pin"])[0] is not None]


def rows_of(reader: DatasetReader) -> list[object]:
    return [row for batch in reader.batches(Position(0, 0)) for row in batch.rows.to_pylist()]


def replace_all(volume: FileSystem) -> None:
    put(volume, "data/0.parquet", parquet_bytes(numbered(30, 9000)))
    volume.remove(b"data/1.parquet")
    put(volume, "data/9.parquet", parquet_bytes(numbered(10, 7000)))
    volume.flush(WAIT_S)


def test_another_gateway_goes_on_with_a_version_that_the_dataset_does_not_show_any_more(volume: FileSystem) -> None:
    order = OrderSpec(64, Shuffle.WINDOW, seed=4, window_rows=300)
    with Pins(volume) as first, open_reader(volume, SPEC, order, pins=first) as reader:
        expected, version = rows_of(reader), reader.version
        eventually(lambda: len(names(volume)) == 1)
        first.close()  # as if it was killed: what closes after it lets nothing go
    replace_all(volume)
    with Pins(volume) as second:
        with open_reader(volume, SPEC, order, pins=second, version=version) as reader:
            assert reader.version == version
            assert rows_of(reader) == expected
            eventually(lambda: len(names(volume)) == 2)
        with open_reader(volume, SPEC, order, pins=second, version="0" * 32) as reader:
            assert reader.version not in (version, "0" * 32), "what nobody keeps is as it is now"
        volume.remove_tree(b"data")
        with open_reader(volume, SPEC, order, pins=second, version=version) as reader:
            assert rows_of(reader) == expected
        for other in (DatasetSpec("data/*.parquet"), DatasetSpec("data", format="parquet")):
            with pytest.raises(NotFoundError):
                open_reader(volume, other, order, pins=second, version=version)


def test_the_last_reader_of_a_version_lets_it_go(volume: FileSystem) -> None:
    with Pins(volume) as pins:
        with open_reader(volume, SPEC, OrderSpec(64), pins=pins) as one:
            with open_reader(volume, SPEC, OrderSpec(7), pins=pins) as other:
                assert one.version == other.version
                eventually(lambda: len(names(volume)) == 1)
            with open_reader(volume, SPEC, OrderSpec(7), pins=pins):
                pass
            assert len(names(volume)) == 1
            version = one.version
        replace_all(volume)
        assert pins.find(version, "data", None) is None, "at once, even before it is taken away"
        eventually(lambda: names(volume, record=False) == [])
    volume.remove_tree(b"data")
    eventually(lambda: volume.volume.metadata.orphans() == [])


def test_what_nobody_comes_back_for_is_taken_away_after_its_time(volume: FileSystem) -> None:
    clock = Clock()
    with Pins(volume) as killed:
        reader = open_reader(volume, SPEC, OrderSpec(64), pins=killed)
        eventually(lambda: len(names(volume)) == 1)
    volume.make_directories(FOLDER + b"/0123.4567")  # a maker that died before it wrote the record
    watching, beating = Pins(volume, clock=clock, keep_s=10.0), Pins(volume)
    beating._make(Kept(Pin("f" * 32, "none", None, b"none", "parquet", (), 0), ()))
    for now_s in (0.0, 9.0):
        clock.now_s = now_s
        beating.look_after()
        watching.look_after()
        assert len(names(volume, record=False)) == 3
    clock.now_s = 10.0
    beating.look_after()
    watching.look_after()
    (left,) = names(volume, record=False)
    assert left.startswith(b"f" * 32)
    reader.close()


def test_files_that_a_manifest_names_are_kept_with_it(volume: FileSystem) -> None:
    put(volume, "raw/manifest.jsonl", json_lines([{"file": f"{n}.bin"} for n in range(40)]))
    for number in range(40):
        put(volume, f"raw/{number}.bin", b"old %d" % number)
    spec, order = DatasetSpec("raw"), OrderSpec(8, Shuffle.FULL, seed=1)
    with Pins(volume) as first, open_reader(volume, spec, order, pins=first) as reader:
        expected, version = rows_of(reader), reader.version
        eventually(lambda: len(names(volume)) == 1)
        first.close()
    put(volume, "raw/3.bin", b"new")
    volume.remove(b"raw/4.bin")
    put(volume, "raw/manifest.jsonl", json_lines([{"file": "3.bin"}]))
    with Pins(volume) as second, open_reader(volume, spec, order, pins=second, version=version) as reader:
        assert reader.version == version
        assert rows_of(reader) == expected


@pytest.mark.allows_warnings("cannot be read")
def test_a_pin_that_cannot_be_read_is_as_none(volume: FileSystem, caplog: pytest.LogCaptureFixture) -> None:
    with Pins(volume) as pins:
        reader = open_reader(volume, SPEC, OrderSpec(64), pins=pins)
        eventually(lambda: len(names(volume)) == 1)
    path = FOLDER + b"/" + names(volume)[0] + b"/pin"
    put(volume, path, b"{}")
    with Pins(volume) as others:
        assert others.find(reader.version, "data", None) is None
    assert "cannot be read" in caplog.text
    reader.close()


def test_versions_of_too_many_files_are_not_kept(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieredfs_gateway.datasets.pins.PIN_FILES_MAX", 2)
    with Pins(volume) as pins, open_reader(volume, SPEC, OrderSpec(64), pins=pins) as reader:
        assert len(rows_of(reader)) == 1500
        pins.close()
        assert names(volume, record=False) == []


# ---- the record ------------------------------------------------------------------------------------------------------

GOLDEN = (
    b'{"v":1,"version":"00112233445566778899aabbccddeeff","source":"raw","asked":null,"base":"raw","format":"raw",'
    b'"files":[["raw/manifest.csv",7,2,100,0,0],["raw/\\udcff.bin",8,1,50,0,100],["raw/b.bin",9,1,0,1,0]],"more":2}'
)


def golden() -> pin_record.Pin:
    return pin_record.decode(GOLDEN)


def test_a_record_is_what_the_format_says() -> None:
    pin = golden()
    assert pin_record.encode(pin) == GOLDEN
    assert [(file.path, file.size_bytes, file.attributes.version) for file in pin.files] == [
        (b"raw/manifest.csv", 100, 2),
        (b"raw/\xff.bin", 50, 1),
        (b"raw/b.bin", 0, 1),
    ]
    assert (pin.hold_count, pin.hold_bytes(0), pin.hold_bytes(1), pin.more) == (2, 150, 0, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        GOLDEN[:-1],
        GOLDEN.replace(b",8,1,50", b",8,1"),
        GOLDEN.replace(b",9,1,0,1,0", b",-9,1,0,1,0"),
    ],
)
def test_a_record_that_is_not_one_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        pin_record.decode(data)


def test_a_newer_record_is_refused() -> None:
    with pytest.raises(NewerFormatError):
        pin_record.decode(GOLDEN.replace(b'"v":1', b'"v":2'))
