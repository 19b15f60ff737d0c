"""The keeper: a small process that owns a mount, so that the mount survives the daemon which serves it.

It holds the /dev/fuse descriptor and the ledger (`ledger.py`), and runs the daemon as its child. When the daemon dies,
the kernel keeps every request; the keeper starts another with the same two descriptors, which binds the open handles
again and asks for what was unanswered. Programs wait a moment; reads and writes by passthrough do not even wait.

**How a volume plugs in.** `start` (any process) is given the daemon's command line. That command's main calls
`daemon.serve_for_keeper(open_operations)`, which speaks the protocol below over the socket that `ENVIRONMENT` names::

    daemon -> keeper   {"say": "opened"}                        the volume is open, nothing is mounted yet
    keeper -> daemon   {"say": "serve", "beat_s"} with two descriptors    the device (mounted now) and the ledger
    daemon -> keeper   {"say": "ready"}                         INIT is answered, or the take-over is done
    daemon -> keeper   {"say": "alive"}                         every `beat_s` from then on
    daemon -> keeper   {"say": "error", "kind", "text"}         instead of any of the above; then it exits

The keeper tells whoever started it one line of the same form over a pipe: ready, or the error with nothing mounted.

**Ends.** The device polls POLLERR when the mount is gone (umount by anybody): the daemon gets `UNMOUNT_WAIT_S` to
finish, then both exit with 0. SIGTERM or SIGINT to the keeper unmounts: at once when nobody uses the mount, lazily when
somebody still does after `STOP_PATIENCE_S`, and `UNMOUNT_WAIT_S` later those who still do lose it. SIGHUP replaces the
daemon (an upgrade); that is not counted as a crash. After `DAEMON_RESTARTS_MAX` crashes within
`DAEMON_RESTART_WINDOW_S` the keeper gives up, says so, and unmounts lazily: programs then see ENOTCONN instead of
waiting for ever. A daemon that does not say for `hang_s` that it is alive is killed and followed like one that crashed.
The daemon ignores SIGTERM and SIGINT; its life is the keeper's business. When the keeper itself is
killed, its daemon goes on serving, but nobody would follow it: `status` says that the mount is unguarded.

One thread, and one more for the moment of umount(2), which may wait for the daemon. Imports stay few: this process
lives as long as the mount and is all that has to survive.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Final

from tieredfs import errors
from tieredfs.errors import BusyError, DeadlineError, MountPointError, NotAMountError, TieredError, UnavailableError
from tieredfs.fuse.kernel import mounting
from tieredfs.fuse.kernel.ledger import make_memory
from tieredfs.limits import DAEMON_HANG_S, DAEMON_RESTART_WINDOW_S, DAEMON_RESTARTS_MAX, MOUNT_READY_S, UNMOUNT_WAIT_S

_log = logging.getLogger(__name__)

ENVIRONMENT: Final = "TIEREDFS_KEEPER_SOCKET"
"""Number of the daemon's descriptor of the socket to its keeper."""
STOP_PATIENCE_S: Final = 5.0
"""How long SIGTERM waits for the last program to leave before the mount is taken away lazily."""
MESSAGE_BYTES_MAX: Final = 16 * 1024

_EXIT_WAIT_S: Final = 1.0
"""For a daemon that said why it cannot serve, to exit."""
_RETRY_S: Final = 0.1
RESTART_DELAYS_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Before the first, second... restart in a window: a daemon that dies at once should not burn its tries in a second."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What to mount and who serves it. `log_path`: where both processes write their log; None: the starter's stderr."""

    mountpoint: str
    command: tuple[str, ...]
    mount: mounting.MountOptions = field(default_factory=mounting.MountOptions)
    log_path: str | None = None
    restarts_max: int = DAEMON_RESTARTS_MAX
    ready_s: float = MOUNT_READY_S
    hang_s: float = DAEMON_HANG_S


def start(options: KeeperOptions) -> "subprocess.Popen[bytes]":
    """Mount, and return the keeper's process when the mount is ready.

    Raises the error that the keeper or the daemon met (nothing is mounted then), or DeadlineError after `ready_s`.
    """
    ours, theirs = os.pipe()
    log = open(options.log_path, "ab") if options.log_path else None  # noqa: SIM115 - closed below, once inherited
    try:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tieredfs.fuse.kernel.keeper", str(theirs)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(theirs,),
            start_new_session=True,
        )
        os.close(theirs)
        assert keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError), keeper.stdin:
            keeper.stdin.write(json.dumps(asdict(options)).encode())
        await_ready(ours, keeper, options.ready_s)
    finally:
        os.close(ours)
        if log is not None:
            log.close()
    return keeper


def await_ready(pipe: int, keeper: "subprocess.Popen[bytes]", ready_s: float) -> None:
    """Wait for the one line that a starting server writes to `pipe`; raises what it says, or DeadlineError."""
    readable, _, _ = select.select([pipe], [], [], ready_s)
    message = os.read(pipe, MESSAGE_BYTES_MAX) if readable else b""
    if message:
        said = json.loads(message)
        if said["say"] == "ready":
            return
        keeper.wait(UNMOUNT_WAIT_S)
        raise error_named(said["kind"], said["text"])
    keeper.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(UNMOUNT_WAIT_S)
    if readable:
        raise UnavailableError("the keeper of the mount ended before the mount was ready; its log says why")
    raise DeadlineError(f"the mount was not ready within {ready_s:.0f} s")


def error_named(kind: str, text: str) -> TieredError:
    """The domain error of that name; one that is not ours any more is UnavailableError."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, TieredError):
        return found(text)
    return UnavailableError(f"{kind}: {text}")


def error_message(error: Exception) -> bytes:
    """`error` as the protocol's message."""
    text = str(error)[: MESSAGE_BYTES_MAX // 8]
    return json.dumps({"say": "error", "kind": type(error).__name__, "text": text}).encode()


class Daemon:
    """The child. Its exit shows on `pidfd`."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, ENVIRONMENT: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def receive(self, deadline_s: float) -> dict[str, str] | None:
        """The daemon's next message, or None when it is dead. Raises DeadlineError."""
        self.channel.settimeout(max(0.0, deadline_s - time.monotonic()) or 0.001)
        try:
            message = self.channel.recv(MESSAGE_BYTES_MAX)
        except ConnectionError:
            message = b""
        except TimeoutError:
            raise DeadlineError("the daemon did not answer in time") from None
        return json.loads(message) if message else None

    def hand_over(self, device: int, ledger: int, beat_s: float) -> None:
        message = json.dumps({"say": "serve", "beat_s": beat_s}).encode()
        with contextlib.suppress(OSError):  # dead already: `receive` will tell
            socket.send_fds(self.channel, [message], [device, ledger])

    def heard(self) -> bool:
        """Take what the daemon said; False: nothing, and it will say nothing any more."""
        with contextlib.suppress(OSError):
            return bool(self.channel.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT))
        return False

    def end(self, wait_s: float) -> int:
        """Its exit status, after at most `wait_s` and a SIGKILL."""
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        if not ended.poll(wait_s * 1000):
            self.process.kill()
        status = self.process.wait()
        os.close(self.pidfd)
        self.channel.close()
        return status


class Keeper:
    """One mount, from `bring_up` to the end of `keep`."""

    def __init__(self, options: KeeperOptions) -> None:
        self._options = options
        self._ledger = make_memory()
        self._device = -1
        self._mountpoint = options.mountpoint
        self._crashes: deque[float] = deque()
        self._stop_deadline_s: float | None = None
        self._heard_s = 0.0
        """When the daemon said something last."""

    def bring_up(self) -> Daemon:
        """Mount, served by a first daemon. Raises a domain error with nothing mounted."""
        self._mountpoint = mounting.check_mountpoint(self._options.mountpoint)
        try:
            daemon = Daemon(self._options.command)
        except OSError as error:
            raise UnavailableError(f"the daemon cannot be started: {error}") from error
        try:
            self._introduce(daemon)
        except TieredError:
            daemon.end(_EXIT_WAIT_S)
            if self._device >= 0:
                self._abandon()
            raise
        return daemon

    def keep(self, daemon: Daemon, signals: int) -> int:
        """Until the mount is gone; returns the exit status. `signals` is the read end of the wake-up pipe."""
        while True:
            event = self._wait(daemon, signals)
            if event == "gone":
                daemon.end(UNMOUNT_WAIT_S)
                return 0
            if event == "overdue":
                daemon.end(0)
                return 1
            if event == "stop":
                self._stop()
            if event == "replace":
                daemon.process.kill()
                daemon.end(UNMOUNT_WAIT_S)
                self._crashes.clear()
            if event == "dead" and self._ended_cleanly(daemon):
                return 0
            if event == "hung":
                _log.warning("the daemon of %s hangs: it is replaced", self._mountpoint)
                daemon.process.kill()
                daemon.end(UNMOUNT_WAIT_S)
            if event in ("dead", "hung", "replace"):
                successor = self._succeed()
                if successor is None:
                    return 1
                daemon = successor

    def _introduce(self, daemon: Daemon) -> None:
        deadline_s = time.monotonic() + self._options.ready_s
        _expect(daemon.receive(deadline_s), "opened")
        if self._device < 0:
            self._device = mounting.mount_fuse(self._mountpoint, self._options.mount)
        daemon.hand_over(self._device, self._ledger, self._options.hang_s / 10)
        _expect(daemon.receive(deadline_s), "ready")
        self._heard_s = time.monotonic()
        entry = mounting.mount_at(self._mountpoint)
        if entry is not None:
            mounting.set_read_ahead(entry)

    def _wait(self, daemon: Daemon, signals: int) -> str:
        poll = select.poll()
        poll.register(self._device, 0)  # POLLERR is always reported
        poll.register(daemon.pidfd, select.POLLIN)
        poll.register(signals, select.POLLIN)
        poll.register(daemon.channel, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(self._patience_s() * 1000)}
            if self._device in ready:
                return "gone"
            if daemon.pidfd in ready:
                return "dead"
            if daemon.channel.fileno() in ready:
                if daemon.heard():
                    self._heard_s = time.monotonic()
                else:
                    poll.unregister(daemon.channel)
            now_s = time.monotonic()
            if self._stop_deadline_s is not None and now_s >= self._stop_deadline_s:
                return "overdue"
            if now_s >= self._heard_s + self._options.hang_s:
                return "hung"
            for number in os.read(signals, 64) if signals in ready else b"":
                if number in (signal.SIGTERM, signal.SIGINT):
                    return "stop"
                if number == signal.SIGHUP:
                    return "replace"

    def _patience_s(self) -> float:
        """Until something is due though nothing happens."""
        deadline_s = self._heard_s + self._options.hang_s
        if self._stop_deadline_s is not None:
            deadline_s = min(deadline_s, self._stop_deadline_s)
        return max(0.0, deadline_s - time.monotonic())

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._device, 0)
        return bool(poll.poll(0))

    def _ended_cleanly(self, daemon: Daemon) -> bool:
        status = daemon.end(0)
        if status == 0 or self._is_gone():
            return True
        _log.warning("the daemon of %s died (status %d)", self._mountpoint, status)
        return False

    def _succeed(self) -> Daemon | None:
        """The next daemon, serving; None: given up, or the mount is gone."""
        while not self._is_gone():
            now_s = time.monotonic()
            while self._crashes and self._crashes[0] < now_s - DAEMON_RESTART_WINDOW_S:
                self._crashes.popleft()
            if len(self._crashes) >= self._options.restarts_max:
                _log.error(
                    "the daemon of %s crashed %d times within %.0f s: giving up, the mount is taken away",
                    self._mountpoint,
                    len(self._crashes) + 1,
                    DAEMON_RESTART_WINDOW_S,
                )
                self._abandon()
                return None
            time.sleep(RESTART_DELAYS_S[min(len(self._crashes), len(RESTART_DELAYS_S) - 1)])
            self._crashes.append(now_s)
            daemon = Daemon(self._options.command)
            try:
                self._introduce(daemon)
            except TieredError as error:
                daemon.end(_EXIT_WAIT_S)
                _log.warning("the next daemon of %s could not take over: %s", self._mountpoint, error)
                continue
            _log.warning("a new daemon took over %s", self._mountpoint)
            return daemon
        return None

    def _abandon(self) -> None:
        """Nobody will serve any more. Closing the device makes waiting programs see ENOTCONN."""
        with contextlib.suppress(BusyError, MountPointError, NotAMountError):
            mounting.unmount(self._mountpoint, lazy=True)
        os.close(self._device)
        self._device = -1

    def _stop(self) -> None:
        if self._stop_deadline_s is None:
            self._stop_deadline_s = time.monotonic() + STOP_PATIENCE_S + UNMOUNT_WAIT_S
            threading.Thread(target=self._unmount, name="unmount", daemon=True).start()

    def _unmount(self) -> None:
        """Ends in a device that polls POLLERR, at once or when the last program has left."""
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while time.monotonic() < deadline_s:
            try:
                mounting.unmount(self._mountpoint)
            except (BusyError, MountPointError):
                time.sleep(_RETRY_S)
                continue
            except NotAMountError:
                pass
            return
        _log.warning("%s is still in use: it is taken away lazily", self._mountpoint)
        with contextlib.suppress(BusyError, MountPointError, NotAMountError):
            mounting.unmount(self._mountpoint, lazy=True)


def _expect(message: dict[str, str] | None, wanted: str) -> None:
    if message is None:
        raise UnavailableError("the daemon died before the mount was ready; its log says why")
    if message["say"] == "error":
        raise error_named(message["kind"], message["text"])
    assert message["say"] == wanted, f"the daemon said {message['say']} where {wanted} was due"


def _listen_for_signals() -> int:
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(theirs)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return ours


def _options_from(text: str) -> KeeperOptions:
    fields = json.loads(text)
    fields["command"] = tuple(fields["command"])
    fields["mount"] = mounting.MountOptions(**fields["mount"])
    return KeeperOptions(**fields)


def main() -> int:
    """The process: options as JSON on stdin, the descriptor to report on as the only argument."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(levelname)s %(message)s")
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    options = _options_from(sys.stdin.read())
    signals = _listen_for_signals()
    keeper = Keeper(options)
    try:
        daemon = keeper.bring_up()
    except TieredError as error:
        os.write(report, error_message(error))
        return 1
    os.write(report, json.dumps({"say": "ready"}).encode())
    os.close(report)
    return keeper.keep(daemon, signals)


if __name__ == "__main__":
    sys.exit(main())
