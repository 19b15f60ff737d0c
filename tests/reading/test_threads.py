"""Work that is shared out: done once, by whoever is free, and never waiting for somebody who has not begun."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from tieredfs.errors import CorruptError, DeadlineError
from tieredfs_gateway.datasets import threads
from tieredfs_gateway.datasets.threads import Threads, share_out


def test_every_item_once_with_the_help_of_others() -> None:
    pool = Threads(3)
    done: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def work(item: int) -> None:
        if item < 2:
            both.wait()  # two threads are at it, or this breaks
        done.append(item)

    share_out(work, range(100), pool.submit, 3)
    pool.close()
    assert Counter(done) == Counter(range(100))


def test_from_a_thread_of_a_pool_that_has_no_other() -> None:
    pool = Threads(1)
    done: list[int] = []
    pool.submit(lambda: share_out(done.append, range(10), pool.submit, 4)).result(10)
    pool.close()
    assert done == list(range(10))


def test_alone_where_the_pool_is_closed() -> None:
    pool = Threads(1)
    pool.close()
    done: list[int] = []
    share_out(done.append, range(10), pool.submit, 4)
    assert done == list(range(10))


def test_who_comes_late_finds_nothing_to_do() -> None:
    late: list[Callable[[], None]] = []
    done: list[int] = []
    share_out(done.append, range(3), late.append, 2)
    for help_out in late:
        help_out()
    assert done == [0, 1, 2]
    assert len(late) == 2


def test_the_first_error_ends_it() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item >= 2:
            raise CorruptError(f"item {item}")
        done.append(item)

    with pytest.raises(CorruptError, match="item 2"):
        share_out(work, range(10), lambda _: None, 4)
    assert done == [0, 1]


def test_another_thread_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WAIT_S", 0.05)
    pool = Threads(1)
    here, begun, leave = threading.get_ident(), threading.Event(), threading.Event()

    def work(_: int) -> None:
        if threading.get_ident() == here:
            assert begun.wait(10)
        else:
            begun.set()
            leave.wait(10)

    with pytest.raises(DeadlineError, match="another thread did not read"):
        share_out(work, range(2), pool.submit, 1)
    leave.set()
    pool.close()
