"""Arrow Flight with Arrow's own client, in another process: the batches that HTTP gives, the same sessions, tokens, errors."""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from tests.s3.endpoint import free_port
from tests.serving.rig import ROWS, SOURCE, WAIT_S, Gateway, gateway, put_table
from tieredfs_gateway.datasets.errors import CODES, Refusal
from tieredfs_gateway.datasets.flight import END_OF_JOB, failure
from tieredfs_gateway.datasets.tokens import make_token

SECRET = "a secret of the tests"
FAR_S = 4_000_000_000
BATCH = 1024


@pytest.fixture(scope="module")
def flying() -> Iterator[tuple[Gateway, str]]:
    """A gateway that wants tokens, and where its Flight is."""
    port = free_port()
    options = ("--flight-port", str(port), "--bandwidth", "1GiB")
    with gateway(*options, TIEREDFS_GATEWAY_SECRET=SECRET) as made:
        yield made, f"grpc://127.0.0.1:{port}"


def token(*sources: str) -> str:
    return make_token(SECRET.encode(), sources, FAR_S)


def asked(url: str, command: dict[str, Any], *tokens: str) -> list[dict[str, Any]]:
    line = [sys.executable, "-m", "tests.serving.flight_client", url, json.dumps(command), *tokens]
    done = subprocess.run(line, capture_output=True, timeout=WAIT_S, check=True)
    return [json.loads(each) for each in done.stdout.splitlines()]


@pytest.mark.parametrize("shuffle", ["none", "full"])
def test_every_rank_gets_the_batches_that_http_gives(flying: tuple[Gateway, str], shuffle: str) -> None:
    made, url = flying
    held = token(SOURCE)
    order: dict[str, Any] = {"batch_size": BATCH, "shuffle": shuffle, "seed": 3}
    expected = [
        batch.column("id").to_pylist()
        for batch in made.dataset(token=held, **order, remainder="pad")  # one rank: all
    ]
    info, *got = asked(url, {"source": SOURCE, "world_size": 3, "epoch": 0, "batch": 2} | order, held)
    assert info["rows"] == ROWS
    assert sorted(each["batch"] for each in got) == list(range(2, -(-ROWS // BATCH)))
    for each in got:
        assert each["ids"] == expected[each["batch"]]
        assert each["words"] == [f"word {number % 97}" for number in each["ids"]]
        assert each["endpoint"] == each["batch"] % 3


def test_who_may_not_read_is_told_so(flying: tuple[Gateway, str]) -> None:
    _, url = flying
    command = {"source": SOURCE, "batch_size": BATCH}
    missing, wrong, other = (asked(url, command, *tokens) for tokens in ((), ("nonsense",), (token("datasets/other"),)))
    assert [each[0]["failed"] for each in (missing, wrong, other)] == [
        "FlightUnauthenticatedError",
        "FlightUnauthenticatedError",
        "FlightUnauthorizedError",
    ]
    assert other[0]["document"]["error"]["code"] == "token_scope"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"source": "datasets/nothing", "batch_size": 1}, "not_found"),
        ({"source": SOURCE, "batch_size": 1, "columns": ["no"]}, "bad_request"),
        ({"source": SOURCE, "batch_size": 0}, "bad_request"),
        ({"source": SOURCE, "batch_size": 1, "rank": 2, "world_size": 2}, "bad_position"),
        ({"source": SOURCE, "batch_size": 1, "version": "0" * 32}, "version_gone"),
        ({"source": SOURCE, "batch_size": 1, "transforms": ["os.system"]}, "transform_unknown"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_code(
    flying: tuple[Gateway, str], command: dict[str, Any], code: str
) -> None:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token('*')}".encode())], timeout=WAIT_S)
    with fl.connect(flying[1]) as client, pytest.raises(fl.FlightError) as told:
        client.get_flight_info(fl.FlightDescriptor.for_command(json.dumps(command).encode()), options)
    assert json.loads(told.value.extra_info)["error"]["code"] == code


@pytest.fixture(scope="module")
def coded(flying: tuple[Gateway, str]) -> pa.Table:
    """A dataset with dictionaries: each batch has one of its own, and the last column has nulls."""
    made, _ = flying
    codes = pa.array([f"c{number // 10}" for number in range(1000)])
    maybe = pa.array([None if number % 3 else f"m{number % 5}" for number in range(1000)])
    table = pa.table({"code": codes.dictionary_encode(), "id": range(1000), "maybe": maybe.dictionary_encode()})
    with made.volume() as volume:
        put_table(volume, "datasets/coded/a.parquet", table, 100)
        volume.flush(WAIT_S)
    return table


@pytest.mark.parametrize("world", [1, 3])
def test_dictionaries_are_dictionaries_and_each_batch_has_its_number(
    flying: tuple[Gateway, str], coded: pa.Table, world: int
) -> None:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token('*')}".encode())], timeout=WAIT_S)
    command = json.dumps({"source": "datasets/coded", "batch_size": 64, "world_size": world}).encode()
    found: dict[int, pa.RecordBatch] = {}
    with fl.connect(flying[1]) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(command), options)
        assert pa.types.is_dictionary(info.schema.field("code").type)
        for endpoint in info.endpoints:
            before = None
            for chunk in client.do_get(endpoint.ticket, options):
                assert chunk.data.schema == info.schema
                if chunk.app_metadata is None:
                    before = chunk.data
                else:
                    assert before is not None
                    assert chunk.data.num_rows == 0
                    found[int.from_bytes(chunk.app_metadata.to_pybytes(), "little")] = before
        read = client.do_get(info.endpoints[0].ticket, options).read_all()
    assert sorted(found) == list(range(-(-1000 // 64)))
    assert len({tuple(batch.column("code").dictionary.to_pylist()) for batch in found.values()}) == len(found)
    rows = [row for _, batch in sorted(found.items()) for row in batch.to_pylist()]
    assert rows == coded.to_pylist()
    assert read.num_rows == sum(found[number].num_rows for number in range(0, len(found), world))


def test_dictionaries_of_a_job_are_dictionaries(flying: tuple[Gateway, str], coded: pa.Table) -> None:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token('*')}".encode())], timeout=WAIT_S)
    command = json.dumps({"source": "datasets/coded", "batch_size": 64, "job": "coded"}).encode()
    rows: list[dict[str, Any]] = []
    with fl.connect(flying[1]) as client:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(command), options)
        while (
            number := int.from_bytes((chunk := reader.read_chunk()).app_metadata.to_pybytes(), "little")
        ) != END_OF_JOB:
            assert pa.types.is_dictionary(chunk.data.schema.field("code").type)
            assert number * 64 == len(rows)
            rows += chunk.data.to_pylist()
            writer.write_metadata(chunk.app_metadata)
        writer.done_writing()
        writer.close()
    assert rows == coded.to_pylist()


def test_a_session_is_closed_by_its_name(flying: tuple[Gateway, str]) -> None:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token('*')}".encode())], timeout=WAIT_S)
    command = json.dumps({"source": SOURCE, "batch_size": BATCH}).encode()
    with fl.connect(flying[1]) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(command), options)
        session = json.loads(info.endpoints[0].ticket.ticket)["session"].encode()
        assert list(client.do_action(("close", session), options)) == []
        with pytest.raises(fl.FlightError, match="session_unknown"):
            list(client.do_action(("close", session), options))
        rows = client.do_get(info.endpoints[0].ticket, options).read_all().num_rows
        assert rows == ROWS, "its ticket opens another of the same version"


class Part(threading.Thread):
    """A consumer of one gateway's part of a job: acknowledges what it has, until the end or until its gateway is dead."""

    def __init__(self, port: int, got: "queue.Queue[tuple[Part, int, list[int]]]") -> None:
        super().__init__(daemon=True)
        self.port = port
        self.silent = False
        self.ended = False
        self._got = got

    def run(self) -> None:
        command = {"source": SOURCE, "batch_size": 100, "shuffle": "full", "seed": 5, "job": "night"}
        descriptor = fl.FlightDescriptor.for_command(json.dumps(command).encode())
        try:
            with fl.connect(f"grpc://127.0.0.1:{self.port}") as client:
                writer, reader = client.do_exchange(descriptor, fl.FlightCallOptions(timeout=WAIT_S))
                while True:
                    chunk = reader.read_chunk()
                    number = int.from_bytes(chunk.app_metadata.to_pybytes(), "little")
                    if number == END_OF_JOB:
                        writer.done_writing()
                        self.ended = True
                        return
                    self._got.put((self, number, chunk.data.column("id").to_pylist()))
                    if not self.silent:
                        writer.write_metadata(chunk.app_metadata)
        except (fl.FlightError, pa.ArrowException):
            return
        finally:
            self._got.put((self, -1, []))


def test_a_job_that_two_gateways_serve_outlives_one_of_them() -> None:
    ports = [free_port(), free_port()]
    options = [("--flight-port", str(port), "--job-lease", "2") for port in ports]
    got: queue.Queue[tuple[Part, int, list[int]]] = queue.Queue()
    with gateway(*options[0]) as victim:
        other = Gateway(victim.root, free_port(), {}, options[1])
        try:
            other.start()
            doomed, staying = (Part(port, got) for port in ports)
            doomed.silent = True
            doomed.start()
            seen: dict[int, list[int]] = {}
            lost: list[int] = []
            ended = 0
            while ended < 2:
                part, number, ids = got.get(timeout=WAIT_S)
                ended += number < 0
                if number >= 0:
                    assert seen.setdefault(number, ids) == ids
                    lost += [number] if part is doomed else []
                if len(lost) == 10 and not staying.ident:
                    victim.stop(signal.SIGKILL)
                    staying.start()
            assert staying.ended
            assert not doomed.ended
            assert sorted(seen) == list(range(ROWS // 100))
            assert sorted(each for ids in seen.values() for each in ids) == list(range(ROWS))
        finally:
            if other.process is not None:
                assert other.stop() == 0


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_its_flight_status(code: str) -> None:
    made = failure(Refusal(code, "so"))
    assert isinstance(made, fl.FlightError)
    assert json.loads(made.extra_info)["error"]["code"] == code
