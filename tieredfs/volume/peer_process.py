"""`python -m tieredfs.volume.peer_process META_URL PARENT`: the process that `tieredfs.volume.peer_keeper` keeps serving.

A process of its own because one serves for all of the machine, and because a daemon's requests, or a training's steps, would wait
for its interpreter. It ends with the process PARENT. Where it listens, and the secret, are in the environment.
"""

import logging
import os
import sys

from tieredfs.cache.peers import LISTEN_VARIABLE
from tieredfs.errors import TieredError
from tieredfs.host.memory import keep_freed_memory_low
from tieredfs.model import NO_CACHE
from tieredfs.volume.caretaker import Caretaker
from tieredfs.volume.peering import (
    CERT_VARIABLE,
    KEY_VARIABLE,
    PURPOSE,
    Listening,
    serve_until,
    stopping_by_signals,
)
from tieredfs.volume.volume import Volume


def serve(meta_url: str, listening: Listening, parent: int = 0) -> None:
    """Until SIGTERM or SIGINT, or the end of `parent`. Raises BusyError, ConfigurationError, and what opening raises."""
    keep_freed_memory_low()
    os.environ.pop(LISTEN_VARIABLE, None)  # it needs nobody to do this for it
    stopping = stopping_by_signals()
    with Volume.open(meta_url, purpose=PURPOSE) as volume:
        caretaker = Caretaker(volume, NO_CACHE)
        caretaker.start()
        try:
            serve_until(stopping, volume, listening, parent)
        finally:
            caretaker.close()


def main(meta_url: str, parent: int) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    given = os.environ
    try:
        listening = Listening.asked(given[LISTEN_VARIABLE], cert=given.get(CERT_VARIABLE), key=given.get(KEY_VARIABLE))
        serve(meta_url, listening, parent)
    except (TieredError, OSError) as error:
        sys.stderr.write(f"what is staged on this host is not served to others: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
