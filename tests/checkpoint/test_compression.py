"""Checkpoints whose tensors are packed: every type, slices, rot, reuse across codecs, other tools, the command line."""

import contextlib
import errno
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.checkpoint.test_checkpoints import contents, flip, names, rewrite
from tests.checkpoint.test_ckpt_verbs import RUN, Ran, ckpt
from tieredfs.errors import CorruptError, InvalidRequestError, NoSpaceError, NotSupportedError
from tieredfs.host import Host, LocalFiles, SystemClock
from tieredfs.host.files import Buffer
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager, Shard
from tieredfs_client.checkpoint.codec import Packer
from tieredfs_client.checkpoint.keeping import described
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.load import Loader
from tieredfs_client.checkpoint.pack import Appending, _StoppedError
from tieredfs_client.checkpoint.packing import PACKED_BYTES_MIN, Pace

__all__ = ["ckpt"]
STEP = b"runs/gpt/step-000000000001/"
PACKED = STEP + b"packed-r00000-000.safetensors"
DATA = STEP + b"data-r00000-000.safetensors"


@pytest.fixture
def manager(volume: FileSystem) -> Iterator[CheckpointManager]:
    with CheckpointManager(volume, RUN, compression="zstd") as made:
        yield made


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and bits(left) == bits(right)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# ---- what comes back -------------------------------------------------------------------------------------------------

FLOATS = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
]
COUNT = PACKED_BYTES_MIN + 12345


def every_type() -> dict[str, Any]:
    """Tensors that are packed, of every type, in memory of every kind, and some that never are."""
    state: dict[str, Any] = {str(dtype): weights(COUNT).to(dtype) for dtype in FLOATS}
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool):
        state[str(dtype)] = (torch.arange(COUNT) % 7 % 2).to(dtype)
    state["complex"] = torch.complex(weights(COUNT), weights(COUNT, seed=1))
    state["complex128"] = state["complex"].to(torch.complex128)
    state["conjugated"] = state["complex"].conj()
    state["nans"] = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    state["strided"] = weights(500, 301).t()
    state["empty"] = torch.empty(0, 9)
    state["scalar"] = torch.tensor(3.5)
    state["small"] = weights(100)
    state["random"] = torch.randint(0, 256, (COUNT,), dtype=torch.uint8)
    state["fortran"] = np.asfortranarray(np.arange(60_000, dtype=">f8").reshape(200, 300))
    state["text"] = np.array(["ab", "c"] * 20_000)
    return state


def test_every_type_comes_back_bit_for_bit(manager: CheckpointManager) -> None:
    state = every_type()
    saved = manager.save(1, state)
    assert saved.stored_bytes < 0.8 * saved.written_bytes
    back = manager.load()
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            assert (back[key].dtype, back[key].tobytes()) == (value.dtype, value.tobytes()), key
        else:
            assert same_bits(back[key], value.resolve_conj()), key
    lines = {line.key: line.stored_ratio for line in described(manager.catalog, 1).tensors}
    assert [key for key, ratio in lines.items() if ratio == 1] == ["empty", "scalar", "small", "random"]
    assert manager.verify() == []


def test_in_the_background_the_values_of_the_call_are_packed(manager: CheckpointManager) -> None:
    state = {"w": weights(3 << 20), "strided": weights(300, 400).t()}
    expected = {key: value.clone() for key, value in state.items()}
    pending = manager.save_async(1, state)
    for value in state.values():
        value.zero_()
    assert pending.result(60).stored_bytes < 0.9 * pending.result().written_bytes
    assert all(same_bits(value, expected[key]) for key, value in manager.load().items())


@contextlib.contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sizes: list[int] = []
    read = Loader._read_stored

    def count(self: Loader, job: Any, at: int, target: memoryview, piece: int) -> None:
        sizes.append(len(target))
        read(self, job, at, target, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "_read_stored", count)
        yield sizes


@pytest.mark.parametrize("verify", [True, False])
def test_a_slice_reads_the_pieces_that_it_covers(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    table = weights(4096, 1024)  # four pieces of 1024 rows
    stored = manager.save(1, {"t": table}).stored_bytes
    for first, count, pieces in ((0, 1, 1), (1000, 30, 2), (1024, 1024, 1), (4095, 1, 1), (0, 4096, 4)):
        rows = torch.zeros(count, 1024)
        with counted_reads(monkeypatch) as sizes:
            manager.load(into={"t": Shard(rows, (4096, 1024), (first, 0))}, verify=verify)
        assert same_bits(rows, table[first : first + count])
        assert len(sizes) == pieces
        assert sum(sizes) < 1.01 * stored * pieces / 4, "what is stored of them, no more"
    columns = torch.zeros(4096, 3)
    manager.load(into={"t": Shard(columns, (4096, 1024), (0, 7))}, verify=verify)
    assert same_bits(columns, table[:, 7:10])
    strided = torch.zeros(1024, 4096).t()
    manager.load(into={"t": strided}, verify=verify)
    assert same_bits(strided, table)


def test_the_same_state_makes_the_same_file(volume: FileSystem) -> None:
    """However the threads were scheduled."""
    state = {str(number): weights(100_000 * number + 17, seed=number) for number in range(1, 20)}
    state["strided"] = weights(500, 301).t()
    files = []
    for run in ("a", "b", "c"):
        with CheckpointManager(volume, run, compression="zstd") as manager:
            manager.save(1, state)
        files.append(contents(volume, run.encode() + b"/step-000000000001/packed-r00000-000.safetensors"))
    assert files[0] == files[1] == files[2]


def test_other_tools_see_bytes_of_another_name_and_a_note(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(1, {"w": weights(COUNT), "b": weights(7)})
    data = contents(volume, PACKED)
    (tensor,) = (read := safetensors.torch.load(data)).values()
    assert (list(read), tensor.dtype) == (["w:packed"], torch.uint8)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "tieredfs ckpt export" in header["__metadata__"]["tieredfs"]
    assert list(safetensors.torch.load(contents(volume, DATA))) == ["b"]
    body = json.loads(contents(volume, STEP + b"manifest.json"))
    assert body["version"] == 2


# ---- rot -------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_names_tensor_and_file(manager: CheckpointManager, volume: FileSystem) -> None:
    state = {"a": weights(COUNT), "b": weights(COUNT, seed=1), "c": weights(2 * PIECE_BYTES // 4, seed=2)}
    manager.save(1, state)
    rewrite(volume, PACKED, flip(-100))
    for into in (None, {key: torch.zeros_like(value) for key, value in state.items()}):
        with pytest.raises(CorruptError, match=r"c: its checksum is wrong at byte .* of packed-r00000-000"):
            manager.load(into=into)
    assert same_bits(manager.load(only=["a"])["a"], state["a"])
    (wrong,) = manager.verify()
    assert "(c)" in wrong


def test_a_frame_that_was_written_wrong_is_told_by_tensor_and_file(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right: only unpacking it finds out."""
    pack = Packer.pack

    def pack_wrong(self: Packer, *given: Any) -> list[Any]:
        head, *planes = pack(self, *given)
        return [head, *planes[:-1], bytes(len(planes[-1]))]

    with monkeypatch.context() as patch:
        patch.setattr(Packer, "pack", pack_wrong)
        manager.save(1, {"a": weights(COUNT)})
    with pytest.raises(CorruptError, match=r"a: a frame .*, at byte .* of packed-r00000-000"):
        manager.load()
    (wrong,) = manager.verify()
    assert "(a)" in wrong


# ---- saving again ----------------------------------------------------------------------------------------------------


def test_what_is_unchanged_is_reused_however_it_is_stored(volume: FileSystem) -> None:
    state = {"plain": weights(3 << 20), "packed": weights(5 << 20, seed=1), "odd": weights(1_234_567, seed=2)}
    with CheckpointManager(volume, RUN, keep_last=1) as manager:
        assert manager.save(1, state).stored_bytes == sum(value.nbytes for value in state.values())
        state["packed"][0] += 1
        state["odd"][0] += 1
        saved = manager.save(2, state, compression="zstd")
        assert saved.written_bytes == state["packed"].nbytes + state["odd"].nbytes
        assert saved.stored_bytes < 0.9 * saved.written_bytes
        assert saved.reused_bytes == state["plain"].nbytes
        for step, compression in ((3, "none"), (4, "zstd:3"), (5, "zstd"), (6, None)):
            assert manager.save(step, state, compression=compression).written_bytes == 0
        assert [one.step for one in manager.checkpoints()] == [6], "and what they refer to outlives them"
        assert all(same_bits(value, state[key]) for key, value in manager.load().items())
    with CheckpointManager(volume, RUN) as again:
        assert again.save(7, state).written_bytes == 0, "also after a restart"
        assert again.verify() == []
        (_, summary) = again.checkpoints()
        assert summary.new_bytes == 0
        assert summary.stored_bytes < summary.size_bytes
        read = safetensors.torch.load(contents(volume, b"runs/gpt/step-000000000007/same-r00000.safetensors"))
        assert sorted(read) == ["odd:packed", "packed:packed", "plain"]
        state["odd"][1] += 1
        assert again.save(8, state).stored_bytes == state["odd"].nbytes, "what changed is stored as this save says"
        assert all(same_bits(value, state[key]) for key, value in again.load().items())


def test_too_little_to_refer_to_is_written_as_the_save_says(manager: CheckpointManager) -> None:
    state = {"w": weights(COUNT)}
    assert manager.save(1, state).stored_bytes == manager.save(2, state).stored_bytes > 0


def test_a_plain_checkpoint_is_of_the_first_version(volume: FileSystem, manager: CheckpointManager) -> None:
    manager.save(1, {"random": torch.randint(0, 256, (COUNT,), dtype=torch.uint8)})
    assert names(volume, STEP[:-1]) == [b"data-r00000-000.safetensors", b"manifest.json"]
    assert json.loads(contents(volume, STEP + b"manifest.json"))["version"] == 1


def test_auto_packs_what_a_known_pace_makes_worth_it(volume: FileSystem) -> None:
    state = {"w": weights(COUNT), "random": torch.randint(0, 256, (COUNT,), dtype=torch.uint8)}
    with CheckpointManager(volume, RUN, compression="auto") as manager:
        first = manager.save(1, state)
        assert first.stored_bytes == first.written_bytes, "nothing is known yet"
        manager._writer.pace = Pace(1.0)
        state["w"].neg_()
        state["random"][0] ^= 1
        slow = manager.save(2, state)
        assert 0 < slow.written_bytes - slow.stored_bytes < state["w"].nbytes
        manager._writer.pace = Pace(1e15)
        state["w"].neg_()
        fast = manager.save(3, state)
        assert fast.stored_bytes == fast.written_bytes
        large = torch.zeros(20 << 20)
        manager._writer.pace = None
        manager.save(4, {"large": large})
        assert manager._writer.pace is not None, "a large save tells"


def test_ways_to_ask_that_are_none(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match="zstd:19"):
        CheckpointManager(volume, RUN, compression="gzip")
    with CheckpointManager(volume, RUN) as manager:
        with pytest.raises(InvalidRequestError, match="zstd:19"):
            manager.save(1, {}, compression="zstd:99")
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "zstandard", None)
            with pytest.raises(NotSupportedError, match=r"zstandard.*pip install"):
                manager.save(1, {}, compression="zstd")
            manager.save(1, {"n": 1})
        assert manager.load() == {"n": 1}


# ---- when writing fails ----------------------------------------------------------------------------------------------


class FullDisk(LocalFiles):
    """Refuses every large write after so many."""

    def __init__(self) -> None:
        self.left = 1 << 30
        self.refused = 0
        self._lock = threading.Lock()

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._lock:
            if sum(map(len, buffers)) > 1 << 20:
                self.left -= 1
                if self.left < 0:
                    self.refused += 1
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(descriptor, buffers, offset)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_a_disk_that_fills_up_while_packing(volume: FileSystem, room: int) -> None:
    disk = FullDisk()
    host = Host(SystemClock(), disk, random.SystemRandom())
    state = {"a": weights(4 << 20), "strided": weights(2048, 2048).t(), "b": weights(4 << 20, seed=1)}
    with CheckpointManager(volume, RUN, host=host, compression="zstd") as manager:
        manager.save(1, {"n": 1})
        disk.left = room
        with pytest.raises(NoSpaceError):
            manager.save(2, state)
        assert disk.refused > 0
        assert names(volume, b"runs/gpt/.attempts") == []
        assert manager.load() == {"n": 1}
        disk.left = 1 << 30
        manager.save(2, state)
        assert all(same_bits(value, state[key]) for key, value in manager.load().items())


def test_places_are_given_out_in_the_order_of_the_jobs() -> None:
    appending = Appending(64)
    with ThreadPoolExecutor(3) as pool:
        third = pool.submit(appending.place, 2, 10, last=True)
        second = pool.submit(appending.place, 1, 20, last=True)
        assert appending.place(0, 5, last=False) == 64
        assert not second.done()
        assert appending.place(0, 5, last=True) == 69
        assert second.result(60) == 74
        assert third.result(60) == 94
        fifth = pool.submit(appending.place, 4, 10, last=True)
        appending.stop()
        with pytest.raises(_StoppedError):
            fifth.result(60)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_verbs(ckpt: Callable[..., Ran], volume: FileSystem, tmp_path: Any) -> None:
    state = {"w": weights(COUNT), "table": weights(3 << 20), "small": weights(5)}
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, state)
        manager.delete(1, force=True)
        manager.save(2, state)
        manager.save(3, state | {"w": weights(COUNT, seed=1)}, compression="zstd")
    assert ckpt("verify").code == 0
    assert ckpt("diff", 2, 3, "--json").data == [{"key": "w", "what": "content", "size_bytes": 4 * COUNT}]
    listed = ckpt("list", "--json").data
    assert isinstance(listed, list)
    assert listed[0]["stored_bytes"] == listed[0]["size_bytes"]
    assert listed[1]["new_bytes"] < listed[1]["stored_bytes"] < listed[1]["size_bytes"]
    shown = ckpt("show", 3, "--json").data
    assert isinstance(shown, dict)
    assert {line["key"]: line["stored_ratio"] < 0.9 for line in shown["tensors"]} == {
        "w": True,
        "table": False,
        "small": False,
    }
    out = tmp_path / "out"
    assert ckpt("export", 3, out).code == 0
    read = safetensors.torch.load_file(out / "model.safetensors")
    assert sorted(read) == ["small", "table", "w"], "plain, for any tool"
    assert same_bits(read["w"], weights(COUNT, seed=1))
    assert ckpt("import", 4, out / "model.safetensors", "--compression", "zstd").code == 0
    assert ckpt("diff", 3, 4).out.strip() == "no tensor differs"
    assert ckpt("prune", "--keep-last", 1, "--json").data == {"deleted_steps": [2, 3]}
    assert ckpt("verify").code == 0
    assert ckpt("import", 5, out / "model.safetensors", "--compression", "lzma").code != 0
