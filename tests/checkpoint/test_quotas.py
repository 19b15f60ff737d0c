"""A save that has no room under a quota saves nothing: the last good checkpoint stays the latest, whole."""

import pytest
import torch

from tieredfs.errors import QuotaExceededError
from tieredfs.limits import MIB
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager

RUN = "runs/gpt"


def state(seed: int, mib: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weights": torch.rand(mib * MIB // 4, generator=generator)}


def test_a_save_over_the_quota_leaves_the_last_good_one_latest(volume: FileSystem) -> None:
    quotas = volume.volume.quotas
    volume.make_directories(RUN.encode())
    quotas.set(RUN, 10 * MIB, None)
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, state(1, 4))
        before = quotas.get(RUN)
        with pytest.raises(QuotaExceededError, match=f"the quota of /{RUN} has"):
            manager.save(2, state(2, 8))
        assert [one.step for one in manager.checkpoints()] == [1]
        assert torch.equal(manager.load()["weights"], state(1, 4)["weights"])
        manager.save(3, state(3, 5))
        assert [one.step for one in manager.checkpoints()] == [1, 3]
    assert before.used_bytes < quotas.get(RUN).used_bytes <= 10 * MIB
    assert quotas.check(RUN, repair=False).right


def test_a_run_without_an_inode_left_is_loaded_and_pruned(volume: FileSystem) -> None:
    quotas = volume.volume.quotas
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, state(1, 1))
        manager.save(2, state(2, 1))
        used_inodes = quotas.set(RUN, None, 1).used_inodes
        assert torch.equal(manager.load()["weights"], state(2, 1)["weights"])
        with pytest.raises(QuotaExceededError, match="inodes used"):
            manager.save(3, state(3, 1))
        manager.delete(1)
        assert [one.step for one in manager.checkpoints()] == [2]
    assert quotas.get(RUN).used_inodes < used_inodes
    assert quotas.check(RUN, repair=False).right
