"""One saver per run: rank 0 of a job holds the run while it saves into it, and a second one is told who has it.

The owner is a small file with the holder's token, host and process, renewed as a heartbeat. A holder whose heartbeat has
stopped, or whose process is gone from this host, is taken over from. Every change is a compare-and-swap on the file's inode,
so of two that take over at once one wins. A holder that was taken over from finds out at its next heartbeat or save; the
attempts that it left are removed by the new one (`Save`), so that even the rename of its last attempt finds nothing.
"""

import contextlib
import json
import os
import threading
from typing import Any, Final

from tieredfs.errors import BusyError, ConditionError, ConflictError, NotDirectoryError, NotFoundError
from tieredfs.host import Host
from tieredfs.model import Attributes, InodeId
from tieredfs.volume.contract import FileSystemContract
from tieredfs_client.checkpoint.catalog import only_if
from tieredfs_client.checkpoint.documents import read_json, shown, write_document
from tieredfs_client.checkpoint.names import RunPaths

HEARTBEAT_S: Final = 15.0
TIMEOUT_S: Final = 60.0


class Ownership:
    """Held from the first `hold` until `release`. Safe from any thread."""

    def __init__(self, volume: FileSystemContract, host: Host, paths: RunPaths, job: str) -> None:
        self._volume = volume
        self._host = host
        self._paths = paths
        self._job = job
        self._token = f"{host.random.getrandbits(64):016x}"
        self._lock = threading.Lock()
        self._inode: InodeId | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """Take the run, or make sure that it is still held. Raises BusyError, which says by whom it is held."""
        with self._lock:
            if self._inode is None:
                self._take()
            elif self._seen_inode() != self._inode:
                raise BusyError(f"{shown(self._paths.root)} was taken over by {self._describe(self._read())}")
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="tieredfs-ckpt-owner", daemon=True)
                self._thread.start()

    def release(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._inode is not None:
                with contextlib.suppress(NotFoundError, NotDirectoryError, ConflictError):
                    self._volume.remove(self._paths.owner, only_if(self._inode))
                self._inode = None

    def _take(self) -> None:
        seen = self._attributes()
        if seen is not None:
            holder = self._read()
            if self._is_alive(seen, holder):
                raise BusyError(f"{shown(self._paths.root)} is being saved into by {self._describe(holder)}")
        try:
            self._inode = self._write(seen.inode if seen else None)
        except ConflictError:
            raise BusyError(
                f"{shown(self._paths.root)} is being saved into by {self._describe(self._read())}"
            ) from None

    def _write(self, expected: InodeId | None) -> InodeId:
        record = {"token": self._token, "host": self._host.name, "process": os.getpid(), "job": self._job}
        data = json.dumps(record).encode()
        condition = only_if(expected)
        return write_document(self._host.files, self._volume, self._paths.owner, data, condition=condition).inode

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with self._lock, contextlib.suppress(ConditionError):  # taken over: the next `hold` says so
                self._inode = self._write(self._inode)

    def _attributes(self) -> Attributes | None:
        try:
            return self._volume.stat(self._paths.owner)
        except (NotFoundError, NotDirectoryError):
            return None

    def _seen_inode(self) -> InodeId | None:
        seen = self._attributes()
        return seen.inode if seen else None

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(NotFoundError, NotDirectoryError, ConditionError):
            record = read_json(self._volume, self._host.clock, self._paths.owner)
            if isinstance(record, dict):
                return record
        return {}

    def _is_alive(self, seen: Attributes, holder: dict[str, Any]) -> bool:
        if seen.mtime_ns < self._host.clock.wall_ns() - int(TIMEOUT_S * 1e9):
            return False
        if holder.get("host") != self._host.name:
            return True
        process = holder.get("process")
        return isinstance(process, int) and _process_exists(process)

    def _describe(self, holder: dict[str, Any]) -> str:
        return f"process {holder.get('process', '?')} on {holder.get('host', '?')} (job {holder.get('job', '?')})"


def _process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
