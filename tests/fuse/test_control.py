"""The control socket, over real sockets: answers, progress, errors, and everything that a bad client may do."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieredfs.errors import (
    BusyError,
    DataLossError,
    DeadlineError,
    InvalidRequestError,
    UnavailableError,
    WaitInterruptedError,
    domain_errors,
)
from tieredfs.fuse.control import (
    CONNECTIONS_MAX,
    MESSAGE_BYTES_MAX,
    ControlClient,
    ControlServer,
    ProgressSink,
    _raised_from,
    socket_address,
)
from tieredfs.host import SystemClock

Arguments = Mapping[str, object]
WAIT_S = 30.0


class Handlers:
    """What the mount would do."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.interrupted = threading.Event()

    def echo(self, arguments: Arguments, progress: ProgressSink) -> object:
        return dict(arguments)

    def fail(self, arguments: Arguments, progress: ProgressSink) -> object:
        kinds = {kind.__name__: kind for kind in domain_errors()}
        raise kinds[str(arguments["type"])](f"about {arguments['type']}")

    def bug(self, arguments: Arguments, progress: ProgressSink) -> object:
        raise ZeroDivisionError("a bug of ours")

    def unspeakable(self, arguments: Arguments, progress: ProgressSink) -> object:
        return object()

    def huge(self, arguments: Arguments, progress: ProgressSink) -> object:
        return "x" * (MESSAGE_BYTES_MAX + 1)

    def slow(self, arguments: Arguments, progress: ProgressSink) -> object:
        progress(1, 3, "bytes")
        self.entered.release()
        self.gate.wait(WAIT_S)
        return "done"

    def endless(self, arguments: Arguments, progress: ProgressSink) -> object:
        self.entered.release()
        count = 0
        try:
            while not self.gate.wait(0.01):
                count += 1
                progress(count, 0, "files")
        except WaitInterruptedError:
            self.interrupted.set()
            raise
        return count


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    handlers = Handlers()
    yield handlers
    handlers.gate.set()


@pytest.fixture
def mount_id() -> str:
    return os.urandom(8).hex()


@pytest.fixture
def server(mount_id: str, handlers: Handlers) -> Iterator[ControlServer]:
    verbs = {
        name: getattr(handlers, name) for name in ("echo", "fail", "bug", "unspeakable", "huge", "slow", "endless")
    }
    server = ControlServer(mount_id, verbs, request_wait_s=0.5, progress_every_s=0.05)
    yield server
    handlers.gate.set()
    server.close()


@pytest.fixture
def client(server: ControlServer, mount_id: str) -> ControlClient:
    return ControlClient(mount_id, silence_max_s=WAIT_S)


def raw(mount_id: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(WAIT_S)
    connection.connect(socket_address(mount_id))
    return connection


def reply(connection: socket.socket) -> dict[str, object]:
    answer = json.loads(connection.makefile("rb").readline())
    assert isinstance(answer, dict)
    return answer


def test_an_answer(client: ControlClient) -> None:
    assert client.call("echo", {"path": "a/b", "count": 3}) == {"path": "a/b", "count": 3}


def test_ping_says_who_answers(client: ControlClient, mount_id: str) -> None:
    answer = client.ping()
    assert (answer["mount_id"], answer["process"]) == (mount_id, os.getpid())
    assert client.process() == os.getpid()


@given(st.binary(max_size=50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_path_survives_the_way(client: ControlClient, path: bytes) -> None:
    answer = client.call("echo", {"path": os.fsdecode(path)})
    assert isinstance(answer, dict)
    assert os.fsencode(answer["path"]) == path


@pytest.mark.parametrize("kind", list(domain_errors()), ids=lambda kind: kind.__name__)
def test_every_domain_error_arrives_as_itself(client: ControlClient, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"about {kind.__name__}") as caught:
        client.call("fail", {"type": kind.__name__})
    assert type(caught.value) is kind


@pytest.mark.allows_warnings("a handler failed")
def test_a_bug_in_a_handler_is_an_error_and_the_server_lives_on(client: ControlClient) -> None:
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):
        client.call("bug")
    assert client.call("echo") == {}


@pytest.mark.allows_warnings("cannot be said in JSON")
def test_an_answer_that_cannot_be_said(client: ControlClient) -> None:
    with pytest.raises(UnavailableError, match="cannot be said"):
        client.call("unspeakable")
    with pytest.raises(UnavailableError, match="ask for less"):
        client.call("huge")


def test_progress_comes_before_the_answer(client: ControlClient, handlers: Handlers) -> None:
    seen: list[tuple[int, int, str]] = []

    def watch(done: int, total: int, unit: str) -> None:
        seen.append((done, total, unit))
        if done:
            handlers.gate.set()

    assert client.call("slow", {}, watch) == "done"
    assert seen[-1] == (1, 3, "bytes")
    assert len(seen) == len(set(seen)), "a repeated progress is not news"


def test_a_handler_hears_that_its_client_left(server: ControlServer, handlers: Handlers, mount_id: str) -> None:
    with raw(mount_id) as connection:
        connection.sendall(b'{"verb": "endless"}\n')
        assert handlers.entered.acquire(timeout=WAIT_S)
    assert handlers.interrupted.wait(WAIT_S)


def test_closing_the_server_ends_handlers_and_clients(
    server: ControlServer, client: ControlClient, handlers: Handlers
) -> None:
    caught: list[Exception] = []

    def ask() -> None:
        try:
            client.call("endless")
        except UnavailableError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert handlers.entered.acquire(timeout=WAIT_S)
    server.close()
    assert handlers.interrupted.wait(WAIT_S)
    asking.join(WAIT_S)
    assert len(caught) == 1
    server.close()


def test_no_daemon_says_what_to_do(mount_id: str) -> None:
    with pytest.raises(UnavailableError, match="tieredfs umount"):
        ControlClient(mount_id).call("echo")


def test_a_client_that_is_patient_meets_the_next_daemon(mount_id: str, handlers: Handlers) -> None:
    servers: list[ControlServer] = []

    class LateClock(SystemClock):
        """Time passes at once, and the daemon comes up in it."""

        naps = 0

        def sleep(self, duration_s: float) -> None:
            self.naps += 1
            if self.naps == 3:
                servers.append(ControlServer(mount_id, {"echo": handlers.echo}))

    clock = LateClock()
    assert ControlClient(mount_id, clock=clock, connect_wait_s=WAIT_S).call("echo", {"late": 1}) == {"late": 1}
    assert clock.naps == 3
    servers[0].close()


def test_a_daemon_that_dies_in_the_middle(mount_id: str) -> None:
    program = (
        "import os, sys, threading\n"
        "from tieredfs.fuse.control import ControlServer\n"
        "ControlServer(sys.argv[1], {'die': lambda arguments, progress: os._exit(9)})\n"
        "print('ready', flush=True)\n"
        "threading.Event().wait(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, mount_id], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"ready\n"
        with pytest.raises(UnavailableError, match="no daemon answers"):
            ControlClient(mount_id).call("die")
        assert daemon.wait(WAIT_S) == 9


def test_a_silent_daemon_and_one_that_does_not_get_on(mount_id: str, handlers: Handlers) -> None:
    server = ControlServer(mount_id, {"slow": handlers.slow}, progress_every_s=WAIT_S)
    with pytest.raises(UnavailableError, match="fell silent"):
        ControlClient(mount_id, silence_max_s=0.2).call("slow")
    server.close()
    handlers.gate.set()
    handlers.gate.clear()
    lively = ControlServer(mount_id, {"slow": handlers.slow}, progress_every_s=0.02)
    with pytest.raises(DeadlineError, match="no progress"):
        ControlClient(mount_id, stall_max_s=0.2).call("slow")
    handlers.gate.set()
    lively.close()


def test_one_mount_has_one_server(server: ControlServer, mount_id: str) -> None:
    with pytest.raises(BusyError, match="taken"):
        ControlServer(mount_id, {})


# ---- bad clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b'{"verb": 3}\n',
        b'{"verb": "echo", "arguments": []}\n',
        b'{"verb": "nonsense"}\n',
        b"[" * 100_000 + b"\n",
        b"1" * 5_000 + b"\n",
    ],
    ids=range(9),
)
def test_garbage_is_answered_and_the_connection_goes_on(server: ControlServer, mount_id: str, line: bytes) -> None:
    with raw(mount_id) as connection:
        connection.sendall(line)
        answer = reply(connection)["error"]
        assert isinstance(answer, dict)
        assert answer["type"] == "InvalidRequestError"
        connection.sendall(b'{"verb": "echo", "arguments": {"still": "alive"}}\n')
        assert reply(connection) == {"result": {"still": "alive"}}


@given(st.binary(min_size=1, max_size=200).map(lambda data: data.replace(b"\n", b" ") + b"\n"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_any_line_has_an_answer(server: ControlServer, mount_id: str, line: bytes) -> None:
    with raw(mount_id) as connection:
        connection.sendall(line)
        assert reply(connection).keys() == {"error"}


def test_a_line_without_end_is_cut_off(server: ControlServer, client: ControlClient, mount_id: str) -> None:
    with raw(mount_id) as connection:
        try:
            for _ in range(3):
                connection.sendall(b"x" * MESSAGE_BYTES_MAX)
        except OSError:
            pass  # the server hung up in the middle, which is the point
        else:
            assert "more than" in str(reply(connection))
    assert client.call("echo") == {}


def test_a_client_that_says_nothing_is_sent_away(server: ControlServer, mount_id: str) -> None:
    with raw(mount_id) as connection:
        connection.sendall(b'{"verb": ')
        assert "DeadlineError" in str(reply(connection))
        assert connection.recv(1) == b""


def test_too_many_clients_are_told_so(
    server: ControlServer, client: ControlClient, handlers: Handlers, mount_id: str
) -> None:
    busy = [raw(mount_id) for _ in range(CONNECTIONS_MAX)]
    for connection in busy:
        connection.sendall(b'{"verb": "slow"}\n')
    for _ in busy:
        assert handlers.entered.acquire(timeout=WAIT_S)
    with pytest.raises(BusyError, match="try again"):
        client.call("echo")
    handlers.gate.set()
    for connection in busy:
        with connection:
            lines = connection.makefile("rb").readlines()
        assert json.loads(lines[-1])["result" if b"result" in lines[-1] else "error"]


def test_a_request_that_is_too_long_is_not_sent(client: ControlClient) -> None:
    with pytest.raises(InvalidRequestError, match="in parts"):
        client.call("echo", {"paths": "x" * MESSAGE_BYTES_MAX})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_turned_away(server: ControlServer, mount_id: str) -> None:
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        "connection.settimeout(30)\n"
        "connection.connect(sys.argv[1].replace('@', '\\0'))\n"
        "sys.exit(0 if b'AccessDeniedError' in connection.recv(4096) else 1)\n"
    )
    address = socket_address(mount_id).replace("\0", "@")
    assert subprocess.run([sys.executable, "-c", program, address], timeout=60, check=False).returncode == 0


def test_unknown_error_types_are_still_errors() -> None:
    assert isinstance(_raised_from({"type": "TideError", "message": "too low"}), UnavailableError)
    assert "TideError: too low" in str(_raised_from({"type": "TideError", "message": "too low"}))
    assert isinstance(_raised_from(None), UnavailableError)


def test_integrity_errors_stay_integrity_errors(client: ControlClient) -> None:
    with pytest.raises(DataLossError):
        client.call("fail", {"type": "DataLossError"})
