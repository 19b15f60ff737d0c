"""Token buckets on a clock that is moved by hand: what goes, in which order, and never more than the link has."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.core.budget import Budget, TokenBuckets, Traffic
from tieredfs.errors import ConfigurationError

RATE, BURST = 1000, 500
STRICT = Budget(RATE, BURST, {})


def test_a_class_that_comes_first_goes_first_and_each_in_its_order() -> None:
    buckets = TokenBuckets(STRICT, 0.0)
    assert buckets.grants(0.0) == []
    assert buckets.wait_s() is None
    buckets.ask(Traffic.BACKFILL, BURST)  # all that there is
    assert len(buckets.grants(0.0)) == 1
    late = buckets.ask(Traffic.BACKFILL, 100)
    second, third = buckets.ask(Traffic.TRAINING, 100), buckets.ask(Traffic.TRAINING, 100)
    first = buckets.ask(Traffic.CHECKPOINT, 100)
    order = []
    for step in range(1, 100):
        order += buckets.grants(step / 100)
    assert order == [first, second, third, late]


def test_a_floor_keeps_a_class_alive_below_one_that_takes_all() -> None:
    buckets = TokenBuckets(Budget(RATE, BURST, {Traffic.BACKFILL: 0.1}), 0.0)
    for _ in range(1000):
        buckets.ask(Traffic.CHECKPOINT, 100)
        buckets.ask(Traffic.BACKFILL, 10)
    for step in range(1001):
        buckets.grants(step / 100)
    granted = buckets.granted_bytes
    assert 1000 <= granted[Traffic.BACKFILL] <= 1100
    assert 8900 <= granted[Traffic.CHECKPOINT] <= 9600


def test_what_a_class_leaves_others_use() -> None:
    buckets = TokenBuckets(Budget(RATE, BURST, {Traffic.TRAINING: 0.5, Traffic.BACKFILL: 0.5}), 0.0)
    for _ in range(200):
        buckets.ask(Traffic.BACKFILL, 100)
    for step in range(1001):
        buckets.grants(step / 100)
    assert RATE * 10 <= buckets.granted_bytes[Traffic.BACKFILL] <= RATE * 10 + BURST + 200


def test_what_went_unasked_is_waited_for_and_who_gave_up_is_not() -> None:
    buckets = TokenBuckets(STRICT, 0.0)
    buckets.charge(Traffic.CHECKPOINT, 3 * BURST, 0.0)
    given_up, kept = buckets.ask(Traffic.TRAINING, 1), buckets.ask(Traffic.TRAINING, 1)
    buckets.withdraw(given_up)
    assert buckets.grants(0.9) == []
    wait_s = buckets.wait_s()
    assert wait_s is not None
    assert wait_s == pytest.approx(0.1)
    assert buckets.grants(0.9 + wait_s) == [kept]


def test_two_users_of_a_link_take_half_of_it_each() -> None:
    users = [TokenBuckets(STRICT, 0.0) for _ in range(2)]
    for user in users:
        user.share(0.5, 0.0)
        for _ in range(1000):
            user.ask(Traffic.TRAINING, 10)
    for step in range(201):
        for user in users:
            user.grants(step / 10)
    total = sum(user.granted_bytes[Traffic.TRAINING] for user in users)
    assert RATE * 10 <= total <= 20_000
    assert total == 20_000, "20 s of the whole link and both bursts suffice"


@pytest.mark.parametrize(
    ("rate", "burst", "floors"),
    [(0, 1, {}), (1, 0, {}), (1, 1, {Traffic.TRAINING: -0.1}), (1, 1, dict.fromkeys(Traffic, 0.4))],
)
def test_a_budget_that_makes_no_sense_is_refused(rate: float, burst: int, floors: dict[Traffic, float]) -> None:
    with pytest.raises(ConfigurationError):
        Budget(rate, burst, floors)


REQUESTS = st.lists(
    st.tuples(st.sampled_from(list(Traffic)), st.integers(1, 2000), st.floats(0, 0.5)), min_size=1, max_size=60
)


@settings(deadline=None)
@given(REQUESTS, st.dictionaries(st.sampled_from(list(Traffic)), st.floats(0, 0.33)))
def test_everything_goes_in_the_end_and_never_faster_than_the_link(
    requests: list[tuple[Traffic, int, float]], floors: dict[Traffic, float]
) -> None:
    buckets = TokenBuckets(Budget(RATE, BURST, floors), 0.0)
    now_s, sizes, went = 0.0, {}, Counter[int]()
    most = BURST + len(Traffic) * (BURST + max(size for _, size, _ in requests))
    for traffic, size, pause_s in requests:
        now_s += pause_s
        sizes[buckets.ask(traffic, size)] = size
        went.update(buckets.grants(now_s))
        assert sum(sizes[number] for number in went) <= most + RATE * now_s
    while (wait_s := buckets.wait_s()) is not None:
        now_s += wait_s
        granted = buckets.grants(now_s)
        assert granted, "after that long something goes"
        went.update(granted)
        assert sum(sizes[number] for number in went) <= most + RATE * now_s
    assert went == Counter(dict.fromkeys(sizes, 1))
