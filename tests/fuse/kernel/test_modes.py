"""The table of I/O modes: every pair, and random histories against the kernel's own rules written down again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.fuse.kernel.modes import (
    CLOSED,
    HOLDERS,
    OPENING,
    InodeModes,
    Mode,
    Offered,
    State,
    after_close,
    after_open,
    mode_of_open,
    offered,
)

IMPOSSIBLE = set(itertools.product((State.CLOSED, State.DIRECT), (Offered.OTHER_WHOLE, Offered.OTHER_PART)))


@pytest.mark.parametrize(("state", "offer"), list(itertools.product(State, Offered)))
def test_every_pair_is_decided_or_impossible(state: State, offer: Offered) -> None:
    assert ((state, offer) in OPENING) != ((state, offer) in IMPOSSIBLE)
    if (state, offer) in OPENING:
        mode, after = OPENING[state, offer]
        assert mode in HOLDERS[after] or (mode, after) == (Mode.DIRECT, State.CACHED)
        if mode is Mode.PASSTHROUGH:
            assert offer is Offered.SAME_WHOLE


@pytest.mark.parametrize(("state", "mode"), list(itertools.product(State, Mode)))
def test_every_close_leaves_a_state_or_is_a_broken_promise(state: State, mode: Mode) -> None:
    modes = InodeModes(state, backing=7, backing_id=9 if state is State.PASSTHROUGH else 0, holders=1, directs=0)
    if mode in HOLDERS[state]:
        after, closing = after_close(modes, mode)
        assert after == CLOSED
        assert closing == (9 if state is State.PASSTHROUGH else 0)
    else:
        with pytest.raises(AssertionError):
            after_close(modes, mode)


class KernelRules:
    """What Linux keeps per inode (`iocachectr`, the backing file) and refuses, said a second time."""

    def __init__(self) -> None:
        self.counter = 0
        self.backing_id = 0

    def open(self, mode: Mode, backing_id: int) -> None:
        names_passthrough = mode in (Mode.PASSTHROUGH, Mode.VEILED)
        assert names_passthrough or not self.backing_id, "EINVAL: an inode in passthrough, an open that is not"
        if mode is Mode.DIRECT:
            return
        if mode is Mode.CACHED:
            assert self.counter >= 0, "ETXTBSY"
            self.counter += 1
            return
        assert backing_id
        assert self.backing_id in (0, backing_id), "EBUSY: another backing file"
        assert self.counter <= 0, "ETXTBSY"
        self.counter -= 1
        self.backing_id = backing_id

    def close(self, mode: Mode) -> None:
        if mode is Mode.CACHED:
            self.counter -= 1
        elif mode is not Mode.DIRECT:
            self.counter += 1
            if self.counter == 0:
                self.backing_id = 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.booleans(), st.integers(0, 100)), max_size=60))
def test_histories_never_break_the_kernels_rules(steps: list[tuple[bool, int, bool, int]]) -> None:
    modes, kernel = CLOSED, KernelRules()
    opens: list[tuple[Mode, int, int]] = []
    lent, next_id = set[int](), itertools.count(1)
    for opening, backing, whole, pick in steps:
        if opening or not opens:
            mode = mode_of_open(modes, backing, whole=whole)
            backing_id = modes.backing_id
            if mode is Mode.PASSTHROUGH and modes == CLOSED:
                backing_id = next(next_id)
                lent.add(backing_id)
            kernel.open(mode, backing_id if mode in (Mode.PASSTHROUGH, Mode.VEILED) else 0)
            modes = after_open(modes, mode, backing, backing_id if mode is Mode.PASSTHROUGH else modes.backing_id)
            opens.append((mode, backing, backing_id))
            assert mode is not Mode.PASSTHROUGH or (whole and backing == modes.backing)
        else:
            mode, _, _ = opens.pop(pick % len(opens))
            kernel.close(mode)
            modes, closing = after_close(modes, mode)
            if closing:
                lent.remove(closing)
        assert modes.holders + modes.directs == len(opens)
    assert lent == ({modes.backing_id} if modes.backing_id else set())


@given(st.permutations([Mode.DIRECT, Mode.CACHED, Mode.CACHED]))
def test_a_successor_finds_the_same_state_in_any_order(order: list[Mode]) -> None:
    modes = CLOSED
    for mode in order:
        modes = after_open(modes, mode, 7, 0)
    assert (modes.state, modes.holders, modes.directs) == (State.CACHED, 2, 1)


def test_offers_are_seen_from_the_inode() -> None:
    cached = InodeModes(State.CACHED, backing=7, holders=1)
    assert offered(cached, 7, whole=True) is Offered.SAME_WHOLE
    assert offered(cached, 8, whole=False) is Offered.OTHER_PART
    assert offered(CLOSED, 8, whole=True) is Offered.SAME_WHOLE
