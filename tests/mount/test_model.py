"""Random operations on a volume, mounted by the kernel driver, and on a plain directory: the same, errno by errno."""

from pathlib import Path

import pytest

from tieredfs.testing import model_ops
from tieredfs.testing.features import Features


@pytest.mark.parametrize("seed", range(model_ops.SEQUENCES))
def test_the_mount_behaves_like_a_plain_directory(seed: int, mounted: Path, tmp_path: Path, features: Features) -> None:
    assert model_ops.check(seed, mounted, tmp_path, features) > len(model_ops.FURNITURE) + 5, (
        "a sequence in which nothing succeeds shows nothing"
    )
