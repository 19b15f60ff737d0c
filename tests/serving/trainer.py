"""A trainer as a process of its own: reads batches, says what it got as JSON lines, and does what its command line says.

    python -m tests.serving.trainer URL SOURCE '{"batch_size": 256, ...}' HOLD

With HOLD it keeps every batch and waits to be killed; else it prints the first column of each batch and ends.
"""

import json
import sys
import time

from tieredfs_client.dataset import GatewayDataset


def main() -> None:
    url, source, options, hold = sys.argv[1:]
    kept = []
    for batch in GatewayDataset(url, source, **json.loads(options)):
        sys.stdout.write(json.dumps(batch.column(0).to_pylist()) + "\n")
        sys.stdout.flush()
        if hold == "hold":
            kept.append(batch)
            if len(kept) == 6:
                time.sleep(60)


if __name__ == "__main__":
    main()
