"""DCP saves and loads of one process, and what damages a checkpoint."""

import dataclasses
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from tieredfs.errors import (
    AlreadyExistsError,
    ConfigurationError,
    CorruptError,
    InvalidRequestError,
    NewerFormatError,
    NotFoundError,
    NotSupportedError,
    StateMismatchError,
    TieredError,
    UnstorableError,
    VolumeNotFoundError,
)
from tieredfs_client.dcp import TieredReader, TieredWriter
from tieredfs_client.dcp.manifest import decode
from tieredfs_client.filesystem import TieredFileSystem

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
MIB = 1 << 20


def state(scale: float = 1.0) -> dict[str, Any]:
    torch.manual_seed(3)
    big = torch.rand(3 * MIB // 4 + 5, 8) * scale  # 24 MiB and a bit: several pieces
    return {
        "model": {
            "big": big,
            "bf16": (torch.rand(17, 3) * scale).to(torch.bfloat16),
            "f8": (torch.rand(4, 4) * scale).to(torch.float8_e4m3fn),
            "scalar": torch.tensor(2.5 * scale),
            "empty": torch.empty(0, 4),
            "strided": (torch.rand(6, 5) * scale).T,
            "complex": torch.rand(3, dtype=torch.complex64).conj(),
            "flag": torch.tensor([True, False]),
        },
        "steps": [1, {"lr": 0.1 * scale}],
        "names": {"7": "seven"},
    }


def zeros_like(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return torch.zeros_like(tree)
    if isinstance(tree, dict):
        return {key: zeros_like(value) for key, value in tree.items()}
    return [zeros_like(value) for value in tree] if isinstance(tree, list) else None


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        wide = torch.complex64 if left.is_complex() else torch.float64
        assert torch.equal(left.to(wide), right.to(wide))
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.fixture
def place(fs: TieredFileSystem) -> str:
    return fs.unstrip_protocol("runs/step-1")


def load(place: str, into: Any, **options: Any) -> TieredReader:
    reader = TieredReader(place, **options)
    dcp.load(into, storage_reader=reader)
    return reader


def cause(caught: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    ((error, _),) = caught.value.failures.values()
    return error


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False])
def test_everything_comes_back(place: str, verify: bool) -> None:
    dcp.save(state(), storage_writer=TieredWriter(place))
    loaded = zeros_like(state())
    load(place, loaded, verify=verify)
    assert_same(loaded, state())


def test_the_data_are_safetensors_and_the_manifest_is_json(fs: TieredFileSystem, place: str) -> None:
    from safetensors.torch import load as load_safetensors

    dcp.save(state(), storage_writer=TieredWriter(place))
    data, manifest = sorted(fs.ls("runs/step-1", detail=False))
    assert (data[-12:], manifest) == (".safetensors", "runs/step-1/checkpoint.json")
    tensors = load_safetensors(fs.cat_file(data))
    assert torch.equal(tensors["model.big"], state()["model"]["big"])
    assert b"pickle" not in fs.cat_file(manifest)


def test_a_planner_that_does_not_flatten(place: str) -> None:
    flat: dict[str, Any] = {"a": torch.arange(5), "b": 3}
    dcp.save(flat, storage_writer=TieredWriter(place), planner=DefaultSavePlanner(flatten_state_dict=False))
    loaded: dict[str, Any] = {"a": torch.zeros(5, dtype=torch.int64), "b": 0}
    dcp.load(loaded, storage_reader=TieredReader(place), planner=DefaultLoadPlanner(flatten_state_dict=False))
    assert torch.equal(loaded["a"], flat["a"]), "objects stay in a copy of DCP's own"


def test_the_whole_state_without_a_target(place: str) -> None:
    dcp.save(state(), storage_writer=TieredWriter(place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _load_state_dict_from_keys("model", storage_reader=TieredReader(place))
    assert_same(found["model"], state()["model"])


def test_into_strided_memory_and_another_type(place: str) -> None:
    dcp.save({"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(4.0)}, storage_writer=TieredWriter(place))
    loaded = {"a": torch.zeros(4, 3).T, "b": torch.zeros(4, dtype=torch.float64)}
    load(place, loaded)
    assert torch.equal(loaded["a"], torch.arange(12.0).reshape(3, 4))
    assert torch.equal(loaded["b"], torch.arange(4.0, dtype=torch.float64))


def test_saving_again_replaces_and_leaves_nothing(fs: TieredFileSystem, place: str) -> None:
    writer = TieredWriter(place)
    dcp.save(state(), storage_writer=writer)
    before = set(fs.ls("runs/step-1", detail=False))
    dcp.save(state(2.0), storage_writer=writer)
    after = set(fs.ls("runs/step-1", detail=False))
    assert before & after == {"runs/step-1/checkpoint.json"}
    assert len(after) == 2
    loaded = zeros_like(state())
    load(place, loaded)
    assert_same(loaded, state(2.0))
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state(), storage_writer=TieredWriter(place, overwrite=False))
    assert isinstance(cause(caught), AlreadyExistsError)


def test_a_path_with_the_volume_beside_it(fs: TieredFileSystem, url: str) -> None:
    dcp.save({"a": torch.ones(2)}, checkpoint_id="runs/other", storage_writer=TieredWriter("runs/x", meta_url=url))
    assert fs.exists("runs/other/checkpoint.json")
    assert not fs.exists("runs/x")
    copied = pickle.loads(pickle.dumps(TieredReader("runs/x", meta_url=url)))
    loaded = {"a": torch.zeros(2)}
    dcp.load(loaded, checkpoint_id="runs/other", storage_reader=copied)
    assert torch.equal(loaded["a"], torch.ones(2))


@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
def test_dcps_own_fsspec_storage_by_url_alone(fs: TieredFileSystem, place: str) -> None:
    for scale in (1.0, 2.0):
        dcp.save(state(scale), checkpoint_id=place)
        loaded = zeros_like(state())
        dcp.load(loaded, checkpoint_id=place)
        assert_same(loaded, state(scale))
    assert sorted(fs.ls("runs/step-1", detail=False)) == ["runs/step-1/.metadata", "runs/step-1/__0_0.distcp"]


def test_async_save_in_a_thread(place: str) -> None:
    saved = state()
    del saved["model"]["complex"]  # DCP's staging forgets that a tensor is conjugated
    expected = {**state(), "model": dict(saved["model"], big=saved["model"]["big"].clone())}
    pending = dcp.async_save(saved, storage_writer=TieredWriter(place))
    saved["model"]["big"].zero_()
    assert isinstance(pending, Future)
    pending.result()
    loaded = zeros_like(expected)
    load(place, loaded)
    assert_same(loaded, expected)


# ---- how much is read ------------------------------------------------------------------------------------------------


def slice_of(place: str, rows: range, columns: range, verify: bool) -> tuple[torch.Tensor, int]:
    """A box of tensor `big`, as DCP's planners ask a reader for it."""
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

    reader = TieredReader(place, verify=verify)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    target = torch.zeros(len(rows), len(columns))
    index = MetadataIndex("big", torch.Size([0, 0]))
    lengths = torch.Size(target.shape)
    item = ReadItem(
        LoadItemType.TENSOR, index, torch.Size([0, 0]), index, torch.Size([rows.start, columns.start]), lengths
    )

    class Planner(DefaultLoadPlanner):
        def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
            return target

    reader.read_data(reader.prepare_local_plan(LoadPlan([item])), Planner()).wait()
    return target, reader.bytes_read


def test_a_slice_reads_its_bytes_and_no_more(place: str) -> None:
    whole = torch.arange(4096.0 * 4096).reshape(4096, 4096)  # 64 MiB
    dcp.save({"big": whole}, storage_writer=TieredWriter(place))
    rows, columns = range(256, 512), range(4096)
    part, count = slice_of(place, rows, columns, verify=False)
    assert torch.equal(part, whole[256:512])
    assert count == 4 * MIB, "1/16"
    part, count = slice_of(place, range(300, 556), columns, verify=True)
    assert torch.equal(part, whole[300:556])
    assert count == 8 * MIB, "the checksummed pieces that it touches"
    part, _ = slice_of(place, range(4096), range(8, 24), verify=True)
    assert torch.equal(part, whole[:, 8:24])


# ---- bad input and damage --------------------------------------------------------------------------------------------


def flip(fs: TieredFileSystem, path: str, at: int) -> None:
    data = bytearray(fs.cat_file(path))
    data[at] ^= 0x40
    fs.pipe_file(path, bytes(data))


@pytest.mark.parametrize(("at", "key"), [(20 * MIB, "model.big"), (-1, "")])
def test_a_flipped_bit_is_an_error_that_names_the_tensor(fs: TieredFileSystem, place: str, at: int, key: str) -> None:
    dcp.save(state(), storage_writer=TieredWriter(place))
    (data,) = fs.glob("runs/step-1/*.safetensors")
    flip(fs, data, at)
    with pytest.raises(CheckpointException) as caught:
        load(place, zeros_like(state()))
    assert isinstance(cause(caught), CorruptError)
    assert f"{key}" in str(cause(caught))
    assert "checksum" in str(cause(caught))


def test_a_truncated_file_is_an_error_that_names_the_tensor(fs: TieredFileSystem, place: str) -> None:
    dcp.save({"only": torch.rand(1000)}, storage_writer=TieredWriter(place))
    (data,) = fs.glob("runs/step-1/*.safetensors")
    fs.pipe_file(data, fs.cat_file(data, 0, -10))
    with pytest.raises(CheckpointException) as caught:
        load(place, {"only": torch.zeros(1000)})
    assert "only" in str(cause(caught))
    assert "shorter" in str(cause(caught))


def test_a_missing_file_is_named(fs: TieredFileSystem, place: str) -> None:
    dcp.save({"only": torch.rand(10)}, storage_writer=TieredWriter(place))
    (data,) = fs.glob("runs/step-1/*.safetensors")
    fs.rm(data)
    with pytest.raises(CheckpointException) as caught:
        load(place, {"only": torch.zeros(10)})
    assert data.rpartition("/")[2] in str(cause(caught))


def test_a_damaged_or_newer_manifest_is_refused(fs: TieredFileSystem, place: str) -> None:
    dcp.save({"only": torch.rand(10)}, storage_writer=TieredWriter(place))
    text = fs.cat_file("runs/step-1/checkpoint.json")
    with pytest.raises(NewerFormatError, match="newer"):
        decode(text.replace(b'"version":1', b'"version":2'), "it")
    for broken in (text[:-20], text.replace(b"only", b"omly"), b"{}", b""):
        fs.pipe_file("runs/step-1/checkpoint.json", broken)
        with pytest.raises(CorruptError):
            TieredReader(place).read_metadata()


def test_what_is_not_there(fs: TieredFileSystem, place: str, url: str) -> None:
    with pytest.raises(NotFoundError, match="runs/step-1"):
        TieredReader(place).read_metadata()
    with pytest.raises(VolumeNotFoundError):
        TieredReader("tieredfs:///nowhere/volume.db!/a").read_metadata()
    with pytest.raises(ConfigurationError, match="which volume"):
        TieredWriter("runs/step-1")
    with pytest.raises(InvalidRequestError, match="directory of its own"):
        TieredWriter("", meta_url=url)
    dcp.save({"a": torch.zeros(1)}, storage_writer=TieredWriter(place))
    with pytest.raises(CheckpointException, match="Missing key"):
        load(place, {"b": torch.zeros(1)})
    with pytest.raises(CheckpointException, match="Size mismatch"):
        load(place, {"a": torch.zeros(2)})


def test_a_save_over_a_file_and_one_above_the_root(fs: TieredFileSystem, place: str) -> None:
    fs.pipe_file("runs/step-1", b"a file")
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.zeros(1)}, storage_writer=TieredWriter(place))
    assert isinstance(cause(caught), TieredError)
    assert fs.cat_file("runs/step-1") == b"a file"
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.zeros(1)}, storage_writer=TieredWriter(fs.unstrip_protocol("") + "../out"))
    assert isinstance(cause(caught), InvalidRequestError)


class _Failing(DefaultSavePlanner):
    """Fails when it has given away one tensor."""

    given = 0

    def resolve_data(self, write_item: Any) -> Any:
        self.given += 1
        if self.given > 1:
            raise RuntimeError("no more")
        return super().resolve_data(write_item)


class _Other(DefaultSavePlanner):
    """Gives another type than it planned."""

    def resolve_data(self, write_item: Any) -> Any:
        found = super().resolve_data(write_item)
        assert isinstance(found, torch.Tensor)
        return found.to(torch.float64)


class _Half(DefaultSavePlanner):
    """Plans tensors as if another rank had the other half. DCP does not look at that where there is but one rank."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            assert item.tensor_data is not None
            size = torch.Size([2 * item.tensor_data.size[0]])
            items.append(dataclasses.replace(item, tensor_data=dataclasses.replace(item.tensor_data, size=size)))
        self.plan = dataclasses.replace(plan, items=items)
        return self.plan


@pytest.fixture
def saved(place: str) -> Iterator[dict[str, Any]]:
    before = {"a": torch.rand(100), "b": torch.rand(100)}
    dcp.save(before, storage_writer=TieredWriter(place))
    yield before
    loaded = {"a": torch.zeros(100), "b": torch.zeros(100)}
    load(place, loaded)
    assert_same(loaded, before)


@pytest.mark.parametrize(
    ("planner", "kind"), [(_Failing, RuntimeError), (_Other, StateMismatchError), (_Half, UnstorableError)]
)
def test_a_save_that_fails_leaves_the_old_one(place: str, saved: Any, planner: Any, kind: type[Exception]) -> None:
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.zeros(100), "b": torch.zeros(100)}, storage_writer=TieredWriter(place), planner=planner())
    assert isinstance(cause(caught), kind)


def test_sparse_tensors_and_no_collectives_are_refused(place: str, saved: Any) -> None:
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.eye(3).to_sparse()}, storage_writer=TieredWriter(place))
    assert isinstance(cause(caught), TieredError)
    with pytest.raises(NotSupportedError):
        dcp.save({"a": torch.zeros(1)}, storage_writer=TieredWriter(place), use_collectives=False)


def test_a_reader_keeps_what_is_replaced_meanwhile(place: str) -> None:
    from torch.distributed.checkpoint.planner import LoadPlan

    dcp.save({"a": torch.ones(1000)}, storage_writer=TieredWriter(place))
    reader = TieredReader(place)
    planner = DefaultLoadPlanner()
    loaded = {"a": torch.zeros(1000)}
    metadata = reader.read_metadata()
    planner.set_up_planner(loaded, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan: LoadPlan = reader.prepare_local_plan(planner.create_local_plan())
    late = TieredReader(place)
    late.set_up_storage_reader(late.read_metadata(), True)
    dcp.save({"a": torch.zeros(1000)}, storage_writer=TieredWriter(place))
    reader.read_data(plan, planner).wait()
    assert torch.equal(loaded["a"], torch.ones(1000))
    with pytest.raises(TieredError, match="replaced"):
        late.prepare_local_plan(planner.create_local_plan())
