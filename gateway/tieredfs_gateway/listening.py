"""How the front ends of this package listen: Granian, with the same bounds for all of them.

Granian parses HTTP and moves bytes to and from sockets without the GIL. Heads of requests have a deadline, queues a length.
"""

from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

HEAD_WAIT_MS: Final = 30_000
BACKLOG: Final = 1024
REQUESTS_MAX: Final = 1024
"""Under way at one time; Granian lets the others wait in its queue."""


def server_of(app: Any, host: str, port: int, *, cert: Path | None, key: Path | None) -> Server:
    """An HTTP/1 server of an ASGI application without a lifespan; `serve` it on a running event loop."""
    return Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=REQUESTS_MAX,
        http1_settings=HTTP1Settings(header_read_timeout=HEAD_WAIT_MS),
        log_level=LogLevels.error,
        ssl_cert=cert,
        ssl_key=key,
    )
