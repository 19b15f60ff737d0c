"""What `tieredfs s3` does: look whether there can be serving, then serve, or look after those who do.

Who only looks after workers loads nothing that serves.
"""

import asyncio

from tieredfs.volume import Volume
from tieredfs_gateway.addresses import check_free, check_tls
from tieredfs_gateway.s3.serving import Serving, begin_logging


def serve(asked: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises what opening the volume raises, BusyError, ConfigurationError."""
    begin_logging(asked)
    check_tls(asked.cert, asked.key)
    check_free(asked.host, asked.port)
    if asked.workers == 1:
        from tieredfs_gateway.s3.server import serve_alone

        serve_alone(asked)
        return
    from tieredfs_gateway.s3.workers import Supervisor

    with Volume.open(
        asked.meta_url, purpose="s3", memory_bytes=asked.memory_bytes
    ):  # what is wrong with it is said once, and here
        pass
    asyncio.run(Supervisor(asked).run())
