"""Batches to trainers of the same host: descriptors of slabs over a Unix socket, one thread per trainer.

Packets (SOCK_SEQPACKET) of JSON, one message each:

    trainer  {"read": {"session", "token", "epoch", "batch", "stride"}, "loans": n}     at most n batches on loan at a time
             + "views": true when it looks at large values where they lie
             {"done": [slab, ...], "waits": true}    back from loan; and that it has nothing left to go on with (a "read" says
                                           both itself)
    gateway  {"batch", "slab", "length", "rows": [n, ...], "skip": n}       batches from that number on, each by its rows, as one
                                           stream; so many of the first are not for this trainer
             + "capacity" and a descriptor when the slab is new to this connection
             + "copy": true when the slab must come back whatever the program keeps
             + "forget": [slab, ...]       mappings of these may go
             + "views": [name, ...]        columns of which values may be in files
             {"files": [[number, size], ...], "gone": [number, ...]}     and a descriptor of each: the batches from here on may
                                           refer to them; to those that are gone no batch does any more
             {"end": true}                 the epoch has no more; another "read" may follow
             {"error": {"code", "message", "retryable"}}

**Whose is a slab?** From the packet on the trainer's, until it says done. A connection that the trainer closes gives all
back: a trainer closes when nothing of it is mapped any more, or by dying. When the gateway closes first (shutdown, a
protocol error), what was on loan is abandoned, never written again: the trainer may still be looking at it.

**Memory for what is needed next.** Slabs are filled when a trainer takes them, so those that are full are on loan, or what a window
keeps for those who come later, which is let go when memory is short. A trainer has at most a part of the memory on loan
(`LOAN_SHARE`), but for one slab. One that waits and has nothing left gets its batch beyond the limit, in a slab that it
copies from at once: so no trainer waits for memory that another one keeps, however long.

**Views** (`contract.Views`). A trainer that asks for them gets values where they lie: places in files of the SSD tier, which it
maps from descriptors that are open for reading only. A file of the tier has one content, a file of the dataset that the trainer's
token is for: nothing else is to be seen in it. Each is sent once for a connection, before the first batch that may refer to it.

Only the gateway's own user and root are served (SO_PEERCRED). They can read every slab that they ever mapped, so this
socket separates users from each other, not the datasets of one user.
"""

import contextlib
import json
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tieredfs.errors import BusyError, ConfigurationError, WaitInterruptedError
from tieredfs_gateway.datasets.contract import Position, Views
from tieredfs_gateway.datasets.errors import Refusal, told
from tieredfs_gateway.datasets.parcels import SHARED, Item, Parcel
from tieredfs_gateway.datasets.sessions import Session, Sessions, Stream
from tieredfs_gateway.datasets.slabs import Slab, SlabPool

CONNECTIONS_MAX: Final = 256
PACKET_BYTES_MAX: Final = 64 * 1024
FILES_IN_PACKET: Final = 64
"""Linux passes up to 253 descriptors at once."""
LOANS_MAX: Final = 64
"""Of a trainer that always says that it waits."""
LOAN_SHARE: Final = 4
"""A trainer has a quarter of the shared memory on loan at most, and two slabs at least."""
ROOM_POLL_S: Final = 0.02
ROOM_WAIT_S: Final = 30.0
"""For a trainer that never says that it waits."""
POLL_S: Final = 0.5
END_WAIT_S: Final = 5.0
REQUEST_WAIT_S: Final = 3600.0
"""A connection that asks for nothing and has nothing on loan is closed after this long."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Authorize = Callable[[str | None, str | None], None]
"""token, source. Raises Refusal."""
_log: Final = logging.getLogger("tieredfs_gateway.datasets")


def boot_id() -> str:
    """Equal for processes under one kernel."""
    return BOOT_ID.read_text().strip()


class _Closing:
    """That the server ends. `fileno` is readable from then on, so that who waits for somebody's message learns of it at once."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_set = False

    def fileno(self) -> int:
        return self._event

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Nobody waits any more."""
        os.close(self._event)


class LocalServer:
    """Listens from construction to `close`. `name`: a path, or `@name` in the abstract namespace, which leaves nothing behind."""

    def __init__(self, name: str, sessions: Sessions, slabs: SlabPool, authorize: Authorize) -> None:
        self.name = name
        self._sessions = sessions
        self._slabs = slabs
        self._authorize = authorize
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._listener = _listen(name)
        self._closed = _Closing()
        self._acceptor = threading.Thread(target=self._accept, name="local-accept", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            waiting: list[socket.socket | _Closing] = [self._listener, self._closed]
            if self._listener not in select.select(waiting, [], [])[0]:
                continue
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        with self._lock:
            refused = len(self._threads) >= CONNECTIONS_MAX or not _is_allowed(connection)
            if not refused:
                thread = threading.Thread(target=self._serve, args=(connection,), name="local", daemon=True)
                self._threads.add(thread)
        if refused:
            connection.close()
            return
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        peer = _Peer(connection, self._sessions, self._slabs, self._authorize, self._closed)
        try:
            peer.serve()
        except Exception:  # noqa: BLE001 - the edge: one trainer's trouble is no other's
            _log.exception("a connection of the local socket failed")
        finally:
            peer.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        self._closed.set()
        self._acceptor.join(END_WAIT_S)
        self._listener.close()
        if not self.name.startswith("@"):
            with contextlib.suppress(OSError):
                os.unlink(self.name)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(END_WAIT_S)
        if not any(thread.is_alive() for thread in (self._acceptor, *threads)):
            self._closed.close()


def socket_address(name: str) -> str:
    return "\0" + name[1:] if name.startswith("@") else name


def _listen(name: str) -> socket.socket:
    """Raises BusyError, ConfigurationError."""
    if not name.startswith("@"):
        _remove_stale(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.bind(socket_address(name))
        if not name.startswith("@"):
            os.chmod(name, 0o600)
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen at {name}: {error.strerror}") from error
    return listener


def _remove_stale(path: str) -> None:
    """What a gateway that was killed left there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        if probe.connect_ex(path) == 0:
            raise BusyError(f"somebody else listens at {path}")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


def _is_allowed(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1]) in (0, os.geteuid())


class _PeerLeftError(Exception):
    """The trainer closed its end."""


class _Peer:
    """One trainer: what it reads, and what it has on loan."""

    def __init__(
        self,
        connection: socket.socket,
        sessions: Sessions,
        slabs: SlabPool,
        authorize: Authorize,
        closed: _Closing,
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._slabs = slabs
        self._authorize = authorize
        self._closed = closed
        self._loans: dict[int, tuple[Slab, int]] = {}
        self._known: set[int] = set()
        self._files: set[int] = set()
        self._has_left = False
        self._waits = False
        self._loans_max = 1
        connection.setblocking(False)

    def serve(self) -> None:
        last_s = time.monotonic()
        with contextlib.suppress(_PeerLeftError):
            while not self._closed.is_set():
                message = self._receive(POLL_S)
                if message is None:
                    if not self._loans and time.monotonic() - last_s > REQUEST_WAIT_S:
                        return
                    continue
                last_s = time.monotonic()
                if "read" in message:
                    self._read(message)

    def close(self) -> None:
        for slab, count in self._loans.values():
            for _ in range(count):
                if self._has_left:
                    slab.release()
                else:
                    self._slabs.abandon(slab)
        self._loans.clear()
        self._connection.close()

    # ---- messages --------------------------------------------------------------------------------------------------------

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message that is no `done`; None when there is none in time. Raises _PeerLeftError."""
        waiting: list[socket.socket | _Closing] = [self._connection, self._closed]
        if timeout_s and self._connection not in select.select(waiting, [], [], timeout_s)[0]:
            return None
        try:
            packet = self._connection.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self._has_left = True
            raise _PeerLeftError
        message = _decoded(packet)
        for number in message.get("done", ()):
            self._give_back(number)
        self._waits = self._waits or "waits" in message
        return message

    def _give_back(self, number: int) -> None:
        slab, count = self._loans.pop(number, (None, 0))
        if slab is None:
            return
        if count > 1:
            self._loans[number] = slab, count - 1
        slab.release()

    def _send(self, message: Mapping[str, object], descriptors: list[int] | None = None) -> None:
        packet = json.dumps(message, separators=(",", ":")).encode()
        while not self._closed.is_set():
            try:
                socket.send_fds(self._connection, [packet], descriptors or [])
            except BlockingIOError:  # its queue is full: it takes nothing at the moment
                select.select([self._closed], [self._connection], [], POLL_S)
                continue
            except OSError as error:
                self._has_left = True
                raise _PeerLeftError from error
            return
        raise _PeerLeftError

    # ---- reading ----------------------------------------------------------------------------------------------------------

    def _read(self, message: Mapping[str, Any]) -> None:
        try:
            session, position, stride = self._asked(message)
            views = message.get("views") is True
            with self._sessions.follow(session, position, stride, SHARED, "same host", views=views) as stream:
                self._stream(stream)
            self._send({"end": True})
        except _PeerLeftError:
            raise
        except BaseException as error:  # noqa: BLE001 - the edge: the trainer is told
            refusal = told(error)
            if refusal.code == "internal":
                _log.error("reading for a trainer of this host failed", exc_info=error)
            self._send(refusal.document())

    def _asked(self, message: Mapping[str, Any]) -> tuple[Session, Position, int]:
        try:
            asked = message["read"]
            session_id, token = str(asked["session"]), asked.get("token")
            position = Position(int(asked["epoch"]), int(asked["batch"]))
            stride = int(asked["stride"])
            self._loans_max = max(2, min(int(message.get("loans", 2)), LOANS_MAX))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Refusal("bad_request", f"a read without {error}") from error
        if not isinstance(token, str | None):
            raise Refusal("bad_request", "a read whose token is no text")
        session = self._sessions.get(session_id)
        self._authorize(token, session.opened.spec.source)
        return session, position, stride

    def _stream(self, stream: Stream) -> None:
        while True:
            self._take_back()
            stream.check_open()
            began_s = time.monotonic()
            item = stream.follower.next()
            if item is None:
                return
            count = stream.follower.rest(item)
            try:
                slab, is_beyond = self._slab_of(item.parcel)
            except WaitInterruptedError:
                stream.follower.again(item)
                continue
            finally:
                stream.progress.waited_s += time.monotonic() - began_s
            _, loans = self._loans.get(slab.number, (slab, 0))
            self._loans[slab.number] = slab, loans + 1
            self._waits = False
            if stream.views is not None:
                self._lend(stream.views)
            self._hand_over(item, slab, stream.views, is_beyond=is_beyond)
            rows = sum(item.parcel.row_counts[item.place :])
            stream.sent(item.parcel.last, rows, slab.length, batches=count)

    def _slab_of(self, parcel: Parcel) -> tuple[Slab, bool]:
        """And whether it is beyond the limit. Listens meanwhile: what is missing may be on loan to this trainer."""
        deadline_s = time.monotonic() + ROOM_WAIT_S
        while True:
            slab = parcel.slab()
            if slab is not None:
                return slab, False
            self._slabs.make_room()
            slab = parcel.slab(is_needed=self._waits)
            if slab is not None:
                return slab, self._waits
            self._obey(self._receive(ROOM_POLL_S))
            if time.monotonic() >= deadline_s:
                raise BusyError(
                    f"all {self._slabs.limit_bytes} bytes of shared memory are on loan; see --shared-memory"
                )

    def _take_back(self) -> None:
        """What the trainer is done with; waits while it has too much on loan. It says something once for each slab at most, so one
        look is enough while there is room: each lets go of the GIL, for which the threads that decode wait, too."""
        while True:
            is_full = self._is_full()
            self._obey(self._receive(POLL_S if is_full else 0.0))
            if not is_full:
                return

    def _is_full(self) -> bool:
        count = sum(loans for _, loans in self._loans.values())
        if self._waits:  # it has copied all it keeps beyond its loans, unless it lies
            return count >= LOANS_MAX
        held_bytes = sum(slab.capacity_bytes for slab, _ in self._loans.values())
        return count >= self._loans_max or (count >= 2 and held_bytes * LOAN_SHARE >= self._slabs.limit_bytes)

    def _obey(self, message: Mapping[str, Any] | None) -> None:
        if message is not None and "stop" in message:
            raise Refusal("bad_request", "stopped, as asked")
        if self._closed.is_set():
            raise Refusal("unavailable", "the gateway is shutting down")

    def _lend(self, views: Views) -> None:
        """The files that the trainer has not got yet."""
        numbers = views.files.numbers()
        if numbers == self._files:
            return
        gone = self._files - numbers
        with views.files.beyond(self._files) as found:
            packets = [found[start : start + FILES_IN_PACKET] for start in range(0, len(found), FILES_IN_PACKET)]
            if gone and not packets:
                packets = [()]
            for some in packets:
                shown = [(file.number, file.size_bytes) for file in some]
                self._send({"files": shown, "gone": sorted(gone)}, [file.descriptor for file in some])
        self._files.update(file.number for file in found)
        self._files -= gone

    def _hand_over(self, item: Item, slab: Slab, views: Views | None, *, is_beyond: bool) -> None:
        parcel = item.parcel
        message: dict[str, object] = {
            "batch": item.index,
            "slab": slab.number,
            "length": slab.length,
            "rows": parcel.row_counts,
        }
        if views is not None:
            message["views"] = views.columns
        if item.place:
            message["skip"] = item.place
        if is_beyond:
            message["copy"] = True
        if slab.number in self._known:
            self._send(message)
            return
        gone = [number for number in self._known if not self._slabs.is_live(number) and number not in self._loans]
        if gone:
            self._known.difference_update(gone)
            message["forget"] = gone
        self._known.add(slab.number)
        self._send(message | {"capacity": slab.capacity_bytes}, [slab.descriptor])


def _decoded(packet: bytes) -> dict[str, Any]:
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("done", []), list):
        return {"read": None}
    return message
