"""Several iterators over one dataset object, and what a fork makes of a running one: each has its own batches and position."""

import json
import os
import signal
from typing import Any

import pytest

from tests.serving.rig import ROWS, Gateway

BATCH = 100
CHILD_WAIT_S = 60


def firsts(batches: Any, count: int) -> list[int]:
    """The first rows of the next batches."""
    return [next(batches).column("id")[0].as_py() for _ in range(count)]


@pytest.mark.parametrize("transport", ["shared", "http"])
def test_two_loops_over_one_dataset_do_not_disturb_each_other(served: Gateway, transport: str) -> None:
    with served.dataset(transport=transport, batch_size=BATCH) as data:
        rows = 0
        for one, other in zip(data, data, strict=True):
            assert one.equals(other)
            rows += one.num_rows
        assert (rows, data.reconnects) == (ROWS, 0)


def test_a_loop_that_goes_on_after_a_state_was_loaded_gets_its_own_epoch(served: Gateway) -> None:
    with served.dataset(shuffle="full", seed=3, batch_size=5000, transport="shared") as data:
        epochs = [[batch.column("id").to_pylist() for batch in data] for _ in range(2)]
        data.set_epoch(1)
        ahead = iter(data)
        next(ahead)
        second = data.state_dict()
        data.set_epoch(0)
        behind = iter(data)
        next(behind)
        data.load_state_dict(second)
        resumed = iter(data)
        assert next(resumed).column("id").to_pylist() == epochs[1][1]
        assert next(behind).column("id").to_pylist() == epochs[0][1]
        assert (data.state_dict()["epoch"], data.state_dict()["batches"]) == (1, 2)


def test_a_position_that_was_set_is_not_moved_by_a_loop_from_before(served: Gateway) -> None:
    with served.dataset(batch_size=1000) as data:
        running = iter(data)
        firsts(running, 5)
        state = data.state_dict()
        firsts(running, 5)
        data.load_state_dict(state)
        assert firsts(running, 1) == [10_000]
        assert data.state_dict() == state
        assert len(list(running)) == 9
        assert data.state_dict() == state, "the loop that ended is not the one whose epoch this is"
        assert firsts(iter(data), 1) == [5000]
        running = iter(data)
        firsts(running, 3)
        data.set_epoch(4)
        firsts(running, 1)
        assert (data.state_dict()["epoch"], data.state_dict()["batches"]) == (4, 0)


@pytest.mark.parametrize("transport", ["shared", "http"])
def test_a_child_goes_on_with_a_stream_of_its_own(served: Gateway, transport: str) -> None:
    expected = list(range(0, ROWS, BATCH))
    with served.dataset(transport=transport, batch_size=BATCH) as data:
        running = iter(data)
        held = [next(running) for _ in range(3)]
        before = [batch.to_pydict() for batch in held]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(CHILD_WAIT_S)
            found: object
            try:
                held.clear()  # given back, as far as the child knows
                found = firsts(running, 60)
            except BaseException as error:  # noqa: BLE001 - told to the parent
                found = repr(error)
            os.write(writer, json.dumps(found).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            mine = firsts(running, 60)
            theirs = json.loads(told.read() or b"null")
        os.waitpid(child, 0)
        mine += [batch.column("id")[0].as_py() for batch in running]
        assert theirs == expected[3:63]
        assert mine == expected[3:]
        assert [batch.to_pydict() for batch in held] == before
        assert data.reconnects == 0
