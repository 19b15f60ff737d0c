"""What S3 keeps of an object at rest, and when it no longer holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3.test_listing import attributes
from tieredfs.errors import CorruptError
from tieredfs.model import FileKind
from tieredfs_gateway.s3 import record
from tieredfs_gateway.s3.record import Record

GOLDEN = (Path(__file__).parent / "golden" / "user.s3.json").read_bytes().strip()
FULL = Record(
    "88e7a3c8d23c666d78c5cb486e6ba3a7-3",
    0,
    {"content-type": "application/x-tensor"},
    {"step": "100"},
    ("CRC32", "YAUymw==-3", "COMPOSITE"),
    ((8388608, 2), (4194304, 1)),
    "0123456789abcdef0123456789abcdef",
)


def test_the_golden_record_is_read_for_ever_and_written_so() -> None:
    assert record.decode(GOLDEN) == FULL
    assert record.encode(FULL) == GOLDEN
    assert FULL.part_count() == 3


def test_what_was_changed_through_the_mount_has_another_etag_and_keeps_its_headers() -> None:
    made = attributes(FileKind.REGULAR)
    raw = record.encode(replace(FULL, version=made.version))
    assert record.describe(made, raw).etag == FULL.etag
    changed = made._replace(version=made.version + 1)
    now = record.describe(changed, raw)
    assert now.etag != FULL.etag
    assert now.etag.endswith("-1")
    assert (now.headers, now.metadata, now.checksum, now.parts) == (FULL.headers, FULL.metadata, None, ())
    assert record.describe(changed._replace(mtime_ns=7), raw).etag != now.etag
    assert record.describe(made, None).etag.endswith("-1")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"v":2,"etag":"x"}', b'{"v":1}', b'{"v":1,"etag":"x","parts":[[1]]}', b"\xff"]
)
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptError):
        record.decode(raw)


def test_runs_of_parts_are_short_or_left_out() -> None:
    assert record.runs([5, 5, 5, 3]) == ((5, 3), (3, 1))
    assert record.runs(list(range(10_000))) == ()
