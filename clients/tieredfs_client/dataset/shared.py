"""Batches from a gateway on the same host: mapped, not copied.

The gateway passes descriptors of its slabs over a Unix socket (its `local_socket` says how); a slab has a few batches, which
are Arrow buffers that point into its mapping, read-only. When the last of them is gone (batches, their slices, arrays made of
them without copying), a finalizer gives the slab back. At most `LOANS` are out at a time. Whoever keeps batches of nearly as
many gets copies: the gateway never waits for memory that a program may keep for ever.

Mappings are kept: a slab comes again. The socket is closed when nothing is out any more, for until then the gateway must not
write to those slabs. If the gateway dies, what is mapped stays as it is.

Who asks for views gets values where they lie (`viewing`): then files of the gateway's SSD tier are mapped, too, read-only, with a
descriptor each. They are kept as long as the connection, and as arrays point into them.
"""

import collections
import contextlib
import functools
import json
import mmap
import os
import select
import socket
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tieredfs.errors import UnavailableError
from tieredfs_client.dataset.failures import domain_error
from tieredfs_client.dataset.viewing import MappedFile, shown

LOANS: Final = 12
"""On loan at a time: about half of them in the program's hands, the others on their way."""
COPY_RESERVE: Final = 4
CONNECT_WAIT_S: Final = 2.0
BATCH_WAIT_S: Final = 150.0
POLL_S: Final = 0.5
PACKET_BYTES_MAX: Final = 64 * 1024
DESCRIPTORS_MAX: Final = 64
"""In one packet."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def is_same_host(offer: object) -> bool:
    """Whether a gateway's offer is of this machine. That its socket can be reached is for `SharedConnection` to see."""
    return isinstance(offer, dict) and (own := _boot_id()) is not None and own == offer.get("boot_id")


@functools.cache
def _boot_id() -> str | None:
    """Of this kernel, and so the same for as long as this process."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


class SharedConnection:
    """One trainer's socket to its gateway. One stream at a time; for the process that made it, one thread at a time."""

    def __init__(self, name: str) -> None:
        """Raises OSError when nobody listens there (another container, say)."""
        self._pid = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(CONNECT_WAIT_S)
            self._socket.connect("\0" + name[1:] if name.startswith("@") else name)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        self._maps: dict[int, mmap.mmap] = {}
        self._files: dict[int, MappedFile] = {}
        self._stride = 1
        self._parcel: _Parcel | None = None
        self._out = 0
        self._returned: collections.deque[int] = collections.deque()
        self._closing = False
        self._is_reading = False
        self._has_said = False
        """That it has nothing left to go on with, since the last parcel."""
        self.copied = 0
        """Batches that were copied because the program kept so many."""

    @property
    def is_free(self) -> bool:
        """For another stream: not while one is under way, and not in a child that has this object by a fork."""
        return self._pid == os.getpid() and not self._closing and not self._is_reading

    @property
    def is_reading(self) -> bool:
        """A stream is under way. It closes its connection when it is left."""
        return self._is_reading and not self._closing

    def read(
        self, session: str, token: str | None, epoch: int, batch: int, stride: int, *, views: bool = False
    ) -> "SharedStream":
        """Asks, and says in the same message what came back from the program and that it has nothing to go on with."""
        self._parcel, self._stride = None, stride
        asked = {"session": session, "token": token, "epoch": epoch, "batch": batch, "stride": stride}
        self._is_reading = self._has_said = True
        message: dict[str, object] = {"read": asked, "loans": LOANS, "done": self._taken_back(), "waits": True}
        try:
            self._socket_send(message | ({"views": True} if views else {}))
        except UnavailableError:
            self.close()
            raise
        return SharedStream(self, batch, stride)

    def next(self) -> tuple[int, pa.RecordBatch] | None:
        """Raises UnavailableError, SessionUnknownError, and what the gateway says."""
        while True:
            if self._parcel is not None:
                found = self._parcel.next(self._stride)
                if found is not None:
                    return found[0], self._kept(self._parcel, found[1])
                self._parcel = None
            if not self._receive():
                return None

    def _kept(self, parcel: "_Parcel", cut: "_Cut") -> pa.RecordBatch:
        """A copy where the program has nearly all that may be out: this slab, too, may be kept for ever."""
        if not parcel.is_lent_only and self._out - len(self._returned) <= LOANS - COPY_RESERVE:
            return parcel.shown(self._files, cut)
        self.copied += 1
        batch = cut.rows()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return shown(pa.ipc.open_stream(sink.getvalue()).read_next_batch(), parcel.views, self._files)

    def _receive(self) -> bool:
        """The next parcel; False at the end. Says what came back from the program in the same message as that nothing is left: one
        message a parcel, for each takes the gateway's threads away from decoding for a moment."""
        deadline_s = time.monotonic() + BATCH_WAIT_S
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._socket, PACKET_BYTES_MAX, DESCRIPTORS_MAX)
            except BlockingIOError:
                self._flush(waits=not self._has_said)
                self._has_said = True
                if time.monotonic() >= deadline_s:
                    raise UnavailableError(f"no batch in {BATCH_WAIT_S:.0f} s") from None
                select.select([self._socket], [], [], POLL_S)
                continue
            except OSError as error:
                raise UnavailableError(f"the gateway's socket: {error}") from error
            more = self._understood(packet, descriptors)
            if more is None:
                continue
            if not self._has_said:
                self._flush()
            self._has_said = False
            return more

    def _understood(self, packet: bytes, descriptors: list[int]) -> bool | None:
        """Whether it is a parcel; None: something that comes before one."""
        if not packet:
            raise UnavailableError("the gateway closed its socket")
        message = json.loads(packet)
        if "files" in message:
            self._map_files(message, descriptors)
            return None
        if "batch" in message:
            self._take(message, descriptors)
            return True
        if "end" in message:
            self._is_reading = False
            return False
        raise domain_error(message)

    def _map_files(self, message: dict[str, Any], descriptors: list[int]) -> None:
        for gone in message["gone"]:
            self._files.pop(gone, None)
        waiting = list(descriptors)
        try:
            for number, size_bytes in message["files"]:
                self._files[number] = MappedFile.of(waiting.pop(0), size_bytes)
        except (OSError, IndexError) as error:
            raise UnavailableError(f"a file of the gateway cannot be mapped: {error}") from error
        finally:
            for descriptor in waiting:
                os.close(descriptor)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        number, length = message["slab"], message["length"]
        for gone in message.get("forget", ()):
            self._maps.pop(gone, None)
        if descriptors:
            try:
                self._maps[number] = mmap.mmap(descriptors[0], message["capacity"], prot=mmap.PROT_READ)
            finally:
                os.close(descriptors[0])
        view = memoryview(self._maps[number])[:length]
        self._out += 1
        weakref.finalize(view, self._give_back, number).atexit = False
        self._parcel = _Parcel(view, message)

    def _give_back(self, number: int) -> None:
        """Called from wherever the last reference went: only notes it."""
        self._returned.append(number)
        if self._closing and self._out == len(self._returned):
            self._socket.close()

    def _flush(self, *, waits: bool = False) -> None:
        """Give back what the program is done with; `waits`: say that it has nothing left to go on with."""
        done = self._taken_back()
        if done or waits:
            self._socket_send({"done": done} | ({"waits": True} if waits else {}))

    def _taken_back(self) -> list[int]:
        done = []
        while self._returned:
            done.append(self._returned.popleft())
        self._out -= len(done)
        return done

    def _send(self, message: dict[str, object]) -> None:
        self._flush()
        self._socket_send(message)

    def _socket_send(self, message: dict[str, object]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except BlockingIOError as error:
            raise UnavailableError("the gateway does not listen to its socket") from error
        except OSError as error:
            raise UnavailableError(f"the gateway's socket: {error}") from error

    def close(self) -> None:
        """At once when nothing is out; else when the last batch is gone."""
        self._parcel = None
        if self._closing:
            return
        if self._pid == os.getpid():
            with contextlib.suppress(UnavailableError):
                self._send({"stop": True})
        self._closing = True
        if self._out == len(self._returned):
            self._socket.close()

    def __del__(self) -> None:
        """Batches refer to their connection: nothing of it is out when it goes."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class _Cut:
    """A batch: `count` rows of `whole` from `start` on."""

    whole: pa.RecordBatch
    start: int
    count: int

    def rows(self) -> pa.RecordBatch:
        return self.whole.slice(self.start, self.count)


class _Parcel:
    """A slab's batches, cut apart one by one; nothing is copied."""

    def __init__(self, view: memoryview, message: dict[str, Any]) -> None:
        self._stream = pa.ipc.open_stream(pa.py_buffer(view))
        self._row_counts = message["rows"]
        self._first = message["batch"]
        self._place = 0
        self._rows: pa.RecordBatch | None = None
        self._at = 0
        self._shown: pa.RecordBatch | None = None
        """`_rows` with views."""
        self.views: list[str] = message.get("views", [])
        self.is_lent_only = "copy" in message
        """The program must not keep what points into it."""
        for _ in range(message.get("skip", 0)):
            self._cut()
        self._skipped = self._place

    def next(self, stride: int) -> tuple[int, _Cut] | None:
        """And its number; None when there are no more."""
        if self._place == len(self._row_counts):
            return None
        index = self._first + (self._place - self._skipped) * stride
        return index, self._cut()

    def shown(self, files: Mapping[int, MappedFile], cut: _Cut) -> pa.RecordBatch:
        """The batch that was cut last, with its views: those of all batches beside it are made at once. Raises UnavailableError."""
        if cut.whole is not self._rows:  # it has no rows
            return shown(cut.whole, self.views, files)
        if self._shown is None:
            self._shown = shown(cut.whole, self.views, files)
        return self._shown.slice(cut.start, cut.count)

    def _cut(self) -> _Cut:
        count = self._row_counts[self._place]
        self._place += 1
        if not count:
            schema = self._stream.schema
            empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
            return _Cut(empty, 0, 0)
        if self._rows is None or self._at == self._rows.num_rows:
            self._rows, self._at, self._shown = self._stream.read_next_batch(), 0, None
        found = _Cut(self._rows, self._at, count)
        self._at += count
        return found


class SharedStream:
    """One stride of an epoch. See `http.HttpStream`."""

    def __init__(self, connection: SharedConnection, index: int, stride: int) -> None:
        self._connection = connection
        self._index = index
        self._stride = stride
        self._ended = False
        self.received_bytes = 0

    def next(self) -> pa.RecordBatch | None:
        found = self._connection.next()
        if found is None:
            self._ended = True
            return None
        index, batch = found
        if index != self._index:
            raise UnavailableError(f"batch {index} came instead of {self._index}")
        self._index += self._stride
        return batch

    def close(self) -> None:
        """A connection whose stream was left in the middle is not used again."""
        if not self._ended:
            self._connection.close()
