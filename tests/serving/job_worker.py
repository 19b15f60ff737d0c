"""One of several gateways that serve a job, as a process: says which batch it delivers, and takes its acknowledgement from stdin.

python -m tests.serving.job_worker META_URL SOURCE JOB LEASE_S
"""

import contextlib
import json
import sys
import threading

from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Shuffle
from tieredfs_gateway.datasets.jobs import JobShare, register_of
from tieredfs_gateway.datasets.reader import open_reader

BATCH = 250
RANGE = 4


def main() -> None:
    meta_url, source, job, lease_s = sys.argv[1:]
    spec, order = DatasetSpec(source, columns=("id",)), OrderSpec(BATCH, Shuffle.FULL, seed=7)
    with contextlib.ExitStack() as stack:
        volume = stack.enter_context(FileSystem.at(meta_url, purpose="gateway", cache_bytes=64 << 20))
        reader = stack.enter_context(open_reader(volume, spec, order, memory_bytes=8 << 20, threads=1))
        register, clock = register_of(volume, job, 0), volume.volume.host.clock
        share = JobShare(register, clock, reader, (spec, order), 0, range_batches=RANGE, lease_s=float(lease_s))
        stack.enter_context(share)

        def acknowledge() -> None:
            for line in sys.stdin:
                share.acknowledge(int(line))

        threading.Thread(target=acknowledge, daemon=True).start()
        for batch in share.batches():
            sys.stdout.write(json.dumps([batch.index, batch.rows["id"].to_pylist()]) + "\n")
            sys.stdout.flush()
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
