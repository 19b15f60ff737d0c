"""A trainer of the dataset benchmark, a process of its own: `python -m bench.dataset_trainer SIDE PLACE OPTIONS`.

It prints `ready`, and for each line on its standard input reads one epoch and prints what it saw as a JSON line. SIDE
`gateway`: PLACE is its URL;
`pyarrow`: a directory of Parquet files. The first column of each batch is looked at; `step_s` makes each step last so long;
`sized` adds up what the batches take in memory. That is asked for where no clock runs: it looks at each column, and of 19 it takes
half of the time that a trainer has work with a batch.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

Epoch = Callable[[], Iterator[pa.RecordBatch]]


def from_gateway(url: str, options: dict[str, Any]) -> tuple[Epoch, Callable[[], int]]:
    from tieredfs_client.dataset import GatewayDataset

    data = GatewayDataset(url, **options)
    return lambda: iter(data), lambda: data.received_bytes


def from_parquet(directory: str, options: dict[str, Any]) -> tuple[Epoch, Callable[[], int]]:
    import pyarrow.dataset

    def epoch() -> Iterator[pa.RecordBatch]:
        files = pyarrow.dataset.dataset(directory, format="parquet")
        yield from files.to_batches(batch_size=options["batch_size"])

    return epoch, lambda: 0


def sleeps() -> int:
    """How often this thread gave up its core by itself."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def read(epoch: Epoch, step_s: float, *, sized: bool) -> dict[str, Any]:
    """Waits: steps, after the first one, that found no batch ready: this thread slept until one came, and for more than a tenth of
    a step. One whose core was given to another thread meanwhile has not slept, and did not wait for data."""
    rows = steps = values = size_bytes = 0
    waits: list[int] = []
    began_s = time.perf_counter()
    batches = epoch()
    while True:
        asked_s, slept = time.perf_counter(), sleeps()
        batch = next(batches, None)
        waited_s, slept = time.perf_counter() - asked_s, sleeps() - slept
        if batch is None:
            break
        rows += batch.num_rows
        size_bytes += batch.nbytes if sized else 0
        values += len(batch.column(0))
        if step_s:
            if steps > 0 and slept and waited_s > step_s / 10:
                waits.append(steps)
            time.sleep(max(0.0, step_s - waited_s))
        steps += 1
        del batch
    return {
        "rows": rows,
        "steps": steps,
        "waits": waits,
        "arrow_bytes": size_bytes,
        "began_s": began_s,
        "ended_s": time.perf_counter(),
        "cpu_s": sum(os.times()[:2]),
    }


def main() -> None:
    side, place, text = sys.argv[1:]
    options = json.loads(text)
    step_s, sized = options.pop("step_s", 0.0), options.pop("sized", False)
    epoch, received = (from_gateway if side == "gateway" else from_parquet)(place, options)
    print("ready", flush=True)
    for _ in sys.stdin:
        before = received()
        found = read(epoch, step_s, sized=sized)
        print(json.dumps(found | {"received_bytes": received() - before}), flush=True)


if __name__ == "__main__":
    main()
