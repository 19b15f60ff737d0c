"""Who waits says so first, and who does not wait says nothing."""

import threading

import pytest

from tieredfs.host.waiting import AnnouncedRLock, about_to_wait, when_waiting


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture(autouse=True)
def hooked(calls: list[int]):  # type: ignore[no-untyped-def]
    when_waiting(lambda: calls.append(1))
    yield
    when_waiting(None)


def test_a_free_lock_and_one_of_our_own_are_taken_silently(calls: list[int]) -> None:
    lock = AnnouncedRLock()
    with lock, lock:
        pass
    assert calls == []


def test_a_lock_that_another_thread_holds_is_announced_before_it_is_waited_for(calls: list[int]) -> None:
    lock, held, let_go = AnnouncedRLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert let_go.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)

    def called() -> None:
        calls.append(1)
        let_go.set()

    when_waiting(called)  # it would wait for ever if it waited first
    with lock:
        assert calls == [1]
    other.join(10)


def test_the_hook_is_of_one_thread(calls: list[int]) -> None:
    other = threading.Thread(target=about_to_wait)
    other.start()
    other.join(10)
    assert calls == []
    about_to_wait()
    assert calls == [1]
