"""Rates between two looks at a daemon's counters."""

import json
from dataclasses import asdict, replace

import pytest

from tieredfs.core.activity import (
    KIND_OF,
    OPERATIONS,
    Activity,
    Counters,
    DiskCounts,
    Kind,
    Spent,
    between,
    counters_from,
)
from tieredfs.errors import InvalidRequestError
from tieredfs.fuse.kernel.wire import Op

BEFORE = Counters(
    process=7,
    at_s=100.0,
    requests={"lookup": 10, "open": 4, "forget": 50},
    passthrough_opens=3,
    fills=1,
    stored_bytes=1000,
    cpu_s=1.0,
    disks={1: DiskCounts(2, 200, 0.2, 0, 0, 0.0)},
)
AFTER = replace(
    BEFORE,
    at_s=102.0,
    requests={"lookup": 16, "open": 12, "forget": 90, "create": 2},
    passthrough_opens=13,
    fills=3,
    stored_bytes=5000,
    cpu_s=1.5,
    disks={1: DiskCounts(6, 600, 0.6, 0, 0, 0.0), 2: DiskCounts(0, 0, 0.0, 1, 64, 0.25)},
    staged_bytes=12,
    staged_oldest_age_s=3.0,
)
SPENT = {Kind.LOOK: Spent(6, 0.006), Kind.OPEN: Spent(10, 0.004), Kind.HOUSEKEEPING: Spent(40, 9.0)}


def activity() -> Activity:
    return between(BEFORE, AFTER, SPENT)


def test_every_request_of_the_kernel_is_of_a_kind() -> None:
    assert KIND_OF.keys() == {op.name.lower() for op in Op} | {"rename"}
    assert Kind.HOUSEKEEPING not in OPERATIONS


def test_rates_are_those_of_the_interval() -> None:
    found = activity()
    assert (found.interval_s, found.passthrough_opens_per_s, found.stored_bytes_per_s) == (2.0, 5.0, 2000.0)
    assert (found.cpu_ratio, found.staged_bytes, found.staged_oldest_age_s) == (0.25, 12, 3.0)
    assert found.kinds["look"].per_s == 3.0
    assert found.kinds["open"].per_s == 5.0
    assert found.kinds["write"].per_s == 0.0


def test_what_the_kernel_does_for_itself_is_no_operation() -> None:
    operations = activity().operations
    assert operations is not None
    assert operations.per_s == 8.0  # 6 look-ups and 10 opens; 40 forgets are not among them
    assert operations.mean_s == pytest.approx(0.010 / 16)
    assert "housekeeping" not in activity().kinds


def test_an_open_that_had_to_fetch_is_no_hit() -> None:
    assert activity().hit_ratio == pytest.approx(1 - 2 / 10)
    assert between(BEFORE, replace(BEFORE, at_s=101.0), {}).hit_ratio is None
    fetched_ahead = replace(AFTER, fills=100)
    assert between(BEFORE, fetched_ahead, {}).hit_ratio == 0.0


def test_disks_have_means_where_there_was_something() -> None:
    disks = activity().disks
    assert (disks[1].reads_per_s, disks[1].write_mean_s) == (2.0, None)
    assert disks[1].read_mean_s == pytest.approx(0.1)
    assert (disks[2].writes_per_s, disks[2].written_bytes_per_s, disks[2].write_mean_s) == (0.5, 32.0, 0.25)


def test_a_driver_that_counts_nothing_has_no_operations() -> None:
    found = between(replace(BEFORE, requests=None), replace(AFTER, requests=None), {})
    assert found.operations is None
    assert found.kinds == {}


@pytest.mark.parametrize("after", [replace(AFTER, process=8), replace(AFTER, at_s=100.0), replace(AFTER, at_s=99.0)])
def test_two_daemons_have_no_rates_between_them(after: Counters) -> None:
    with pytest.raises(InvalidRequestError):
        between(BEFORE, after, {})


def test_counters_travel_as_json() -> None:
    assert counters_from(json.loads(json.dumps(asdict(AFTER)))) == AFTER
    assert counters_from({**json.loads(json.dumps(asdict(AFTER))), "volume_uuid": "u", "newer": 1}) == AFTER


@pytest.mark.parametrize("tree", [{}, {"process": 1}, {"process": 1, "at_s": 1.0, "disks": {"one": {}}}])
def test_counters_of_another_release_are_refused(tree: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="another release"):
        counters_from(tree)
