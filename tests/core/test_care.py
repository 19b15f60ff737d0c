"""What the curator decides, case by case."""

import itertools

import pytest

from tieredfs.core.care import Ailment, ChunkFate, Health, chunk_fate, health, still_silent, timed_out
from tieredfs.limits import SESSION_TIMEOUT_S
from tieredfs.model import Block, BlockId, ChunkLocation, Code, CodeKind, DiskId, Session, SessionId

RS42 = Code(CodeKind.REED_SOLOMON, 4, 2)
HERE, ELSEWHERE = DiskId(1), DiskId(2)


def block_with(*places: tuple[int, DiskId]) -> Block:
    return Block(BlockId(9), RS42, 100, 4096, tuple(ChunkLocation(index, disk, 0) for index, disk in places))


@pytest.mark.parametrize(
    ("block", "reserved", "working", "fate"),
    [
        (None, False, {HERE, ELSEWHERE}, ChunkFate.UNKNOWN),
        (None, True, {HERE, ELSEWHERE}, ChunkFate.IN_FLIGHT),
        (block_with((0, HERE)), False, {HERE, ELSEWHERE}, ChunkFate.NAMED),
        (block_with((0, HERE)), True, set(), ChunkFate.NAMED),
        (block_with((0, ELSEWHERE)), False, {HERE, ELSEWHERE}, ChunkFate.STRAY),
        (block_with((0, ELSEWHERE)), True, {HERE, ELSEWHERE}, ChunkFate.IN_FLIGHT),
        (block_with((0, ELSEWHERE)), False, {HERE}, ChunkFate.IN_FLIGHT),
        (block_with((1, HERE)), False, {HERE, ELSEWHERE}, ChunkFate.IN_FLIGHT),
    ],
    ids=["unknown", "reserved", "named", "named-anyway", "stray", "rewritten", "other-is-away", "only-one"],
)
def test_fate_of_chunk_0_that_was_seen_here(
    block: Block | None, reserved: bool, working: set[DiskId], fate: ChunkFate
) -> None:
    assert chunk_fate(0, HERE, block, reserved, working) is fate


def test_health_against_counting() -> None:
    for ailments in itertools.product([None, *Ailment], repeat=RS42.width):
        ill = [ailment for ailment in ailments if ailment is not None]
        readable, away = ailments.count(None), ill.count(Ailment.UNREACHABLE)
        found = health(RS42, ill)
        assert (found is Health.WHOLE) == (readable == 6)
        assert (found in {Health.WHOLE, Health.DEGRADED}) == (readable >= 4)
        assert (found is Health.LOST) == (readable + away < 4)


def test_sessions_are_dead_when_they_are_silent_twice() -> None:
    now_ns = 10**18

    def session(number: int, age_s: float) -> Session:
        return Session(SessionId(number), "h", 1, "mount", 0, now_ns - int(age_s * 1e9))

    old = SESSION_TIMEOUT_S + 1
    first = timed_out(
        [session(1, old), session(2, old), session(3, 1), session(4, old)], [SessionId(5)], now_ns, SessionId(4)
    )
    assert set(first) == {1, 2, 5}
    second = timed_out([session(1, old), session(2, 0.5), session(5, 0.5)], [], now_ns, SessionId(4))
    assert still_silent(first, second) == [1]
    lost = timed_out([], [SessionId(5)], now_ns, SessionId(4))
    assert still_silent(first, lost) == [5]
