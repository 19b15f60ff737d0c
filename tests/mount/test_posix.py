"""The shipped POSIX suites over a real volume, mounted by the kernel driver."""

from tieredfs.testing import attribute_suite, posix_suite, process_suite


class TestFiles(posix_suite.FileSuite):
    pass


class TestNames(posix_suite.NameSuite):
    pass


class TestAttributes(attribute_suite.AttributeSuite):
    pass


class TestProcesses(process_suite.ProcessSuite):
    pass
