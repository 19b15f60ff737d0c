"""A real volume under the portable driver: the shipped suites, the model, and the way through the store."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mount import volumes
from tieredfs.errors import NotSupportedError
from tieredfs.testing import attribute_suite, model_ops, posix_suite, process_suite, program_suite
from tieredfs.testing.features import Features

PORTABLE = Features(
    nanosecond_times=False,
    single_time_changes=False,
    fallocate=False,
    punch_hole=False,
    rename_flags=False,
    binary_xattrs=False,
    seamless_replacement=False,
    coherent_links=False,
    open_removed_directories=False,
)


@pytest.fixture(scope="module")
def portable_lab() -> Iterator[volumes.Lab]:
    with volumes.lab() as made:
        made.format()
        made.mount(allow_other=True, driver="fuse-python")
        yield made


@pytest.fixture
def mounted(portable_lab: volumes.Lab) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=portable_lab.mnt))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def features() -> Features:
    return PORTABLE


class TestFiles(posix_suite.FileSuite):
    pass


class TestNames(posix_suite.NameSuite):
    pass


class TestAttributes(attribute_suite.AttributeSuite):
    pass


class TestProcesses(process_suite.ProcessSuite):
    pass


class TestTools(program_suite.ToolSuite):
    pass


class TestTensors(program_suite.TensorSuite):
    pass


@pytest.mark.parametrize("seed", range(100, 100 + model_ops.SEQUENCES))
def test_the_mount_behaves_like_a_plain_directory(seed: int, mounted: Path, tmp_path: Path, features: Features) -> None:
    features = replace(features, xattr_value_bytes_max=3500)
    assert model_ops.check(seed, mounted, tmp_path, features) > len(model_ops.FURNITURE) + 5


def test_the_order_of_changes_is_the_order_of_times_to_the_nanosecond(portable_lab: volumes.Lab, mounted: Path) -> None:
    """As others see it: through this driver times are whole seconds."""
    directory = os.fsencode(mounted.relative_to(portable_lab.mnt)) + b"/"
    names = []
    for number in range(40):
        names += [f"made-{number}", f"written-{number}", f"touched-{number}"]
        (mounted / names[-3]).mkdir()
        (mounted / names[-2]).write_bytes(b"x")
        (mounted / names[-1]).touch()
    with portable_lab.open() as volume:
        times = [volume.metadata.resolve(directory + os.fsencode(name)).mtime_ns for name in names]
    assert times == sorted(times)


def test_the_status_says_which_driver_and_why(portable_lab: volumes.Lab) -> None:
    mount = portable_lab.ask("status")["mount"]
    assert (mount["driver"], mount["reason"]) == ("fuse-python", "asked for; bytes pass through the daemon")


def test_who_watches_is_told_what_this_driver_knows(portable_lab: volumes.Lab) -> None:
    found = portable_lab.ask("activity", interval_s=0.2)
    assert (found["operations"], found["kinds"]) == (None, {})
    assert found["process"] == portable_lab.daemon_pid()
    with pytest.raises(NotSupportedError, match="--driver kernel"):
        portable_lab.ask("top", interval_s=0.2)


def test_what_was_written_comes_back_from_the_store(portable_lab: volumes.Lab, mounted: Path) -> None:
    data = os.urandom(9_000_001)
    (mounted / "file").write_bytes(data)
    portable_lab.ask("drain")
    name = str((mounted / "file").relative_to(portable_lab.mnt))
    assert portable_lab.ask("evict", paths=[name])["evicted"] == 1
    assert portable_lab.ask("info", path=name)["local"] == "evicted"
    assert (mounted / "file").read_bytes() == data
    assert portable_lab.ask("info", path=name)["state"] == "stored"
