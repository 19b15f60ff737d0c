"""Ranks of one machine, gathered by one process through abstract Unix sockets: what costs a transaction is then paid once per
machine, not once per rank.

Two names per attempt and machine: the *coordinator's*, bound by the process of rank 0, and the *leader's*, bound by whoever
of the others comes first while rank 0 is not to be found here. A name goes with its process, so nothing is left behind
by the dead, and a process that dies is noticed at once: its end of every channel closes. Names have the volume, the
run, the attempt and the place in them: a straggler of another attempt meets nobody.

A channel carries JSON messages, each with its length in front, and descriptors: members write their tensors straight into files
that the gathering process has open. Only processes of the same user are talked to (SO_PEERCRED). One thread per channel.
"""

import contextlib
import hashlib
import json
import os
import selectors
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tieredfs.errors import DeadlineError
from tieredfs_client.checkpoint.collector import collector_paused

FRAME_S: Final = 60.0
"""How long the rest of a message may take once its start is there, and how long a sender waits for room."""
DESCRIPTORS_MAX: Final = 128
MESSAGE_BYTES_MAX: Final = 1 << 32
BACKLOG: Final = 4096
_LENGTH: Final = struct.Struct("<Q")
_CREDENTIALS: Final = struct.Struct("3i")

Role = Literal["coordinator", "leader"]


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the processes that are to meet agree on. `place`: the machine, as far as its processes can reach each other."""

    volume: str
    run: bytes
    attempt: str
    place: str

    def name(self, role: Role) -> bytes:
        """In the abstract namespace."""
        text = "\0".join((self.volume, self.run.hex(), self.attempt, self.place)).encode("utf-8", "surrogateescape")
        return b"\0tieredfs-ckpt-" + hashlib.sha256(text).hexdigest()[:40].encode() + b"-" + role.encode()


def this_place(host_name: str) -> str:
    """The machine and its network namespace: abstract names reach no further."""
    return f"{host_name}/{os.stat('/proc/self/ns/net').st_ino}"


class Channel:
    """One end. `receive` says None when the other end is gone; what cannot be sent is dropped, for the next `receive` tells."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(FRAME_S)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Mapping[str, object], descriptors: Sequence[int] = (), attached: bytes = b"") -> None:
        """`attached`: what who hears it need not read at once."""
        assert len(descriptors) <= DESCRIPTORS_MAX
        if attached:
            message = {**message, "attached": len(attached)}
        data = json.dumps(message, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            length = _LENGTH.pack(len(data))
            if descriptors:
                socket.send_fds(self._socket, [length], list(descriptors))
            else:
                self._socket.sendall(length)
            self._socket.sendall(data)
            self._socket.sendall(attached)

    def receive(self, timeout_s: float) -> "Message | None":
        """Raises DeadlineError when no message begins in time."""
        self._socket.settimeout(max(timeout_s, 0.001))
        try:
            start, descriptors, _, _ = socket.recv_fds(self._socket, _LENGTH.size, DESCRIPTORS_MAX)
        except TimeoutError:
            raise DeadlineError("nothing was heard in time") from None
        except OSError:
            return None
        finally:
            self._socket.settimeout(FRAME_S)
        body = self._rest(start)
        if body is None:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        with collector_paused():
            read = json.loads(body)
        size = read.get("attached", 0)
        attached = self._exactly(size) if 0 <= size <= MESSAGE_BYTES_MAX else None
        if attached is None:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        return Message(read, tuple(descriptors), attached)

    def _rest(self, start: bytes) -> bytearray | None:
        length = self._exactly(_LENGTH.size - len(start)) if start else None
        if length is None:
            return None
        (size,) = _LENGTH.unpack(start + length)
        return self._exactly(size) if size <= MESSAGE_BYTES_MAX else None

    def _exactly(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            try:
                count = self._socket.recv_into(view[done:])
            except OSError:
                return None
            if not count:
                return None
            done += count
        return data

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Message:
    """`descriptors` belong to who received them."""

    body: Any
    descriptors: tuple[int, ...]
    attached: bytes | bytearray


def connect(meeting: Meeting, role: Role) -> Channel | None:
    """To who has that name now; None: nobody of this user."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(meeting.name(role))
    except OSError:
        connection.close()
        return None
    if not _is_ours(connection):
        connection.close()
        return None
    return Channel(connection)


class Circle:
    """The gathering end: who listens under a name, and the channels of those who came."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._channels: set[Channel] = set()

    @classmethod
    def open(cls, meeting: Meeting, role: Role) -> "Circle | None":
        """None: the name is taken."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(meeting.name(role))
        except OSError:
            listener.close()
            return None
        listener.listen(BACKLOG)
        return cls(listener)

    def hear(self, timeout_s: float) -> Iterator[tuple[Channel, Message | None]]:
        """What has come, after waiting for the first of it. Without a message: the other end is gone."""
        for key, _ in self._selector.select(max(timeout_s, 0.0)):
            channel = key.data
            if channel is None:
                self._accept()
                continue
            message = channel.receive(FRAME_S)
            if message is None:
                self._selector.unregister(channel)
                self._channels.discard(channel)
                channel.close()
            yield channel, message

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not _is_ours(connection):
                connection.close()
                continue
            channel = Channel(connection)
            self._channels.add(channel)
            self._selector.register(channel, selectors.EVENT_READ, channel)

    def close(self) -> None:
        self._selector.close()
        self._listener.close()
        for channel in self._channels:
            channel.close()
        self._channels.clear()


def _is_ours(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    return bool(user == os.geteuid())
