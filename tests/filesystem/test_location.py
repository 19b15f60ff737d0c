"""URLs, ranges, and the table of errors: what is decided without a volume."""

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs import errors
from tieredfs_client.filesystem.location import Location, parse, url_of
from tieredfs_client.filesystem.ranges import Wish, coalesced, resolved
from tieredfs_client.filesystem.translation import ERRNO_OR_VALUE, translated


@pytest.mark.parametrize(
    ("url", "meta_url", "path"),
    [
        ("tieredfs:///data/volume.db!/run/file", "sqlite:///data/volume.db", "run/file"),
        ("tieredfs:///data/volume.db!/", "sqlite:///data/volume.db", ""),
        ("tieredfs:///data/volume.db!", "sqlite:///data/volume.db", ""),
        ("tieredfs:///data/volume.db!/a!/b", "sqlite:///data/volume.db", "a!/b"),
        ("tieredfs://run//file/", None, "run/file"),
        ("tieredfs:///run/file", None, "run/file"),
        ("tieredfs://a!/b", None, "a!/b"),
        ("tieredfs::run/file", None, "run/file"),
        ("a!/b", None, "a!/b"),
        ("/a/b/", None, "a/b"),
        ("", None, ""),
    ],
)
def test_urls(url: str, meta_url: str | None, path: str) -> None:
    assert parse(url) == Location(meta_url, path)
    assert parse(parse(url).path) == Location(None, path), "a stripped path stays as it is"


def test_a_url_is_made_as_it_is_read() -> None:
    for meta_url in ("sqlite:///data/volume.db", "postgresql://me@a,b:5433/vol?schema=x&sslmode=require"):
        assert parse(url_of(meta_url, "a/b!/c")) == Location(meta_url, "a/b!/c")


def test_the_table_of_errors_is_total() -> None:
    assert set(ERRNO_OR_VALUE) == set(errors.domain_errors())


KINDS = sorted(errors.domain_errors(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_domain_error_becomes_one_of_pythons(kind: type[errors.TieredError]) -> None:
    said = translated(kind("why"), "a/b")
    assert isinstance(said, ValueError if ERRNO_OR_VALUE[kind] == 0 else OSError)
    assert isinstance(said, ValueError) or said.filename == "a/b"


@pytest.mark.parametrize(
    ("kind", "python"),
    [
        (errors.NotFoundError, FileNotFoundError),
        (errors.VolumeNotFoundError, FileNotFoundError),
        (errors.AlreadyExistsError, FileExistsError),
        (errors.IsDirectoryError, IsADirectoryError),
        (errors.NotDirectoryError, NotADirectoryError),
        (errors.AccessDeniedError, PermissionError),
        (errors.NotPermittedError, PermissionError),
        (errors.DeadlineError, TimeoutError),
    ],
)
def test_the_errors_that_programs_catch(kind: type[errors.TieredError], python: type[OSError]) -> None:
    assert isinstance(translated(kind("why")), python)


def test_rotten_data_is_an_io_error() -> None:
    assert {ERRNO_OR_VALUE[kind] for kind in (errors.CorruptError, errors.DataLossError)} == {errno.EIO}


@given(st.binary(max_size=40), st.none() | st.integers(-50, 50), st.none() | st.integers(-50, 50))
def test_ranges_are_those_of_slices(data: bytes, start: int | None, end: int | None) -> None:
    first, last = resolved(start, end, len(data))
    assert data[first:last] == data[start:end]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), max_size=12), st.integers(0, 40))
def test_reads_serve_every_wish_once_and_stay_apart(ranges: list[tuple[int, int]], gap: int) -> None:
    reads = coalesced([Wish(index, start, start + size) for index, (start, size) in enumerate(ranges)], gap)
    served = [wish.index for read in reads for wish in read.wishes]
    assert sorted(served) == list(range(len(ranges)))
    assert all(read.start <= wish.start and wish.end <= read.end for read in reads for wish in read.wishes)
    assert all(after.start > before.end + gap for before, after in itertools.pairwise(reads))
