"""What the shipped file system suites take for granted, may be told to do without, and share.

The suites are classes of tests over the fixtures `mounted` (a `pathlib.Path`: an empty directory below the mount, fresh
for each test) and `features`. Whoever tests a mount supplies both and subclasses the suites. A feature that is declared
absent skips its tests with the reason: what a driver cannot do is written in one place, and shows in each run.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

CHILD_TIMEOUT_S: Final = 60.0
NOBODY: Final = 65534


@dataclass(frozen=True, slots=True)
class Features:
    """What the file system under test has beyond the least."""

    nanosecond_times: bool = True
    single_time_changes: bool = True
    """utimensat(2) with one UTIME_OMIT."""
    fallocate: bool = True
    punch_hole: bool = True
    rename_flags: bool = True
    """RENAME_NOREPLACE and RENAME_EXCHANGE."""
    allocated_blocks: bool = True
    """`st_blocks` counts what is allocated: little for a sparse file."""
    binary_xattrs: bool = True
    xattr_value_bytes_max: int = 65_536
    """ext4 holds about 4,000 bytes; Linux allows 64 KiB."""
    seamless_replacement: bool = True
    """An open of a name that is being replaced gets the old or the new file, never ENOENT."""
    coherent_links: bool = True
    """A file that is open through one of its hard links shows at once what is written through another."""
    open_removed_directories: bool = True
    """A directory can be removed while it, or a removed file of it, is open; what is open goes on working."""


PLAIN_EXT4: Final = Features(xattr_value_bytes_max=3500)


def needs(present: bool, what: str) -> None:
    """Skip the test where the file system under test is declared to lack `what`."""
    if not present:
        pytest.skip(f"declared absent here: {what}")


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The block must raise an OSError with one of these errnos."""
    due = " or ".join(os.strerror(number) for number in numbers)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what counts, and is looked at below
        yield
    assert caught.value.errno in numbers, f"expected {due}, got {caught.value!r}"


def child_command(script: str, *arguments: str) -> list[str]:
    """A bare interpreter: it starts in some 15 ms."""
    return [sys.executable, "-I", "-S", "-c", script, *arguments]


def run_child(script: str, *arguments: str, cwd: Path, user: int | None = None) -> str:
    """Run a Python script in another process, in the directory `cwd`; its standard output. A failure fails the test."""
    if user is not None:
        # Dropped inside, because the interpreter itself may lie where that user cannot reach.
        script = f"import os\nos.setgroups([]); os.setgid({user}); os.setuid({user})\n{script}"
    done = subprocess.run(
        child_command(script, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"child exited with {done.returncode}:\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def children(commands: Sequence[Sequence[str]], cwd: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes at the same time, with pipes; whatever happens, none outlives the block."""
    running: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            running.append(  # noqa: PERF401 - those that started must be ended when the next one does not
                subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=CHILD_TIMEOUT_S)


def finish(running: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait, bounded, for every process; all must have succeeded. Their outputs."""
    outputs = []
    for process in running:
        output, _ = process.communicate(timeout=CHILD_TIMEOUT_S)
        outputs.append(output)
        assert process.returncode == 0, f"{process.args!r} exited with {process.returncode}"
    return outputs


def write_file(path: Path, data: bytes, mode: int = 0o644) -> Path:
    """Create or replace `path`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
    return path


@contextlib.contextmanager
def opened(path: str | bytes | Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """os.open as a context."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
