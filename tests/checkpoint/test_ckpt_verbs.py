"""`tieredfs ckpt ...` against a real volume, through the command line's own `main`."""

import importlib.metadata
import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tieredfs.cli import main
from tieredfs.cli.outcomes import CONDITION, OK, PROBLEMS_FOUND, REQUEST
from tieredfs.host import local_host
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager, Shard, assemble
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.exchange import export_checkpoint, read_foreign
from tieredfs_client.checkpoint.keeping import Keeper
from tieredfs_client.checkpoint.names import RunPaths

RUN = "runs/gpt"
ENTRY = importlib.metadata.EntryPoint("ckpt", "tieredfs_client.checkpoint.cli:add_to", "tieredfs.cli")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def ckpt(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(verb: str, *arguments: object) -> Ran:
        code = main(["ckpt", verb, url, RUN, *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def saved(url: str) -> dict[int, dict[str, torch.Tensor]]:
    frozen = torch.rand(2 << 20)
    states = {step: {"frozen": frozen, "moving": torch.full((7,), float(step))} for step in (1, 2, 3)}
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, RUN) as manager:
        for step, state in states.items():
            manager.save(step, state, metrics={"loss": step}, metadata={"by": "test"})
    return states


def test_the_group_is_declared_and_costs_nothing_to_list() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["entry-points"][ENTRY.group]
    assert declared[ENTRY.name] == ENTRY.value
    source = "import sys, tieredfs_client.checkpoint.cli; print([m for m in ('sqlite3', 'torch', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.usefixtures("saved")
def test_list_and_show(ckpt: Callable[..., Ran]) -> None:
    listed = ckpt("list", "--json").data
    assert isinstance(listed, list)
    assert [(one["step"], one["new_bytes"], one["size_bytes"]) for one in listed] == [
        (1, (8 << 20) + 28, (8 << 20) + 28),
        (2, 28, (8 << 20) + 28),
        (3, 28, (8 << 20) + 28),
    ]
    table = ckpt("list")
    assert table.code == OK
    assert "100.0%" in table.out
    shown = ckpt("show", 2, "--json").data
    assert isinstance(shown, dict)
    assert shown["metadata"] == {"by": "test"}
    assert [tensor["key"] for tensor in shown["tensors"]] == ["frozen", "moving"]
    assert "frozen" in ckpt("show").out


@pytest.mark.usefixtures("saved")
def test_verify_and_rot(ckpt: Callable[..., Ran], url: str) -> None:
    assert ckpt("verify").code == OK
    with FileSystem.at(url, purpose="test") as volume:
        volume.remove(b"runs/gpt/step-000000000003/same-r00000.safetensors")
    ran = ckpt("verify", "latest", "--json")
    assert ran.code == PROBLEMS_FOUND
    assert isinstance(ran.data, dict)
    assert len(ran.data["problems"]) == 1


@pytest.mark.usefixtures("saved")
def test_long_work_says_how_far_it_is(url: str, tmp_path: Path) -> None:
    size = (2 << 20) * 4 + 7 * 4
    told: dict[str, list[tuple[int, int, str]]] = {"verify": [], "export": [], "import": []}
    with FileSystem.at(url, purpose="test") as volume:
        catalog = Catalog(volume, local_host(), RunPaths.of(RUN))
        assert Keeper(catalog).verify("latest", lambda *call: told["verify"].append(call)) == []
        export_checkpoint(catalog, 2, str(tmp_path / "out"), 1 << 20, lambda *call: told["export"].append(call))
        new = CheckpointManager(volume, "runs/new", progress=lambda *call: told["import"].append(call))
        with new:
            new.save(0, read_foreign(str(tmp_path / "out")))
    for what, calls in told.items():
        done = [one[0] for one in calls]
        assert len(calls) > 1, what
        assert done == sorted(done), what
        assert calls[-1] == (size, size, "bytes"), what
        assert {one[1:] for one in calls} == {(size, "bytes")}, what


@pytest.mark.usefixtures("saved")
def test_bars_are_for_terminals_and_not_beside_json(
    ckpt: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    out = tmp_path / "out"
    assert "verifying latest" in ckpt("verify").err
    assert "exporting 2" in ckpt("export", 2, out).err
    assert "importing step 7" in ckpt("import", 7, out).err
    quiet = [ckpt("verify", "--json"), ckpt("export", 2, tmp_path / "more", "--json"), ckpt("import", 8, out, "--json")]
    assert [ran.err for ran in quiet] == ["", "", ""]
    imported = quiet[-1].data
    assert isinstance(imported, dict)
    assert imported["step"] == 8


@pytest.mark.usefixtures("saved")
def test_diff_tag_rm_prune(ckpt: Callable[..., Ran]) -> None:
    assert ckpt("diff", 1, 3, "--json").data == [{"key": "moving", "what": "content", "size_bytes": 28}]
    assert "no tensor differs" in ckpt("diff", 3).out
    assert ckpt("tag", "good", 1).code == OK
    assert ckpt("rm", "good").code == REQUEST
    assert ckpt("prune", "--keep-last", 1, "--json").data == {"deleted_steps": [2]}
    assert ckpt("tag", "good", "--remove").code == OK
    assert ckpt("rm", 1).code == OK
    assert "--force" not in ckpt("rm", 3).out
    assert ckpt("rm", 3).code == REQUEST
    assert ckpt("verify").code == OK, "what the deleted ones had written is still there"
    assert ckpt("prune").code == REQUEST
    assert ckpt("show", 99).code == REQUEST


@pytest.mark.usefixtures("saved")
def test_rm_deletes_all_that_it_was_given_or_nothing(ckpt: Callable[..., Ran]) -> None:
    assert ckpt("rm", 1, 77).code == REQUEST
    assert ckpt("rm", 1, 2, 1).code == OK
    listed = ckpt("list", "--json").data
    assert isinstance(listed, list)
    assert [one["step"] for one in listed] == [3]


def test_json_is_json_for_a_run_that_diverged(ckpt: Callable[..., Ran], url: str) -> None:
    with CheckpointManager(url, RUN) as manager:
        manager.save(1, {"x": torch.ones(1)}, metrics={"loss": math.nan, "norm": math.inf}, metadata={"at": math.nan})
    ran = ckpt("show", "--json")
    shown = json.loads(ran.out, parse_constant=pytest.fail)
    assert shown["summary"]["metrics"] == {"loss": None, "norm": None}
    assert shown["metadata"] == {"at": None}
    assert shown["ranks"][0]["written_bytes"] == 4, "named, not a row of numbers"
    assert "nan" in ckpt("show").out
    assert "rank  tree  written" in ckpt("show").out


class Custom:
    """What only its own code could restore."""


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "dcp/.metadata"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 50, b"PK\x03\x04" + b"\0" * 500], ids=["empty", "garbage", "torn"]
)
def test_a_damaged_foreign_file_is_a_line_that_names_it(
    ckpt: Callable[..., Ran], tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    ran = ckpt("import", 1, path if path.parent == tmp_path else path.parent)
    assert ran.code == REQUEST, "a foreign file is no stored byte of ours"
    assert path.name in ran.err
    assert ran.err.count("\n") == 1
    assert "fsck" not in ran.err


def test_import_of_what_is_not_there_or_would_run_code(ckpt: Callable[..., Ran], tmp_path: Path) -> None:
    for name in ("gone", "gone.pt", "gone.safetensors"):
        ran = ckpt("import", 1, tmp_path / name)
        assert (ran.code, ran.err) == (REQUEST, f"tieredfs: {tmp_path}/{name}: No such file or directory\n")
    torch.save({"x": Custom()}, tmp_path / "code.pt")
    ran = ckpt("import", 1, tmp_path / "code.pt")
    assert ran.code == REQUEST
    assert "Custom" in ran.err
    assert "weights_only" not in ran.err, "advice of torch to run it all the same"


def test_import_of_torch_files_of_before_the_archives(ckpt: Callable[..., Ran], tmp_path: Path, url: str) -> None:
    x = torch.rand(50)
    torch.save({"x": x, "step": 7}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert ckpt("import", 7, tmp_path / "old.pt").code == OK
    with CheckpointManager(url, RUN) as manager:
        loaded = manager.load(7)
    assert loaded["step"] == 7
    assert torch.equal(loaded["x"], x)


@pytest.mark.usefixtures("saved")
def test_an_export_of_nothing_leaves_nothing(ckpt: Callable[..., Ran], tmp_path: Path) -> None:
    assert ckpt("export", "nope", tmp_path / "out").code == REQUEST
    assert not (tmp_path / "out").exists()


def test_export_and_import(ckpt: Callable[..., Ran], saved: dict[int, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert ckpt("export", "latest", target).code == OK
    read = safetensors.torch.load_file(target / "model.safetensors")
    assert all(torch.equal(read[key], saved[3][key]) for key in saved[3])
    assert json.loads((target / "checkpoint.json").read_text())["step"] == 3
    assert ckpt("export", "latest", target).code == REQUEST, "never over what is there"
    assert ckpt("import", 7, target).code == OK
    assert "no tensor differs" in ckpt("diff", 3, 7).out
    torch.save({"w": torch.ones(3), "n": 4}, tmp_path / "old.pt")
    assert ckpt("import", 8, tmp_path / "old.pt").code == OK
    assert [tensor["key"] for tensor in ckpt("show", 8, "--json").data["tensors"]] == ["w"]  # type: ignore[index]
    (tmp_path / "x.txt").write_text("x")
    assert ckpt("import", 9, tmp_path / "x.txt").code == REQUEST


def test_export_joins_shards(
    ckpt: Callable[..., Ran], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.rand(6, 4)
    with (
        FileSystem.at(url, purpose="test") as volume,
        CheckpointManager(volume, RUN) as manager,
        monkeypatch.context() as before,
    ):
        before.setattr(assemble, "_complete", lambda _, shards: tuple(shards))  # as saves were once
        manager.save(1, [Shard(whole[:, :1], (6, 4), (0, 0)), {"k": torch.ones(2)}])
    assert ckpt("export", 1, tmp_path / "out").code == 4, "half a tensor is not exported"
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, RUN) as manager:
        manager.save(2, {"t": Shard(whole, (6, 4), (0, 0))})
    assert ckpt("export", 2, tmp_path / "whole").code == OK
    assert torch.equal(safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")["t"], whole)


def test_a_volume_that_is_not_there(tmp_path: Path) -> None:
    assert main(["ckpt", "list", f"sqlite://{tmp_path}/none.db", RUN]) in (REQUEST, CONDITION)
