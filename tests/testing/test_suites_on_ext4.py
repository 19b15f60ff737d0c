"""The shipped file system suites over a plain directory: they must ask for no more than a local file system gives."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.testing import attribute_suite, posix_suite, process_suite, program_suite
from tieredfs.testing.features import PLAIN_EXT4, Features


@pytest.fixture
def mounted() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tieredfs-plain-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def features() -> Features:
    return PLAIN_EXT4


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
