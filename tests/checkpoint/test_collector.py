"""Pauses of the cycle collector: as long as the longest, and only for who had it on."""

import gc
import time

import pytest

from tieredfs_client.checkpoint.collector import collector_paused, collector_paused_briefly


def test_the_last_pause_to_end_lets_it_go_on() -> None:
    assert gc.isenabled()
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "another one goes on"
    assert gc.isenabled()


def test_it_goes_on_after_a_failure() -> None:
    @collector_paused()
    def fail() -> None:
        assert not gc.isenabled()
        raise ValueError("as it may")

    for _ in range(2):
        with pytest.raises(ValueError, match="as it may"):
            fail()
        assert gc.isenabled()


def test_who_has_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_brief_pause_ends_with_its_work_or_before_it() -> None:
    with collector_paused_briefly(60.0):
        assert not gc.isenabled()
    assert gc.isenabled()
    with collector_paused_briefly(0.001):
        end_s = time.monotonic() + 30
        while not gc.isenabled() and time.monotonic() < end_s:
            time.sleep(0.001)
        assert gc.isenabled(), "its work goes on, and it is over"
        with collector_paused():
            assert not gc.isenabled()
    assert gc.isenabled(), "it has ended once"
    with collector_paused():
        with collector_paused_briefly(60.0):
            pass
        assert not gc.isenabled(), "another one goes on"
    assert gc.isenabled()
