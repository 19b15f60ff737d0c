"""The shipped POSIX suites over the portable driver."""

import pytest

from tieredfs.testing import attribute_suite, posix_suite, process_suite, program_suite

pytestmark = pytest.mark.mount


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
