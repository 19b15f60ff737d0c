"""Trainers and a real gateway: what they get, over both ways, and what they are told when something is wrong."""

import gc
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.s3.endpoint import ROOT
from tests.serving.rig import ROWS, SOURCE, WAIT_S, Gateway, eventually, ids, numbers, put_table
from tieredfs.errors import ConfigurationError, NotFoundError, StateMismatchError, UnavailableError
from tieredfs_client.dataset import GatewayDataset
from tieredfs_client.dataset.http import GatewayAddress
from tieredfs_gateway.datasets.parcels import FRAME_BATCHES

ALL = list(range(ROWS))


def request(url: str, method: str = "GET", document: object = None) -> tuple[int, Any]:
    body = None if document is None else json.dumps(document).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
        error.close()
    return status, json.loads(raw) if raw[:1] in b"[{" else raw


@pytest.mark.parametrize("transport", ["http", "shared"])
@pytest.mark.parametrize("codec", ["auto", "zstd"])
def test_an_epoch_is_every_row_once_and_the_next_one_follows(served: Gateway, transport: str, codec: str) -> None:
    with served.dataset(transport=transport, codec=codec) as data:
        batches = list(data)
        assert ids(batches) == ALL
        assert pa.Table.from_batches(batches).equals(numbers(ROWS).cast(batches[0].schema))
        assert data.epoch == 1
        assert ids(data) == ALL
        assert data.reconnects == 0


def test_columns_filter_and_order_are_the_readers(served: Gateway) -> None:
    with served.dataset(columns=["id"], filter="id >= 19000", shuffle="window", seed=7) as data:
        one = ids(data)
        assert sorted(one) == ALL[19000:]
        assert one != sorted(one)
        assert ids(data) != one, "the next epoch has another order"
        data.set_epoch(0)
        assert ids(data) == one
        assert data.schema.names == ["id"]


@pytest.mark.parametrize("remainder", ["pad", "drop", "wrap"])
def test_ranks_share_an_epoch(served: Gateway, remainder: str) -> None:
    found = [list(served.dataset(rank=rank, world_size=3, remainder=remainder)) for rank in range(3)]
    counts = [[batch.num_rows for batch in one] for one in found]
    assert len({len(one) for one in counts}) == 1
    seen = sorted(ids(batch for one in found for batch in one))
    if remainder == "pad":
        assert seen == ALL
    elif remainder == "drop":
        assert seen == ALL[: ROWS // 256 // 3 * 3 * 256]
    else:
        assert {count for one in counts for count in one} == {256}
        assert sorted(set(seen)) == ALL


@pytest.mark.parametrize(("world", "later"), [(1, 1), (2, 3), (3, 1)])
def test_a_run_resumes_exactly_under_another_world_size(served: Gateway, world: int, later: int) -> None:
    options: dict[str, Any] = {"shuffle": "window", "seed": 5, "columns": ["id"]}
    first, states = [], []
    for rank in range(world):
        data = served.dataset(rank=rank, world_size=world, **options)
        iterator = iter(data)
        first += ids(next(iterator) for _ in range(7))
        states.append(json.loads(json.dumps(data.state_dict())))
        iterator.close()
    assert all(one == states[0] for one in states), "the position is everybody's"
    for rank in range(later):
        data = served.dataset(rank=rank, world_size=later, **options)
        data.load_state_dict(states[0])
        first += ids(data)
        assert data.epoch == 1
    assert sorted(first) == ALL


def test_a_state_of_another_sequence_is_refused(served: Gateway) -> None:
    data = served.dataset()
    next(iter(data))
    state = data.state_dict()
    for changed in (
        {"seed": 1},
        {"batch_size": 128},
        {"filter": "id > 3"},
        {"columns": ["id"]},
        {"source": "datasets/other"},
    ):
        with pytest.raises(StateMismatchError, match=r"another sequence|have changed"):
            served.dataset(**changed).load_state_dict(state)
    beyond = json.loads(json.dumps(state))
    with pytest.raises(StateMismatchError):
        served.dataset().load_state_dict(beyond | {"batches": 1 << 40})


def test_the_state_is_part_of_a_checkpoint(served: Gateway) -> None:
    from tieredfs_client.checkpoint import CheckpointManager

    data = served.dataset()
    iterator = iter(data)
    seen = ids([next(iterator), next(iterator)])
    with CheckpointManager(served.meta_url, "runs/state") as manager:
        manager.save(1, {"data": data.state_dict()})
        loaded = manager.load("latest")
    other = served.dataset()
    other.load_state_dict(loaded["data"])
    assert seen + ids(other) == ALL


def test_numpy_and_torch_batches(served: Gateway) -> None:
    import torch

    batch = next(iter(served.dataset(format="numpy", columns=["id", "half", "word"])))
    assert batch["id"].tolist() == ALL[:256]
    assert not batch["id"].flags.writeable
    assert batch["word"][1] == "word 1"
    tensors = next(iter(served.dataset(format="torch", columns=["id", "half", "word"])))
    assert torch.equal(tensors["half"], torch.arange(256) / 2.0)
    tensors["id"] += 1
    with pytest.raises(ConfigurationError, match="maybe"):
        next(iter(served.dataset(format="numpy", columns=["maybe"])))


# ---- shared memory -----------------------------------------------------------------------------------------------------


def maps_of(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/maps") as file:
        return sum("memfd:tieredfs-slab" in line for line in file)


def test_shared_batches_point_into_the_gateways_memory_and_cannot_be_written(served: Gateway) -> None:
    data = served.dataset(transport="shared")
    batch = next(iter(data))
    address = batch.column("id").buffers()[1].address
    ranges = []
    with open("/proc/self/maps") as file:
        for line in file:
            if "memfd:tieredfs-slab" in line:
                start, end = line.split()[0].split("-")
                ranges.append((int(start, 16), int(end, 16), line.split()[1]))
    assert [kind for start, end, kind in ranges if start <= address < end] == ["r--s"]
    with pytest.raises(ValueError, match="read-only"):
        batch.column("id").to_numpy()[0] = 1


def test_batches_that_are_kept_stay_what_they_were_and_memory_stays_bounded(served: Gateway) -> None:
    data = served.dataset(transport="shared")
    kept = list(data)
    again = list(data)
    assert ids(kept) == ids(again) == ALL, "nothing was written over"
    assert served.metric("slabs_held") <= 24
    del kept, again
    data.close()
    gc.collect()
    eventually(lambda: served.metric("slabs_held"), 0.0)


def test_what_is_on_loan_comes_back_when_the_trainer_is_killed(served: Gateway) -> None:
    options = json.dumps({"batch_size": 256, "transport": "shared"})
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "gateway", ROOT / "clients"))))
    line = [sys.executable, "-m", "tests.serving.trainer", served.url, SOURCE, options, "hold"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as trainer:
        try:
            assert trainer.stdout is not None
            for _ in range(6):
                assert trainer.stdout.readline()
            assert served.metric("slabs_held") >= 2
            assert maps_of(trainer.pid) >= 2
        finally:
            trainer.kill()
    eventually(lambda: served.metric("streams"), 0.0)
    gc.collect()
    eventually(lambda: served.metric("slabs_held"), 0.0)
    assert ids(served.dataset(transport="shared")) == ALL


def test_who_waits_for_a_batch_gets_it_whatever_others_keep(served: Gateway) -> None:
    """Six trainers, each in an epoch of its own, keep their last batch of 12 MiB; four fit. None may wait for another."""
    table = pa.table({"id": range(5), "data": pa.array([bytes([n]) * (12 << 20) for n in range(5)], pa.binary())})
    with served.volume() as volume:
        put_table(volume, "datasets/huge/a.parquet", table, row_group_size=1)
        volume.flush(WAIT_S)
    before = served.metric("slabs_beyond")
    trainers = [served.dataset("datasets/huge", batch_size=1, transport="shared", epoch=n) for n in range(6)]
    seen = []
    for step in zip(*trainers, strict=True):
        seen.append([batch.column("id")[0].as_py() for batch in step])
        assert {batch.column("data")[0].as_buffer()[-1] for batch in step} == {len(seen) - 1}
    del step
    assert seen == [[n] * 6 for n in range(5)]
    assert [trainer.reconnects for trainer in trainers] == [0] * 6
    assert served.metric("slabs_beyond") > before, "there was not room for all"
    for trainer in trainers:
        trainer.close()
    eventually(lambda: served.metric("slabs_held"), 0.0)
    assert served.metric("slab_bytes") <= 64 << 20


def test_trainers_that_read_the_same_epoch_share_its_work(served: Gateway) -> None:
    made, encoded = served.metric("batches_made"), served.metric("batches_encoded")
    options = json.dumps({"batch_size": 200, "transport": "shared", "seed": 99})
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "gateway", ROOT / "clients"))))
    line = [sys.executable, "-m", "tests.serving.trainer", served.url, SOURCE, options, "no"]
    first = served.dataset(batch_size=200, transport="shared", seed=99)
    iterator = iter(first)
    mine = ids([next(iterator)])  # the lane lives while this trainer is on it
    trainers = [subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [trainer.communicate(timeout=WAIT_S)[0] for trainer in trainers]
    assert mine + ids(iterator) == ALL
    for output in outputs:
        assert [number for text in output.splitlines() for number in json.loads(text)] == ALL
    assert served.metric("batches_made") - made == ROWS / 200
    assert served.metric("batches_encoded") - encoded == ROWS / 200


def test_a_trainer_on_another_host_uses_http(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieredfs_client.dataset.stream.is_same_host", lambda _: False)
    data = served.dataset(codec="lz4")
    assert ids(data) == ALL
    assert data.received_bytes > 0
    with pytest.raises(UnavailableError, match="no shared memory"):
        list(served.dataset(transport="shared", retry_s=0.2))


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_over_http_neighbours_come_as_one_message_and_a_run_resumes_within_one(served: Gateway, codec: str) -> None:
    options: dict[str, Any] = {"transport": "http", "codec": codec, "batch_size": 50}
    whole = list(served.dataset(**options))
    assert [batch.num_rows for batch in whole] == [50] * (ROWS // 50)
    assert ids(whole) == ALL
    for taken in range(20, 30):
        data = served.dataset(**options)
        iterator = iter(data)
        first = ids(next(iterator) for _ in range(taken))
        state = data.state_dict()
        iterator.close()
        later = served.dataset(**options)
        later.load_state_dict(state)
        assert first + ids(later) == ALL


def test_any_other_arrow_reader_gets_a_message_for_each_batch_unless_it_asks(served: Gateway) -> None:
    _, opened = request(f"{served.url}/v1/sessions", "POST", {"source": SOURCE, "batch_size": 50})
    batches = f"{served.url}/v1/sessions/{opened['session']}/batches"
    counts = {}
    for query in ("", "?joined=true", "?joined=true&limit=30"):
        with urllib.request.urlopen(batches + query, timeout=WAIT_S) as answer:
            found = list(pa.ipc.open_stream(answer.read()))
        assert ids(found) == ALL[: 1500 if "limit" in query else ROWS]
        counts[query] = len(found)
    assert counts[""] == ROWS // 50
    assert counts["?joined=true&limit=30"] == 30
    assert ROWS // 50 // FRAME_BATCHES <= counts["?joined=true"] <= ROWS // 50 // 2


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


def test_errors_are_json_with_a_code(served: Gateway) -> None:
    sessions = f"{served.url}/v1/sessions"
    cases: list[tuple[str, str, object, int, str]] = [
        ("POST", sessions, {"source": "datasets/none", "batch_size": 1}, 404, "not_found"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 0}, 400, "bad_request"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 1, "code": "x"}, 400, "bad_request"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 1, "filter": "id >"}, 400, "bad_request"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 1, "columns": ["no"]}, 400, "bad_request"),
        ("POST", sessions, {"source": "datasets/../x", "batch_size": 1}, 400, "bad_request"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 1, "transforms": ["os.system"]}, 400, "transform_unknown"),
        ("POST", sessions, {"source": "datasets/other", "batch_size": 1, "version": "0" * 32}, 409, "version_gone"),
        ("POST", sessions, [], 400, "bad_request"),
        ("GET", f"{sessions}/none", None, 404, "session_unknown"),
        ("GET", f"{sessions}/none/batches", None, 404, "session_unknown"),
        ("GET", f"{served.url}/v2", None, 404, "not_found"),
        ("PUT", sessions, {}, 405, "bad_request"),
    ]  # fmt: skip
    for method, url, document, status, code in cases:
        found = request(url, method, document)
        assert (found[0], found[1]["error"]["code"]) == (status, code), (method, url, document, found)


def test_positions_over_http_are_checked(served: Gateway) -> None:
    _, session = request(f"{served.url}/v1/sessions", "POST", {"source": SOURCE, "batch_size": 100})
    batches = f"{served.url}/v1/sessions/{session['session']}/batches"
    for query in ("batch=-1", "stride=0", "epoch=-1", "batch=x", "codec=rar", f"batch={1 << 70}", "limit=0"):
        assert request(f"{batches}?{query}")[1]["error"]["code"] == "bad_request", query
    with urllib.request.urlopen(f"{batches}?batch=199&stride=1", timeout=WAIT_S) as answer:
        assert ids(pa.ipc.open_stream(answer.read())) == ALL[-100:]
    with urllib.request.urlopen(f"{batches}?batch=1000", timeout=WAIT_S) as answer:
        assert ids(pa.ipc.open_stream(answer.read())) == []
    with urllib.request.urlopen(f"{batches}?limit=2&stride=3", timeout=WAIT_S) as answer:
        assert ids(pa.ipc.open_stream(answer.read())) == ALL[:100] + ALL[300:400]


def test_what_a_trainer_is_told(served: Gateway) -> None:
    with pytest.raises(NotFoundError, match="datasets/none"):
        list(served.dataset("datasets/none"))
    with pytest.raises(ConfigurationError, match="batch_size"):
        served.dataset(batch_size=0)
    with pytest.raises(ConfigurationError, match="world_size is 0"):
        served.dataset(rank=0, world_size=0)
    with pytest.raises(ConfigurationError, match="rank 4 is not one of 4"):
        served.dataset(rank=4, world_size=4)
    for wrong in (
        {"shuffle": "wild"},
        {"format": "csv"},
        {"remainder": "keep"},
        {"transport": "pigeon"},
        {"codec": "rar"},
    ):
        with pytest.raises(ConfigurationError, match="is none of"):
            served.dataset(**wrong)
    with pytest.raises(ConfigurationError, match="no address"):
        GatewayDataset("127.0.0.1:8800", SOURCE, batch_size=1)
    with pytest.raises(UnavailableError, match="does not answer"):
        list(GatewayDataset("http://127.0.0.1:9", SOURCE, batch_size=1, retry_s=0.1))


def test_a_client_that_vanishes_in_the_middle_leaves_nothing(served: Gateway) -> None:
    for transport in ("http", "shared"):
        data = served.dataset(transport=transport, batch_size=64)
        iterator = iter(data)
        next(iterator)
        iterator.close()
        data.close()
    gc.collect()
    eventually(lambda: served.metric("streams"), 0.0)


def test_a_forgotten_session_is_opened_again(served: Gateway) -> None:
    data = served.dataset()
    first = ids(data)
    assert GatewayAddress(served.url).call("DELETE", f"/v1/sessions/{data._session._id()}") == {}
    assert ids(data) == first
    assert data.reconnects == 1


def test_sessions_and_documents_are_there_to_look_at(served: Gateway) -> None:
    data = served.dataset(batch_size=50)
    iterator = iter(data)
    next(iterator)
    _, listed = request(f"{served.url}/v1/sessions")
    mine = next(one for one in listed if one["streams"] and one["source"] == SOURCE)
    assert mine["streams"][0]["rows"] >= 50
    assert {"epoch", "batch", "rows_per_s", "sent_bytes"} <= mine["streams"][0].keys()
    assert request(f"{served.url}/docs")[0] == 200
    assert "/v1/sessions/{session}/batches" in request(f"{served.url}/openapi.json")[1]["paths"]
    iterator.close()
    data.close()


# ---- DataLoader ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_keep_the_ranks_order_and_the_position(served: Gateway, context: str) -> None:
    import torch  # noqa: F401 - a dataset made now is an IterableDataset

    from tieredfs_client.dataset import GatewayLoader

    def loader(**changes: Any) -> GatewayLoader:
        data = served.dataset(batch_size=512, format="torch", columns=["id"])
        options = {
            "num_workers": 2 if context == "fork" else 1,
            "multiprocessing_context": context,
            "prefetch_factor": 2,
        } | changes
        return GatewayLoader(data, **options)

    before = loader()
    iterator = iter(before)
    seen = [number for _ in range(5) for number in next(iterator)["id"].tolist()]
    state = before.state_dict()
    iterator.close()
    after = loader(num_workers=0, multiprocessing_context=None, prefetch_factor=None)
    after.load_state_dict(state)
    seen += [number for batch in after for number in batch["id"].tolist()]
    assert seen == ALL
    if context == "fork":
        again = loader()
        again.load_state_dict(state)
        assert [number for batch in again for number in batch["id"].tolist()] == ALL[5 * 512 :]
        assert again.state_dict()["epoch"] == 1


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torchdata asks torch for old names
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_resumes_exactly(served: Gateway, workers: int) -> None:
    import torch  # noqa: F401 - a dataset made now is an IterableDataset
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        data = served.dataset(batch_size=512, format="torch", columns=["id"])
        return StatefulDataLoader(data, batch_size=None, num_workers=workers)

    before = loader()
    iterator = iter(before)
    seen = [number for _ in range(7) for number in next(iterator)["id"].tolist()]
    state = before.state_dict()
    del iterator
    after = loader()
    after.load_state_dict(state)
    assert seen + [number for batch in after for number in batch["id"].tolist()] == ALL


def test_a_worker_knows_its_own_position(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What StatefulDataLoader does: each worker's state goes back to the worker of the same number."""
    monkeypatch.setattr("tieredfs_client.dataset.ranks.is_loader_worker", lambda: True)
    parts, states = [], []
    for worker, turns in ((0, 3), (1, 2)):
        monkeypatch.setattr("tieredfs_client.dataset.ranks.loader_worker", lambda worker=worker: (worker, 2))
        data = served.dataset()
        iterator = iter(data)
        parts += ids(next(iterator) for _ in range(turns))
        states.append(data.state_dict())
        iterator.close()
    for worker in range(2):
        monkeypatch.setattr("tieredfs_client.dataset.ranks.loader_worker", lambda worker=worker: (worker, 2))
        data = served.dataset()
        data.load_state_dict(states[worker])
        parts += ids(data)
        other = served.dataset()
        other.load_state_dict(states[1 - worker])
        with pytest.raises(StateMismatchError, match="GatewayLoader"):
            next(iter(other))
    assert sorted(parts) == ALL


# ---- versions ------------------------------------------------------------------------------------------------------------


def test_files_that_come_later_do_not_change_a_running_epoch(served: Gateway) -> None:
    with served.volume() as volume:
        put_table(volume, "datasets/growing/a.parquet", numbers(1000))
        volume.flush(WAIT_S)
    data = served.dataset("datasets/growing", batch_size=100)
    iterator = iter(data)
    seen = ids([next(iterator)])
    with served.volume() as volume:
        put_table(volume, "datasets/growing/b.parquet", numbers(1000, 1000))
        put_table(volume, "datasets/growing/a.parquet", numbers(10))
        volume.flush(WAIT_S)
    assert seen + ids(iterator) == list(range(1000))
    newest = served.dataset("datasets/growing", batch_size=100, fresh=True)
    assert len(ids(newest)) == 1010
    assert newest.version != data.version
    state = data.state_dict()
    data.close()
    with pytest.raises(StateMismatchError, match="have changed"):
        served.dataset("datasets/growing", batch_size=100, retry_s=1).load_state_dict(state)


def test_the_rows_of_a_short_epoch_are_those_of_its_arrays(served: Gateway) -> None:
    rows = [
        batch["half"] for batch in served.dataset("datasets/other", batch_size=64, format="numpy", columns=["half"])
    ]
    assert np.concatenate(rows).tolist() == [number / 2 for number in range(100)]
