"""One process and its checkpoints: real modules and optimizers, bad days, keeping, background saves."""

import contextlib
import errno
import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tieredfs.errors import (
    BusyError,
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NewerFormatError,
    NoSpaceError,
    NotFoundError,
    StateMismatchError,
    TooLargeError,
    UnavailableError,
    UnstorableError,
)
from tieredfs.host import Host, LocalFiles, SystemClock, libc
from tieredfs.host.files import Buffer
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Writing
from tieredfs_client.checkpoint import (
    CheckpointManager,
    KeepBest,
    PerRank,
    Shard,
    assemble,
    checksums,
    hostfiles,
    write,
)
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.hostfiles import HostFiles
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.write import PartWriter

RUN = "runs/gpt"


@pytest.fixture
def manager(volume: FileSystem) -> Iterator[CheckpointManager]:
    with CheckpointManager(volume, RUN) as made:
        yield made


def trained(steps: int = 2) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 30)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def names(volume: FileSystem, path: bytes) -> list[bytes]:
    return [entry.name for entry, _ in volume.entries(path)]


def rewrite(volume: FileSystem, path: bytes, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a file, as rot would that got past the store's own checks."""
    with volume.open(path) as reading:
        data = bytearray(reading.attributes.size_bytes)
        reading.read_into(0, memoryview(data))
    change(data)
    with volume.create() as writing:
        os.pwrite(writing.descriptor, bytes(data), 0)
        writing.commit(path)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_goes_on_as_if_nothing_had_happened(manager: CheckpointManager) -> None:
    model, optimizer = trained()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "epoch": 3}
    manager.save(2, state, metadata={"commit": "abc"}, metrics={"loss": 0.5})
    fresh, fresh_optimizer = trained(1)
    loaded = manager.read()
    fresh.load_state_dict(loaded.state["model"])
    fresh_optimizer.load_state_dict(loaded.state["optimizer"])
    assert (loaded.step, loaded.metadata, loaded.metrics) == (2, {"commit": "abc"}, {"loss": 0.5})
    for one, other in ((model, optimizer), (fresh, fresh_optimizer)):
        torch.set_rng_state(loaded.state["rng"])
        other.zero_grad()
        one(torch.randn(8, 30)).square().sum().backward()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_loading_in_place_fills_what_is_there(manager: CheckpointManager) -> None:
    model, _ = trained()
    strided = torch.rand(6, 4).t()
    manager.save(
        1, {"model": model.state_dict(), "strided": strided, "numbers": [1, 2.5, "x"], "free": {"a": torch.ones(2)}}
    )
    fresh, _ = trained(1)
    into = {"model": fresh.state_dict(), "strided": torch.zeros(6, 4).t(), "numbers": [0, 0.0, ""], "free": None}
    assert manager.load(into=into) is into
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)), (
        "in their memory"
    )
    assert torch.equal(into["strided"], strided)
    assert into["numbers"] == [1, 2.5, "x"]
    assert torch.equal(into["free"]["a"], torch.ones(2)), "a None takes what was saved"


def test_tied_weights_stay_tied(manager: CheckpointManager) -> None:
    weight = torch.rand(300, 300)
    saved = manager.save(1, {"a": weight, "b": weight})
    assert saved.written_bytes == weight.nbytes
    back = manager.load()
    assert back["a"] is back["b"]


def test_weird_keys_and_nan_payloads(manager: CheckpointManager, volume: FileSystem) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    state = {
        key: torch.full((3,), number)
        for number, key in enumerate(["a/b", "../../x", "nul\0", "", "é\ud800", "__metadata__"])
    }
    state["nans"] = bits.view(torch.bfloat16)
    state["nan"] = struct.unpack("<d", bytes.fromhex("efbeadde0000f4ff"))[0]
    manager.save(1, state)
    back = manager.load()
    assert list(back) == list(state)
    assert torch.equal(back["nans"].view(torch.uint16), bits)
    assert struct.pack("<d", back["nan"]) == bytes.fromhex("efbeadde0000f4ff")
    assert all(torch.equal(back[key], state[key]) for key in list(state)[:6])
    assert names(volume, b"runs/gpt/step-000000000001") == [b"data-r00000-000.safetensors", b"manifest.json"]


def test_large_and_small_tensors_and_slices(manager: CheckpointManager) -> None:
    large = torch.arange(3 * PIECE_BYTES // 4 + 12345, dtype=torch.float32)
    table = torch.rand(2000, 1500)
    manager.save(1, {"large": large, "table": table, "empty": torch.empty(0, 7), "scalar": torch.tensor(5)})
    back = manager.load()
    assert torch.equal(back["large"], large)
    assert back["empty"].shape == (0, 7)
    assert back["scalar"].shape == ()
    for verify in (True, False):
        rows, columns = torch.zeros(333, 1500), torch.zeros(2000, 77)
        into = {"table": Shard(rows, (2000, 1500), (111, 0)), "large": None, "empty": None, "scalar": None}
        manager.load(into=into, verify=verify)
        manager.load(
            into={"table": Shard(columns.t().contiguous().t(), (2000, 1500), (0, 9))}, strict=False, verify=verify
        )
        manager.load(into={"table": Shard(columns, (2000, 1500), (0, 9))}, strict=False, verify=verify)
        assert torch.equal(rows, table[111:444])
        assert torch.equal(columns, table[:, 9:86])


def test_only_some_of_it(manager: CheckpointManager) -> None:
    manager.save(1, {"model": {"a": torch.ones(2)}, "optimizer": {"m": torch.ones(3)}, "step": 1})
    assert manager.load(only=["model.*"])["optimizer"] == {"m": None}
    into = {"model": {"a": torch.zeros(2)}}
    manager.load(into=into, only=["model.*"])
    assert into["model"]["a"].sum() == 2


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_strict_loading_names_everything_and_changes_nothing(manager: CheckpointManager) -> None:
    manager.save(
        1, {"same": torch.ones(2), "shape": torch.ones(2), "dtype": torch.ones(2), "gone": torch.ones(2), "n": 5}
    )
    into: dict[str, Any] = {
        "same": torch.zeros(2),
        "shape": torch.zeros(3),
        "dtype": torch.zeros(2, dtype=torch.float64),
        "new": torch.zeros(1),
        "n": 0,
    }
    with pytest.raises(StateMismatchError) as caught:
        manager.load(into=into)
    lines = str(caught.value).splitlines()[1:]
    assert sorted(lines) == [
        "dtype: was saved as F32, not F64",
        "gone: only in the checkpoint",
        "new: missing in the checkpoint",
        "shape: was saved with shape [2], not [3]",
    ]
    assert into["same"].sum() == 0
    loaded = manager.read(into=into, strict=False)
    assert sorted(loaded.skipped) == sorted(lines)
    assert (into["same"].sum(), into["shape"].sum(), into["n"]) == (2, 0, 5)


def test_a_lambda_in_the_tree_is_named_and_nothing_is_saved(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(1, {"x": 1})
    with pytest.raises(UnstorableError, match=r"optimizer\.schedule: a function"):
        manager.save(2, {"optimizer": {"schedule": lambda step: step}})
    with pytest.raises(UnstorableError, match="metadata"):
        manager.save(2, {}, metadata={"bad": object()})
    assert manager.read().step == 1
    assert names(volume, b"runs/gpt/.attempts") == []


# ---- rot -------------------------------------------------------------------------------------------------------------

DATA = b"runs/gpt/step-000000000001/data-r00000-000.safetensors"
MANIFEST = b"runs/gpt/step-000000000001/manifest.json"


def flip(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 4

    return change


def test_a_flipped_bit_in_a_tensor_is_never_loaded(manager: CheckpointManager, volume: FileSystem) -> None:
    state = {"a": torch.rand(100), "b": torch.rand(2 * PIECE_BYTES // 4)}
    manager.save(1, state)
    rewrite(volume, DATA, flip(-PIECE_BYTES - 1))
    for into in (None, {"a": torch.zeros(100), "b": torch.zeros(2 * PIECE_BYTES // 4)}):
        with pytest.raises(CorruptError, match="b: its checksum is wrong"):
            manager.load(into=into)
    assert torch.equal(manager.load(only=["a"])["a"], state["a"])
    (wrong,) = manager.verify()
    assert "(b)" in wrong


def test_a_missing_file_and_a_short_one(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(1, {"a": torch.rand(1000)})
    rewrite(volume, DATA, lambda data: data.__delitem__(slice(-1, None)))
    with pytest.raises(CorruptError, match="shorter"):
        manager.load()
    volume.remove(DATA)
    with pytest.raises(NotFoundError):
        manager.load()
    assert manager.verify() != []
    assert manager.checkpoints()[0].durability == "incomplete"


@pytest.fixture
def incomplete_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves as they were before what ranks leave out was an error."""
    monkeypatch.setattr(assemble, "_complete", lambda _, shards: tuple(shards))


def test_a_tensor_of_which_ranks_leave_something_out_is_not_saved(volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN, keep_last=1) as manager:
        manager.save(1, {"t": torch.zeros(6, 3)})
    for pieces in ([(0, 4), (5, 6)], [(2, 6)], [(0, 4), (2, 5)]):
        shards = {rank: Shard(torch.ones(end - at, 3), (6, 3), (at, 0)) for rank, (at, end) in enumerate(pieces)}
        with CheckpointManager(
            volume, RUN, ranks=list(shards), world_size=len(shards), job="x", keep_last=1
        ) as manager:
            with pytest.raises(UnstorableError, match=r"t, F32: the shards of all ranks have 1[25] of the 18 elements"):
                manager.save(2, PerRank({rank: {"t": shard} for rank, shard in shards.items()}))
            assert [found.step for found in manager.checkpoints()] == [1]
    with CheckpointManager(volume, RUN) as manager:
        whole, none = Shard(torch.ones(6, 3), (6, 3), (0, 0)), Shard(torch.ones(0, 3), (0, 3), (0, 0))
        manager.save(2, {"t": whole, "none": none})
        assert manager.load()["t"].sum() == 18


@pytest.mark.parametrize(
    ("boxes", "where"),
    [
        ([((0, 0), (4, 3)), ((3, 0), (3, 3))], r"\(4, 3\) at \(0, 0\) and \(3, 3\) at \(3, 0\)"),
        ([((0, 0), (6, 3)), ((2, 1), (1, 1))], r"\(6, 3\) at \(0, 0\) and \(1, 1\) at \(2, 1\)"),
        ([((0, 0), (3, 3)), ((3, 0), (3, 3)), ((5, 2), (1, 1))], r"\(3, 3\) at \(3, 0\) and \(1, 1\) at \(5, 2\)"),
    ],
)
def test_shards_that_overlap_are_not_saved(
    volume: FileSystem, boxes: list[tuple[tuple[int, int], tuple[int, int]]], where: str
) -> None:
    shards = {rank: Shard(torch.full(shape, rank), (6, 3), at) for rank, (at, shape) in enumerate(boxes)}
    with CheckpointManager(volume, RUN, ranks=list(shards), world_size=len(shards), job="x") as manager:
        with pytest.raises(UnstorableError, match=f"t, I64: shards overlap, {where}"):
            manager.save(2, PerRank({rank: {"t": shard} for rank, shard in shards.items()}))
        assert manager.checkpoints() == []


def test_replicas_of_a_shard_are_saved_once(volume: FileSystem) -> None:
    rows = {0: 0, 1: 3, 2: 0, 3: 3}
    shards = {rank: Shard(torch.full((3, 3), float(at)), (6, 3), (at, 0)) for rank, at in rows.items()}
    with CheckpointManager(volume, RUN, ranks=list(shards), world_size=4, job="x") as manager:
        manager.save(2, PerRank({rank: {"t": shard} for rank, shard in shards.items()}))
        assert manager.checkpoints()[0].size_bytes == 6 * 3 * 4


@pytest.mark.usefixtures("incomplete_saves")
def test_a_missing_shard_is_not_zeros(manager: CheckpointManager) -> None:
    manager.save(1, {"t": Shard(torch.ones(4, 3), (6, 3), (2, 0))})
    with pytest.raises(CorruptError, match="t: 6 elements of it are in no shard"):
        manager.load()
    piece = torch.zeros(2, 3)
    manager.load(1, into={"t": Shard(piece, (6, 3), (3, 0))})
    assert piece.sum() == 6, "what is there can be loaded"


def test_damaged_and_newer_manifests(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(1, {"a": 1})
    rewrite(volume, MANIFEST, flip(200))
    with pytest.raises(CorruptError):
        manager.load()
    assert manager.checkpoints()[0].problem is not None
    rewrite(volume, MANIFEST, flip(200))
    assert manager.load() == {"a": 1}
    rewrite(
        volume, MANIFEST, lambda data: data.__setitem__(slice(None), data.replace(b'"version":1', b'"version":9', 1))
    )
    with pytest.raises(NewerFormatError):
        manager.load()


# ---- saving again and keeping ----------------------------------------------------------------------------------------


def test_a_step_that_is_saved_again_replaces_the_old_one(manager: CheckpointManager, volume: FileSystem) -> None:
    for value in (1, 2, 3):
        manager.save(7, {"value": value})
        assert manager.load(7) == {"value": value}
    assert [name for name in names(volume, b"runs/gpt") if name.startswith(b"step")] == [b"step-000000000007.g3"]


def test_latest_never_goes_back(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(10, {"value": 10})
    manager.save(9, {"value": 9})
    assert manager.load() == {"value": 10}
    with volume.open(b"runs/gpt/latest") as reading:
        name = bytearray(18)
        reading.read_into(0, memoryview(name))
    assert bytes(name) == b"step-000000000010\n"


def test_unchanged_tensors_outlive_the_checkpoint_that_wrote_them(volume: FileSystem) -> None:
    frozen, moving = torch.rand(3 << 20), torch.rand(1 << 20)
    with CheckpointManager(volume, RUN, keep_last=1) as manager:
        assert manager.save(1, {"frozen": frozen, "moving": moving}).reused_bytes == 0
        moving[5] += 1
        saved = manager.save(2, {"frozen": frozen, "moving": moving})
        assert (saved.reused_bytes, saved.written_bytes) == (frozen.nbytes, moving.nbytes)
        frozen[-1] += 1
        assert manager.save(3, {"frozen": frozen, "moving": moving}).written_bytes == frozen.nbytes
        assert [one.step for one in manager.checkpoints()] == [3]
        back = manager.load()
    assert torch.equal(back["frozen"], frozen)
    assert torch.equal(back["moving"], moving)
    with CheckpointManager(volume, RUN) as again:
        assert again.save(4, {"frozen": frozen, "moving": moving}).written_bytes == 0, "also after a restart"
        assert again.verify() == []


def contents(volume: FileSystem, path: bytes) -> bytes:
    with volume.open(path) as reading:
        data = bytearray(reading.attributes.size_bytes)
        reading.read_into(0, memoryview(data))
        return bytes(data)


def test_the_official_library_reads_the_files_also_those_made_by_reference(
    manager: CheckpointManager, volume: FileSystem
) -> None:
    state = {
        "a.weight": torch.rand(2 << 20),
        "b": torch.rand(7).to(torch.bfloat16),
        "odd": torch.arange(3, dtype=torch.int8),
    }
    manager.save(1, state)
    manager.save(2, state)
    for path in (DATA, b"runs/gpt/step-000000000002/same-r00000.safetensors"):
        read = safetensors.torch.load(contents(volume, path))
        assert set(read) == set(state)
        assert all(torch.equal(read[key], state[key]) for key in state)


def test_retention_keeps_what_any_rule_keeps(volume: FileSystem) -> None:
    best = KeepBest("loss", 1)
    with CheckpointManager(volume, RUN, keep_last=2, keep_every=10, keep_best=best) as manager:
        for step, loss in ((5, 0.9), (10, 0.8), (12, 0.1), (13, 0.5), (14, float("nan")), (15, 0.4), (16, 0.6)):
            manager.save(step, {"n": step}, metrics={"loss": loss})
            if step == 13:
                manager.tag("good", 13)
        assert [one.step for one in manager.checkpoints()] == [10, 12, 13, 15, 16]
        assert manager.load("good") == {"n": 13}
        with pytest.raises(InvalidRequestError, match="tag"):
            manager.delete("good")
        manager.untag("good")
        manager.delete(13)
        with pytest.raises(NotFoundError):
            manager.load("good")


def test_the_last_one_is_not_deleted(manager: CheckpointManager) -> None:
    manager.save(1, {"n": 1})
    with pytest.raises(InvalidRequestError, match="last"):
        manager.delete(1)
    manager.delete(1, force=True)
    assert manager.checkpoints() == []
    with pytest.raises(NotFoundError):
        manager.load()


def test_what_is_read_is_not_deleted(volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN, keep_last=1) as manager:
        manager.save(1, {"n": 1})
        with manager.catalog.leased(1):
            manager.save(2, {"n": 2})
            assert [one.step for one in manager.checkpoints()] == [1, 2]
            with pytest.raises(BusyError):
                manager.delete(1)
        manager.save(3, {"n": 3})
        assert [one.step for one in manager.checkpoints()] == [3]
        assert names(volume, b"runs/gpt/.leases") == []


def test_loading_while_the_step_is_replaced(volume: FileSystem) -> None:
    """Every load sees one whole state, never a mixture and never nothing."""
    size = 200_000
    with CheckpointManager(volume, RUN) as manager, CheckpointManager(volume, RUN) as reader:
        manager.save(1, {"a": torch.zeros(size), "b": torch.zeros(size)})
        stop, seen, failures = threading.Event(), set(), []

        def read() -> None:
            while not stop.is_set():
                try:
                    state = reader.load(1)
                    seen.add((state["a"].unique().tolist()[0], state["b"].unique().tolist()[0]))
                except (NotFoundError, CorruptError, BusyError) as error:
                    failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        for value in range(1, 12):
            manager.save(1, {"a": torch.full((size,), float(value)), "b": torch.full((size,), float(value))})
        stop.set()
        thread.join(60)
    assert failures == []
    assert len(seen) > 1, "loads happened in between"
    assert all(one == other for one, other in seen)


# ---- in the background -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Saves wait in the background until the event is set."""
    go = threading.Event()
    write = PartWriter.write

    def wait_and_write(self: PartWriter, *given: Any, **named: Any) -> Any:
        assert go.wait(60)
        return write(self, *given, **named)

    monkeypatch.setattr(PartWriter, "write", wait_and_write)
    try:
        yield go
    finally:
        go.set()


def test_what_is_saved_are_the_values_of_the_call(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors: dict[str, Any] = {"a": torch.ones(100_000), "t": torch.arange(12.0).reshape(3, 4).t(), "n": np.ones(5)}
    expected = {
        key: value.clone() if isinstance(value, torch.Tensor) else value.copy() for key, value in tensors.items()
    }
    with held_writes(monkeypatch) as go:
        pending = manager.save_async(1, tensors)
        tensors["a"].zero_()
        tensors["t"].zero_()
        tensors["n"][:] = 0
        assert not pending.done()
        go.set()
        assert pending.result().step == 1
    back = manager.load()
    assert torch.equal(back["a"], expected["a"])
    assert torch.equal(back["t"], expected["t"])
    assert np.array_equal(back["n"], expected["n"])


def test_a_full_buffer_waits_or_raises(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointManager(volume, RUN, staging_bytes=1000, when_full="raise") as manager:
        with held_writes(monkeypatch) as go:
            manager.save_async(1, {"a": torch.zeros(10)})
            with pytest.raises(BusyError, match="step 1"):
                manager.save_async(2, {"a": torch.zeros(10)})
            go.set()
            manager.wait()
        with pytest.raises(TooLargeError, match="1000"):
            manager.save_async(2, {"a": torch.zeros(1000)})
    with CheckpointManager(volume, RUN, staging_bytes=1000) as manager:
        first = manager.save_async(3, {"a": torch.zeros(10)})
        second = manager.save_async(4, {"a": torch.zeros(1000)})
        assert first.done(), "the second waited for the buffer"
        assert second.done(), "what does not fit is saved before the call returns"
        assert [one.step for one in manager.checkpoints()] == [1, 3, 4]


def test_a_failed_background_save_surfaces(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PartWriter, *given: Any, **named: Any) -> Any:
        raise UnavailableError("the disk is away")

    manager.save(1, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", fail)
        asked = manager.save_async(2, {"n": 2})
        with pytest.raises(UnavailableError, match="away"):
            asked.result()
        manager.wait()  # it was asked for: not told twice
        manager.save_async(3, {"n": 3})
        with pytest.raises(UnavailableError, match="away"):
            manager.save(4, {"n": 4})
    manager.save(4, {"n": 4})
    assert [one.step for one in manager.checkpoints()] == [1, 4]


def test_small_tensors_are_summed_while_the_disk_writes_them(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system cannot begin early."""
    done: list[str] = []
    begin_writing = libc.begin_writing

    def begin(descriptor: int, offset: int, length: int) -> None:
        done.append("begun")
        if len(done) > 100:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        begin_writing(descriptor, offset, length)

    def digest_of(view: memoryview) -> Digest:
        done.append("summed")
        return checksums.digest_of(view)

    monkeypatch.setattr(libc, "begin_writing", begin)
    monkeypatch.setattr(write, "digest_of", digest_of)
    state = {str(number): torch.full((1000,), float(number)) for number in range(100)}
    for step in (1, 2):
        done[:] = ["begun"] * 100 if step == 2 else []
        before = len(done)
        for tensor in state.values():
            tensor.add_(1)
        assert manager.save(step, state).written_bytes == 400_000
        assert done[before:] == ["begun"] + ["summed"] * 100
        assert manager.verify() == []
        assert torch.equal(manager.load()["7"], state["7"])


def test_a_changed_head_tells_without_a_checksum(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    probed: list[int] = []

    def digest_of(view: memoryview) -> Digest:
        summed.append(len(view))
        return checksums.digest_of(view)

    def probe_of(view: memoryview) -> int:
        probed.append(len(view))
        return checksums.probe_of(view)

    monkeypatch.setattr(write, "digest_of", digest_of)
    monkeypatch.setattr(write, "probe_of", probe_of)
    state = {str(number): torch.full((1 << 18,), float(number)) for number in range(8)}
    manager.save(1, state)
    summed.clear()
    state["0"][0] += 1
    state["1"][-1] += 1
    saved = manager.save(2, state)
    assert (saved.written_bytes, saved.reused_bytes) == (2 << 20, 6 << 20)
    assert sorted(probed) == [1 << 20] * 7, "not of the one whose head has changed"
    assert sorted(summed) == [1 << 20] * 8, "one of them when it was written, the others before, and not again"
    assert manager.verify() == []
    for key, tensor in manager.load().items():
        assert torch.equal(tensor, state[key])


class FullDisk(LocalFiles):
    """Has room for so many bytes of large writes."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.refused = 0

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        size = sum(map(len, buffers))
        if size > 1 << 20:
            self.room_bytes -= size
            if self.room_bytes < 0:
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(descriptor, buffers, offset)


def test_a_disk_that_fills_up_in_the_middle(volume: FileSystem) -> None:
    disk = FullDisk(60 << 20)
    host = Host(SystemClock(), disk, random.SystemRandom())
    state = {str(number): torch.rand(4 << 20) for number in range(3)}
    with CheckpointManager(volume, RUN, host=host) as manager:
        manager.save(1, state)
        for tensor in state.values():
            tensor.neg_()
        with pytest.raises(NoSpaceError):
            manager.save(2, state)
        assert disk.refused > 0
        assert names(volume, b"runs/gpt/.attempts") == [], "its room is free again"
        assert manager.read().step == 1
        assert manager.verify() == []
        disk.room_bytes = 1 << 40
        manager.save(2, state)
        assert torch.equal(manager.load()["2"], state["2"])
        assert names(volume, b"runs/gpt/.attempts") == []


def test_a_second_saver_in_one_process_is_told(manager: CheckpointManager, volume: FileSystem) -> None:
    manager.save(1, {"n": 1})
    with CheckpointManager(volume, RUN) as other:
        assert other.load() == {"n": 1}
        with pytest.raises(BusyError, match="is being saved into by process"):
            other.save(2, {"n": 2})
    manager.save(2, {"n": 2})


def test_a_saver_that_was_taken_over_from_is_told(volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, {"n": 1})
        volume.remove(b"runs/gpt/.owner")  # as if its heartbeat had stopped for long
        with CheckpointManager(volume, RUN) as other:
            other.save(2, {"n": 2})
            with pytest.raises(BusyError, match="taken over"):
                manager.save(3, {"n": 3})
            assert other.load() == {"n": 2}


@pytest.mark.parametrize("asked", [True, False], ids=["asks first", "does not ask"])
def test_a_sleeper_that_was_taken_over_from_commits_nothing(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """It wakes up in the middle of its files, with the first of them gone."""
    go, asleep = threading.Event(), threading.Event()
    commit_file = HostFiles._commit_file

    def sleep_before_the_second(self: HostFiles, writing: Writing, path: bytes) -> None:
        if path.endswith(b"-001.safetensors"):
            asleep.set()
            assert go.wait(60)
        commit_file(self, writing, path)

    with CheckpointManager(volume, RUN) as sleeper, CheckpointManager(volume, RUN) as other:
        with monkeypatch.context() as patch:
            patch.setattr(
                hostfiles, "split_into_files", lambda sizes, *_: [range(at, at + 1) for at in range(len(sizes))]
            )
            patch.setattr(HostFiles, "_commit_file", sleep_before_the_second)
            pending = sleeper.save_async(5, {"a": torch.ones(4), "b": torch.ones(5)})
            assert asleep.wait(60)
        volume.remove(b"runs/gpt/.owner")  # as if its heartbeat had stopped for long
        other.save(4, {"n": 4})
        if not asked:
            monkeypatch.setattr(type(sleeper._ownership), "hold", lambda self: None)
        go.set()
        with pytest.raises((BusyError, ConflictError), match=r"taken over|took over"):
            pending.result()
        assert [one.step for one in other.checkpoints()] == [4]
        assert other.verify() == []


def test_summaries_say_what_is_new(manager: CheckpointManager) -> None:
    tensor = torch.rand(2 << 20)
    manager.save(1, {"t": tensor})
    manager.save(2, {"t": tensor}, metrics={"loss": 1})
    first, second = manager.checkpoints()
    assert (first.size_bytes, first.new_bytes, first.reused_ratio) == (tensor.nbytes, tensor.nbytes, 0.0)
    assert (second.size_bytes, second.new_bytes, second.reused_ratio) == (tensor.nbytes, 0, 1.0)
    assert (second.metrics, second.world_size, second.slowest_rank) == ({"loss": 1.0}, 1, 0)


def test_a_save_while_a_disk_is_gone_is_stored_and_survives_the_next_disk(url: str, tmp_path: Path) -> None:
    model, optimizer = trained()
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "large": torch.arange(3 << 20),
    }
    (tmp_path / "d0").rename(tmp_path / "away")
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, RUN) as manager:
        manager.save(1, state)
        volume.flush(60)
        assert volume.volume.short().bare_count > 0
        (tmp_path / "away").rename(tmp_path / "d0")
        deadline_s = time.monotonic() + 60
        while volume.volume.short().block_count:
            assert time.monotonic() < deadline_s, "it is healed by itself"
            time.sleep(0.05)
    shutil.rmtree(tmp_path / "clients")
    (tmp_path / "d1").rename(tmp_path / "away")
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, RUN) as manager:
        loaded = manager.load(1)
    assert torch.equal(loaded["large"], state["large"])
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in state["model"].items())
