"""Whether somebody may still write to a file: descriptors and mappings, of this process and of others."""

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tieredfs.host.files import is_open_for_writing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(8192))
    return tmp_path / "file"


def asked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_open_for_writing(descriptor)
    finally:
        os.close(descriptor)


def test_descriptors(path: Path) -> None:
    assert not asked(path)
    with path.open("rb"):
        assert not asked(path), "a reader does not count"
    with path.open("r+b"):
        assert asked(path)
    assert not asked(path)


def test_a_mapping_counts_when_its_descriptor_is_closed(path: Path) -> None:
    script = (
        "import ctypes, os, sys\n"
        "c = ctypes.CDLL(None); c.mmap.restype = ctypes.c_void_p\n"
        "c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "d = os.open(sys.argv[1], os.O_RDWR); assert c.mmap(None, 4096, 3, 1, d, 0) != 2**64 - 1; os.close(d)\n"
        "print('mapped', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        assert asked(path)
    finally:
        process.communicate(timeout=20)
    assert not asked(path)


def test_a_private_or_read_only_mapping_does_not_count(path: Path) -> None:
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert not asked(path)
    mapping.close()


def test_the_lease_is_given_back_and_no_signal_comes(path: Path) -> None:
    arrived: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, _frame: arrived.append(number))
    try:
        descriptor = os.open(path, os.O_RDONLY)
        assert not is_open_for_writing(descriptor)
        os.close(os.open(path, os.O_RDWR))
        os.close(descriptor)
    finally:
        signal.signal(signal.SIGIO, before)
    assert arrived == []
