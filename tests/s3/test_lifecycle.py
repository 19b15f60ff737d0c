"""Lifecycle: rules as values, what the header says, and a sweep over a real volume whose clock is moved."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tieredfs.config import parse_code
from tieredfs.host.turn import Turn
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3 import bucket_rules, record, xml
from tieredfs_gateway.s3.conditions import http_date
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.lifecycle import (
    DAY_NS,
    expires,
    lone_marker_is_due,
    midnight_after,
    noncurrent_is_due,
    parse_lifecycle,
    upload_is_due,
)
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.sweep import Sweep, Swept
from tieredfs_gateway.s3.uploads import Upload, Uploads, new_upload_id
from tieredfs_gateway.s3.version_listing import every

NOON_NS = int(datetime(2030, 1, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000_000


def rules_of(*texts: str) -> Any:
    inside = "".join(f"<Rule><Status>Enabled</Status>{text}</Rule>" for text in texts)
    return parse_lifecycle(xml.parse(document(inside), "LifecycleConfiguration"))


def document(inside: str) -> bytes:
    return f"<LifecycleConfiguration>{inside}</LifecycleConfiguration>".encode()


DAYS = "<Filter><Prefix>a/</Prefix></Filter><Expiration><Days>2</Days></Expiration>"


def test_days_are_over_at_midnight() -> None:
    assert midnight_after(NOON_NS, 1) == NOON_NS + DAY_NS * 3 // 2
    assert midnight_after(NOON_NS - DAY_NS // 2, 1) == NOON_NS + DAY_NS // 2
    due = expires(rules_of(DAYS), "a/k", 1, {}, NOON_NS)
    assert due == (NOON_NS + DAY_NS * 5 // 2, "rule-1")
    assert expires(rules_of(DAYS), "b/k", 1, {}, NOON_NS) is None
    far = expires(rules_of(DAYS.replace("<Days>2", f"<Days>{'9' * 15}")), "a/k", 1, {}, NOON_NS)
    assert far is not None
    assert http_date(far[0]) == "Fri, 31 Dec 9999 00:00:00 GMT"


def test_the_earliest_rule_counts_and_dates_are_days() -> None:
    date = "<Filter/><Expiration><Date>2030-01-02T00:00:00.000Z</Date></Expiration>"
    assert expires(rules_of(DAYS, date), "a/k", 1, {}, NOON_NS) == (NOON_NS + DAY_NS // 2, "rule-2")


def test_filters_are_all_of_their_conditions() -> None:
    rules = rules_of(
        "<Filter><And><Prefix>a/</Prefix><Tag><Key>t</Key><Value>1</Value></Tag><ObjectSizeGreaterThan>5"
        "</ObjectSizeGreaterThan><ObjectSizeLessThan>10</ObjectSizeLessThan></And></Filter>"
        "<Expiration><Days>1</Days></Expiration>"
    )
    assert expires(rules, "a/k", 7, {"t": "1", "u": "2"}, NOON_NS)
    for key, size, tags in (("b", 7, {"t": "1"}), ("a/k", 5, {"t": "1"}), ("a/k", 10, {"t": "1"}), ("a/k", 7, {})):
        assert expires(rules, key, size, tags, NOON_NS) is None


def test_noncurrent_versions_markers_and_uploads() -> None:
    old = rules_of(
        "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays><NewerNoncurrentVersions>2"
        "</NewerNoncurrentVersions></NoncurrentVersionExpiration>"
    )
    assert not noncurrent_is_due(old, "k", 1, {}, NOON_NS, 1, NOON_NS + 3 * DAY_NS)
    assert noncurrent_is_due(old, "k", 1, {}, NOON_NS, 2, NOON_NS + 3 * DAY_NS)
    assert not noncurrent_is_due(old, "k", 1, {}, NOON_NS, 2, NOON_NS + DAY_NS)
    lone = rules_of("<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>")
    assert lone_marker_is_due(lone, "k", NOON_NS, NOON_NS)
    uploads = rules_of(
        "<Prefix>a</Prefix><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
        "</AbortIncompleteMultipartUpload>"
    )
    assert upload_is_due(uploads, "a", NOON_NS, NOON_NS + 2 * DAY_NS)
    assert not upload_is_due(uploads, "b", NOON_NS, NOON_NS + 2 * DAY_NS)
    assert not upload_is_due(old, "a", NOON_NS, NOON_NS + 2 * DAY_NS)


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("", "MalformedXML"),
        ("<Rule><Status>Enabled</Status><Filter/></Rule>", "InvalidRequest"),
        (f"<Rule><Status>On</Status>{DAYS}</Rule>", "MalformedXML"),
        (f"<Rule><ID>{'x' * 256}</ID><Status>Enabled</Status>{DAYS}</Rule>", "InvalidArgument"),
        (f"<Rule><ID>x</ID><Status>Enabled</Status>{DAYS}</Rule>" * 2, "InvalidArgument"),
        ("<Rule><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>", "MalformedXML"),
        ("<Rule><Status>Enabled</Status><Filter/><Expiration><Days>0</Days></Expiration></Rule>", "InvalidArgument"),
        ("<Rule><Status>Enabled</Status><Filter/><Expiration><Days>-1</Days></Expiration></Rule>", "InvalidArgument"),
        ("<Rule><Status>Enabled</Status><Filter/><Expiration><Days>x</Days></Expiration></Rule>", "MalformedXML"),
        ("<Rule><Status>Enabled</Status><Filter/><Expiration><Date>soon</Date></Expiration></Rule>", "MalformedXML"),
        (
            "<Rule><Status>Enabled</Status><Filter/><Expiration><Date>20300101</Date></Expiration></Rule>",
            "MalformedXML",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter/><Expiration><Date>0001-01-01T00:00:00+05:00</Date></Expiration></Rule>",
            "MalformedXML",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter/><Expiration><Date>2030-01-01T01:00:00Z</Date></Expiration></Rule>",
            "InvalidArgument",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter/><Expiration><Days>1</Days><Date>2030-01-01</Date></Expiration></Rule>",
            "MalformedXML",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter/><Transition><Date>20300101</Date></Transition></Rule>",
            "MalformedXML",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter/><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass>"
            "</Transition></Rule>",
            "NotImplemented",
        ),
        (
            "<Rule><Status>Enabled</Status><Filter><Tag><Key>a</Key><Value>b</Value></Tag></Filter>"
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
            "</AbortIncompleteMultipartUpload></Rule>",
            "InvalidRequest",
        ),
    ],
)
def test_rules_that_are_none(inside: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_lifecycle(xml.parse(document(inside), "LifecycleConfiguration"))
    assert caught.value.code == code


# ---- a sweep over a volume -------------------------------------------------------------------------------------------


class MovedClock:
    """The machine's, some days later."""

    def __init__(self, volume: FileSystem) -> None:
        self._clock = volume.volume.host.clock
        self.days = 0

    def wall_ns(self) -> int:
        return self._clock.wall_ns() + self.days * DAY_NS

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s() + self.days * 86_400

    def sleep(self, duration_s: float) -> None:
        self._clock.sleep(duration_s)


class Rig:
    def __init__(self, volume: FileSystem, folder: Path) -> None:
        self.clock = MovedClock(volume)
        self.store = Store(volume, self.clock)
        self.uploads = Uploads(self.store)
        self.turn = Turn(f"{folder}/turn")
        self.sweep = Sweep(self.store, self.uploads, self.clock, self.turn)
        self.store.create_bucket(b"bkt")

    def put(self, key: bytes, tags: bytes | None = None) -> None:
        with self.store.volume.create() as writing:
            self.store.commit(b"bkt", key, writing, Record("0" * 32, record.CREATED_VERSION), tags=tags)

    def set_rules(self, *texts: str) -> None:
        inside = "".join(f"<Rule><Status>Enabled</Status>{text}</Rule>" for text in texts)
        self.store.settings.put(b"bkt", bucket_rules.LIFECYCLE, document(inside))

    def rows(self) -> list[tuple[bytes, bool]]:
        return [(row.key, row.version.record.marker) for row in every(self.store, b"bkt")]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    url = f"sqlite://{tmp_path}/volume.db"
    format_volume(
        url,
        [f"disk://{tmp_path}/d"],
        code=parse_code("replica:1"),
        durability=Durability.SSD,
        name="l",
        block_bytes=1 << 20,
    )
    with FileSystem.at(url, purpose="test") as volume:
        rig = Rig(volume, tmp_path)
        yield rig
        rig.turn.close()


def test_what_is_due_goes_and_nothing_else(rig: Rig) -> None:
    for key in (b"a/1", b"a/2", b"b/1"):
        rig.put(key)
    rig.put(b"a/tagged", b"keep=no")
    rig.set_rules(
        DAYS, "<Filter><Tag><Key>keep</Key><Value>no</Value></Tag></Filter><Expiration><Days>1</Days></Expiration>"
    )
    assert rig.sweep.once() == Swept()
    rig.clock.days = 2
    assert rig.sweep.once() == Swept(expired=1)
    rig.clock.days = 4
    assert rig.sweep.once() == Swept(expired=2)
    assert rig.rows() == [(b"b/1", False)]
    assert rig.sweep.once() == Swept()


def test_versions_expire_to_markers_then_to_nothing(rig: Rig) -> None:
    rig.store.settings.put(b"bkt", bucket_rules.VERSIONING, b"Enabled")
    for _ in range(3):
        rig.put(b"a/k")
    rig.set_rules(
        DAYS,
        "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>",
        "<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
    )
    rig.clock.days = 2
    assert rig.sweep.once() == Swept(noncurrent=2)
    rig.clock.days = 4
    assert rig.sweep.once() == Swept(expired=1)
    assert rig.rows() == [(b"a/k", True), (b"a/k", False)]
    rig.clock.days = 6
    assert rig.sweep.once() == Swept(noncurrent=1)
    assert rig.sweep.once() == Swept(markers=1)
    assert rig.rows() == []
    rig.store.delete_bucket(b"bkt")


def test_a_number_of_old_versions_is_kept(rig: Rig) -> None:
    rig.store.settings.put(b"bkt", bucket_rules.VERSIONING, b"Enabled")
    for _ in range(6):
        rig.put(b"k")
    rig.set_rules(
        "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays><NewerNoncurrentVersions>2"
        "</NewerNoncurrentVersions></NoncurrentVersionExpiration>"
    )
    rig.clock.days = 2
    assert rig.sweep.once() == Swept(noncurrent=3)
    assert len(rig.rows()) == 3


def test_forgotten_uploads_are_aborted(rig: Rig) -> None:
    begun = Upload(new_upload_id(), "bkt", "k", rig.clock.wall_ns(), {}, {}, "", "", "")
    rig.uploads.begin(begun)
    rig.set_rules(
        "<Filter/><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
        "</AbortIncompleteMultipartUpload>"
    )
    assert rig.sweep.once() == Swept()
    rig.clock.days = 2
    assert rig.sweep.once() == Swept(uploads=1)
    assert rig.uploads.listed(b"bkt") == []


def test_what_was_replaced_meanwhile_stays(rig: Rig) -> None:
    rig.put(b"k")
    seen = rig.store.head(b"bkt", b"k")
    rig.put(b"k")
    assert not rig.store.expire(b"bkt", b"k", seen)
    assert rig.store.expire(b"bkt", b"k", rig.store.head(b"bkt", b"k"))


TAKE = """
import sys
from tieredfs.host.turn import Turn
turn = Turn(sys.argv[1])
print(turn.take(), flush=True)
sys.stdin.read()
"""


def test_one_process_of_a_volume_sweeps_and_the_next_one_when_it_is_killed(rig: Rig, tmp_path: Path) -> None:
    rig.put(b"a/1")
    rig.set_rules(DAYS)
    rig.clock.days = 4
    line = [sys.executable, "-c", TAKE, str(tmp_path / "turn")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            assert rig.sweep.once() == Swept()
        finally:
            other.kill()
    assert rig.sweep.once() == Swept(expired=1)
    second = Turn(f"{tmp_path}/turn")
    assert not second.take()
    second.close()
    assert rig.turn.take()


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def test_rules_are_kept_and_objects_say_when_they_go(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError, match="NoSuchLifecycleConfiguration"):
        s3.get_bucket_lifecycle_configuration(Bucket=bucket)
    rules = [
        {"ID": "old logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}},
        {
            "ID": "parts",
            "Status": "Disabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        },
    ]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == rules
    put = s3.put_object(Bucket=bucket, Key="logs/1", Body=b"")
    assert 'rule-id="old%20logs"' in put["Expiration"]
    assert s3.head_object(Bucket=bucket, Key="logs/1")["Expiration"] == put["Expiration"]
    assert "00:00:00 GMT" in put["Expiration"]
    assert "Expiration" not in s3.put_object(Bucket=bucket, Key="other", Body=b"")
    del rules[0]["ID"]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]["ID"] == "rule-1"
    s3.delete_bucket_lifecycle(Bucket=bucket)
    with pytest.raises(ClientError, match="NoSuchLifecycleConfiguration"):
        s3.get_bucket_lifecycle_configuration(Bucket=bucket)
