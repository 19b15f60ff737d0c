"""Who reads requests stays awake while they come densely, and gives way; everybody else finds it asleep."""

from collections.abc import Iterator

import pytest

from tieredfs.fuse.kernel.attention import AWAKE_S, CROWDED_S, REST_S, Attention

LOOK_S = AWAKE_S / 10


class Stream:
    """Requests that come at given times; a clock that looks and sleeps move. `given_way` and `sleeps` are counted."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.next_s = 0.0
        self.look_s = LOOK_S
        self.given_way = 0
        self.sleeps = 0
        self.attention = Attention(self._sleep, self._give_way, lambda: self.now_s >= self.next_s, lambda: self.now_s)

    def _give_way(self) -> None:
        self.given_way += 1
        self.now_s += self.look_s

    def _sleep(self) -> None:
        self.sleeps += 1
        assert self.next_s > self.now_s, "who sleeps has looked before"
        self.now_s = self.next_s

    def request_after(self, gap_s: float) -> tuple[int, int]:
        """The next request comes that long after the last answer; returns how often was given way to others, and slept."""
        self.next_s, before = self.now_s + gap_s, (self.given_way, self.sleeps)
        self.attention.wait()
        assert self.now_s >= self.next_s
        return self.given_way - before[0], self.sleeps - before[1]


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    made.request_after(1.0)  # a silent mount
    yield made
    assert made.attention.sleeps == made.sleeps


def test_who_asks_sparsely_finds_it_asleep(stream: Stream) -> None:
    for _ in range(10):
        assert stream.request_after(2 * AWAKE_S) == (0, 1)


def test_who_asks_densely_finds_it_awake_from_the_second_wait_on(stream: Stream) -> None:
    assert stream.request_after(AWAKE_S / 2) == (0, 1)
    for _ in range(10):
        given_way, sleeps = stream.request_after(AWAKE_S / 2)
        assert sleeps == 0
        assert 5 <= given_way <= 6


def test_it_waits_awake_once_when_the_stream_ends(stream: Stream) -> None:
    for _ in range(10):
        stream.request_after(AWAKE_S / 2)
    given_way, sleeps = stream.request_after(60.0)
    assert sleeps == 1
    assert given_way <= 11
    assert stream.request_after(60.0) == (0, 1)


def test_it_sleeps_where_others_want_the_processor(stream: Stream) -> None:
    for _ in range(10):
        stream.request_after(AWAKE_S / 2)
    stream.look_s = 2 * CROWDED_S  # somebody computes
    assert stream.request_after(3 * CROWDED_S) == (1, 1)
    rested_until_s = stream.now_s + REST_S - 4 * CROWDED_S
    while stream.now_s < rested_until_s:
        assert stream.request_after(AWAKE_S / 2) == (0, 1)


def test_it_is_awake_again_after_a_rest(stream: Stream) -> None:
    for look_s in (LOOK_S, 2 * CROWDED_S, LOOK_S):
        stream.look_s = look_s
        for _ in range(3):
            stream.request_after(AWAKE_S / 2)
    stream.request_after(REST_S)
    stream.request_after(AWAKE_S / 2)
    assert stream.request_after(AWAKE_S / 2)[1] == 0
