"""Several processes behind one port: the interpreter of each serves its own connections.

The kernel deals connections out among the workers (SO_REUSEPORT). Each has the volume open for itself, with an SSD directory of
its own; what they agree on is the volume's metadata, so whatever holds between processes of one volume holds here. A
worker that dies takes its connections with it and nothing else: another is started, and takes its directory over.

A worker (`worker`) is told on its standard input what to serve, and the end of that says that the supervisor is gone:
then it ends too.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tieredfs.errors import UnavailableError
from tieredfs_gateway.s3.serving import Serving, encode, share_of

STOP_WAIT_S: Final = 60.0
SHORT_LIFE_S: Final = 30.0
SHORT_LIVES_MAX: Final = 3
_WORKER: Final = "tieredfs_gateway.s3.worker"
_METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_log: Final = logging.getLogger("tieredfs_gateway.s3")


class Supervisor:
    """Keeps `asked.workers` processes going until it is told to stop."""

    def __init__(self, asked: Serving) -> None:
        self._asked = asked
        self._line = encode(share_of(asked))
        self._stopping = asyncio.Event()
        self._metrics = tempfile.mkdtemp(prefix="tieredfs-s3-metrics-")
        self._failure = ""

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, and until every worker has ended. Raises UnavailableError when workers keep dying."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._asked.workers):
                    tasks.create_task(self._keep())
        finally:
            shutil.rmtree(self._metrics, ignore_errors=True)
        if self._failure:
            raise UnavailableError(self._failure)

    async def _keep(self) -> None:
        """One worker after another."""
        short_lives = 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            process = await self._start()
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await self._end(process, ended)
                return
            stopping.cancel()
            short_lives = short_lives + 1 if time.monotonic() - started_s < SHORT_LIFE_S else 0
            _log.warning("worker %d ended with status %d; another is started", process.pid, process.returncode)
            self._forget(process.pid)
            if short_lives >= SHORT_LIVES_MAX:
                self._failure = f"{short_lives} workers in a row ended within {SHORT_LIFE_S:.0f} s of their start"
                self._stopping.set()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _WORKER,
            stdin=asyncio.subprocess.PIPE,
            env=os.environ | {_METRICS_FOLDER: self._metrics},
        )
        assert process.stdin is not None
        process.stdin.write(self._line)
        return process

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await asyncio.shield(ended)
        except TimeoutError:
            _log.warning("worker %d did not end within %.0f s and is killed", process.pid, STOP_WAIT_S)
            process.kill()
            await ended

    def _forget(self, pid: int) -> None:
        """What it counted stays; what it had under way does not."""
        for path in Path(self._metrics).glob(f"gauge_live*_{pid}.db"):
            path.unlink(missing_ok=True)
