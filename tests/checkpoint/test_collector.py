"""Pauses of the cycle collector: as long as the longest, and only for who had it on."""

import gc

import pytest

from tieredfs_client.checkpoint.collector import collector_paused


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
