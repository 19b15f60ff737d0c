"""The process behind `tieredfs status-page`: a volume, somebody who looks at it, FastAPI around them, Granian below."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredfs.errors import ConfigurationError, TieredError
from tieredfs.host import memory
from tieredfs.volume import Volume
from tieredfs_gateway.addresses import check_free, check_tls, is_loopback
from tieredfs_gateway.listening import server_of
from tieredfs_gateway.status.app import Door, create_app
from tieredfs_gateway.status.history import EVERY_S
from tieredfs_gateway.status.looking import Looker
from tieredfs_gateway.status.page import page_in_a_file

PURPOSE: Final = "status-page"
COUNT_MAX_S: Final = 10.0
"""A page in a file waits so long for the count of all blocks."""
RATES_S: Final = 1.0
"""And its rates are over this time."""
_log: Final = logging.getLogger("tieredfs_gateway.status")


@dataclass(frozen=True, slots=True)
class Serving:
    """What `tieredfs status-page` was asked for."""

    meta_url: str
    host: str
    port: int
    secret: bytes | None = None
    cert: Path | None = None
    key: Path | None = None


def serve(asked: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises what opening the volume raises, BusyError, ConfigurationError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if asked.secret is None and not is_loopback(asked.host):
        raise ConfigurationError(
            f"{asked.host} is not loopback: off this machine the page asks for tokens; give a secret "
            "(TIEREDFS_GATEWAY_SECRET or --secret-file), and make tokens with `tieredfs status-token`"
        )
    check_tls(asked.cert, asked.key)
    check_free(asked.host, asked.port)
    memory.keep_freed_memory_low()
    with Volume.open(asked.meta_url, purpose=PURPOSE) as volume:
        looker = Looker(volume)
        looker.look()
        with _looking_on(looker):
            asyncio.run(_serve(asked, looker))


@contextlib.contextmanager
def _looking_on(looker: Looker) -> Iterator[None]:
    """So that there is a past to be shown when somebody comes to see."""
    closing = threading.Event()

    def run() -> None:
        pause_s, look_at_s = 0.0, 0.0
        while not closing.wait(pause_s):
            pause_s = min(looker.count_on(), EVERY_S)
            if time.monotonic() < look_at_s:
                continue
            look_at_s = time.monotonic() + EVERY_S
            try:
                looker.look()
            except TieredError as error:
                _log.info("nothing can be seen now: %s", error)

    thread = threading.Thread(target=run, name="looking-on", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join(EVERY_S)


async def _serve(asked: Serving, looker: Looker) -> None:
    door = Door(asked.secret, secure=asked.cert is not None)
    server = server_of(create_app(looker.look, door), asked.host, asked.port, cert=asked.cert, key=asked.key)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    scheme = "https" if asked.cert else "http"
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    _log.info("the status of %s at %s://%s:%d/", asked.meta_url, scheme, host, asked.port)
    await server.serve()


def write_page(meta_url: str, path: Path) -> None:
    """The page of this moment, whole or not at all. Raises what opening the volume raises; OSError."""
    with Volume.open(meta_url, purpose=PURPOSE) as volume:
        looker = Looker(volume)
        first = looker.look()
        looker.count_whole(COUNT_MAX_S)
        if first.mounts:
            volume.host.clock.sleep(RATES_S)
        page = page_in_a_file(looker.look_anew())
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name that nobody asked for
    finally:
        part.unlink(missing_ok=True)
