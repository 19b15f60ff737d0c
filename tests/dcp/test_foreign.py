"""`ckpt import` of directories that DCP's own storage wrote; nothing in them is executed."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from tests.dcp.test_one_process import assert_same, state
from tieredfs.cli import main
from tieredfs.errors import ConfigurationError, UnstorableError
from tieredfs_client.checkpoint import CheckpointManager
from tieredfs_client.checkpoint.exchange import read_foreign
from tieredfs_client.dcp.foreign import read_metadata

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:TypedStorage")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dcp") / "step"
    dcp.save(state(), checkpoint_id=directory)
    return directory


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_the_state_comes_back_nested(directory: Path) -> None:
    assert_same(read_foreign(str(directory)), state())


def test_the_verb_makes_a_checkpoint_of_it(directory: Path, url: str) -> None:
    assert main(["ckpt", "import", url, "runs/gpt", "7", str(directory)]) == 0
    with CheckpointManager(url, "runs/gpt") as manager:
        found = manager.read("latest")
    assert found.step == 7
    assert_same(found.state, state())


def test_a_state_that_was_not_flattened(tmp_path: Path) -> None:
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dcp.save({"a.b": torch.ones(3), "c": 1}, checkpoint_id=tmp_path, planner=planner)
    assert_same(read_foreign(str(tmp_path)), {"a.b": torch.ones(3), "c": 1})


class _Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /nonexistent/pwned",)


@pytest.mark.parametrize("evil", [_Evil(), print, torch.load, torch.nn.Linear])
def test_a_class_that_is_not_dcps_is_refused_by_name(directory: Path, evil: Any) -> None:
    metadata = read_metadata(str(directory / ".metadata"))
    metadata.planner_data = evil
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        UnstorableError, match=r"asks for (posix\.system|builtins\.print|torch\.serialization\.load|torch\.nn)"
    ):
        read_foreign(str(directory))


class _Unknown:
    """What no `weights_only` load admits."""


def test_an_object_that_needs_code_is_refused_by_its_key(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(1), "thing": _Unknown()}, checkpoint_id=tmp_path)
    with pytest.raises(UnstorableError, match="thing"):
        read_foreign(str(tmp_path))


def test_damage_is_named(directory: Path) -> None:
    (data,) = directory.glob("*.distcp")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="shorter"):
        read_foreign(str(directory))
    data.unlink()
    with pytest.raises(ConfigurationError, match=r"__0_0\.distcp is missing"):
        read_foreign(str(directory))


def test_broken_metadata_is_corrupt(directory: Path) -> None:
    path = directory / ".metadata"
    good = path.read_bytes()
    for broken in (b"", b"\x80\x04.", good[:-30], pickle.dumps({"a": 1})):
        path.write_bytes(broken)
        with pytest.raises(ConfigurationError):
            read_foreign(str(directory))


def test_names_above_the_directory_and_missing_chunks(directory: Path) -> None:
    path = str(directory / ".metadata")
    metadata = read_metadata(path)
    for place in metadata.storage_data.values():
        place.relative_path = "../" + place.relative_path
    Path(path).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigurationError, match="no name of a data file"):
        read_foreign(str(directory))
    metadata = read_metadata(path)
    for place in metadata.storage_data.values():
        place.relative_path = place.relative_path.removeprefix("../")
    big = metadata.state_dict_metadata["model.big"]
    assert isinstance(big, TensorStorageMetadata)
    big.size = torch.Size([big.size[0] + 1, *big.size[1:]])
    Path(path).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigurationError, match=r"model\.big: 8 elements"):
        read_foreign(str(directory))
    big.chunks = [ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([1, 8]))]
    Path(path).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigurationError, match=r"model\.big"):
        read_foreign(str(directory))
