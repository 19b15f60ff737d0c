"""What the page cache has of a file."""

import errno
import mmap
import os
import platform
import re
from pathlib import Path

import pytest

from tieredfs.host.libc import cached_bytes

LINUX = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
pytestmark = pytest.mark.skipif(
    LINUX < (6, 5), reason="Linux 6.5 says what is in the page cache, and this is an older one"
)


def test_what_was_written_is_in_the_page_cache_and_holes_are_not(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.truncate(5 * mmap.PAGESIZE)
        assert cached_bytes(file.fileno(), 5 * mmap.PAGESIZE) == 0
        os.pwrite(file.fileno(), b"x" * (mmap.PAGESIZE + 1), 2 * mmap.PAGESIZE)
        assert cached_bytes(file.fileno(), 5 * mmap.PAGESIZE) == 2 * mmap.PAGESIZE
        assert cached_bytes(file.fileno(), 2 * mmap.PAGESIZE + 1) == mmap.PAGESIZE


def test_a_descriptor_that_is_none_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        cached_bytes(-1, 1)
