"""The table of a content's life: every pair of state and event is looked at."""

import itertools

import pytest

from tieredfs.core.file_life import DIRTY, TRANSITIONS, WHOLE, FileEvent, FileState, next_state

PAIRS = list(itertools.product(FileState, FileEvent))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
def test_every_pair_is_in_the_table_or_an_error(state: FileState, event: FileEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match="cannot see"):
            next_state(state, event)


def reachable(start: FileState) -> set[FileState]:
    found, pending = {start}, [start]
    while pending:
        here = pending.pop()
        after = {TRANSITIONS[pair] for pair in PAIRS if pair[0] is here and pair in TRANSITIONS}
        pending += after - found
        found |= after
    return found


def test_every_state_is_reached_and_every_event_is_seen() -> None:
    assert reachable(FileState.ABSENT) == set(FileState)
    assert {event for _, event in TRANSITIONS} == set(FileEvent)


def test_a_discarded_content_stays_discarded() -> None:
    assert reachable(FileState.DISCARDED) == {FileState.DISCARDED}


@pytest.mark.parametrize(
    "state", [state for state in FileState if state is not FileState.DISCARDED], ids=lambda state: state.name
)
def test_from_every_state_a_content_can_become_safe_and_evicted(state: FileState) -> None:
    assert {FileState.RESIDENT, FileState.ABSENT} <= reachable(state)


def test_a_dirty_content_becomes_clean_only_by_its_commit_or_when_nothing_was_written() -> None:
    leaving = {
        (state, event)
        for (state, event), after in TRANSITIONS.items()
        if state in DIRTY and after not in DIRTY and event is not FileEvent.DELETED
    }
    assert leaving == {
        (FileState.STAGING, FileEvent.UNCHANGED),
        (FileState.SEALED, FileEvent.UNCHANGED),
        (FileState.DRAINING, FileEvent.DRAIN_COMMITTED),
    }


def test_only_an_idle_clean_content_is_evicted() -> None:
    assert {state for state, event in TRANSITIONS if event is FileEvent.EVICTED} == {
        FileState.ABSENT,
        FileState.RESIDENT,
    }
    assert DIRTY < WHOLE
    assert FileState.ABSENT not in WHOLE


DIRTY_BY_NAME = sorted(DIRTY, key=lambda state: state.name)


@pytest.mark.parametrize("state", DIRTY_BY_NAME, ids=lambda state: state.name)
def test_a_writer_may_come_at_any_time_while_dirty(state: FileState) -> None:
    assert next_state(state, FileEvent.WRITE_BEGUN) is FileState.STAGING
