"""Random operations on a portable mount and on a plain directory: the same results."""

from pathlib import Path

import pytest

from tieredfs.testing import model_ops
from tieredfs.testing.features import Features

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("seed", range(model_ops.SEQUENCES))
def test_the_mount_behaves_like_a_plain_directory(seed: int, mounted: Path, tmp_path: Path, features: Features) -> None:
    assert model_ops.check(seed, mounted, tmp_path, features) > len(model_ops.FURNITURE) + 5, (
        "a sequence in which nothing succeeds shows nothing"
    )
