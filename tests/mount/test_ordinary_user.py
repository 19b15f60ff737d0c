"""Mounting needs no privilege beyond fusermount: the whole life of a volume as a user who is not root, by either driver."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.fuse.kernel import mounting

NOBODY = 65534

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(mounting.fusermount() is None, reason="fusermount is not here (Debian: apt install fuse3)"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="tieredfs-user-"))
    made.chmod(0o755)
    home = made / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _tell(folder: Path, driver: str) -> dict[str, object]:
    root = os.geteuid() == 0
    command = [sys.executable, "-m", "tests.mount.ordinary_user"]
    command += [str(folder), driver, "--as", str(NOBODY)] if root else [str(folder / "home"), driver]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder / "home")}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=140,
    )
    refused = root and f"[Errno {errno.EPERM}] unshare" in done.stderr
    if refused:
        pytest.skip("this root may not make a mount namespace, where it would be an ordinary user")
    assert done.returncode == 0, done.stderr + _log(folder)
    told: dict[str, object] = json.loads(done.stdout)
    return told


def _log(folder: Path) -> str:
    log = folder / "home" / "volume.db.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("driver", ["kernel", "fuse-python"])
def test_the_life_of_a_volume(driver: str, folder: Path) -> None:
    told = _tell(folder, driver)
    assert told["uid"] != 0
    assert told["driver"] == driver
    assert told["owner"] == told["uid"]
    assert told["mode"] == 0o750
    assert told["read"] == told["written"], "from the store, after the SSD was emptied"
    assert told["left"] == []
    if driver == "kernel":
        assert "a new daemon took over" in _log(folder)
