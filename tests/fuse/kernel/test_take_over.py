"""What a successor does with handles that cannot be bound again."""

import os
from pathlib import Path

import pytest

from tieredfs.errors import NotFoundError, TieredError, UnavailableError
from tieredfs.fuse.kernel.handles import BackingFiles, Handles
from tieredfs.fuse.kernel.ledger import Ledger, OpenDirectory, OpenFile, make_memory
from tieredfs.fuse.kernel.modes import Mode
from tieredfs.fuse.operations import Opened
from tieredfs.model import InodeId
from tieredfs.testing.loopback import LoopbackOperations


class Refusing(LoopbackOperations):
    """Inode 3 is gone, 4 cannot be reached now, 5 meets a broken disk."""

    refusals: dict[int, TieredError | OSError] = {3: NotFoundError("3"), 4: UnavailableError("4"), 5: OSError(5, "5")}  # noqa: RUF012

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.bound: list[int] = []

    def reopen(self, handle: int, inode: InodeId, flags: int) -> Opened:
        if inode in self.refusals:
            raise self.refusals[inode]
        self.bound.append(handle)
        return Opened(handle, -1, 0, whole=True, keep_cache=False)

    def reopen_directory(self, handle: int, inode: InodeId) -> None:
        self.reopen(handle, inode, 0)


@pytest.mark.allows_warnings("could not be bound again")
def test_one_handle_that_cannot_be_bound_does_not_cost_the_mount(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = make_memory()
    ledger = Ledger(memory)
    for inode in (2, 3, 4, 5, 6):
        ledger.note_file(OpenFile(10 + inode, InodeId(inode), os.O_RDONLY, Mode.CACHED, 1, 0, 2 * inode))
        ledger.note_directory(OpenDirectory(20 + inode, InodeId(inode), 2 * inode + 1))
    operations = Refusing(str(tmp_path))
    handles = Handles(BackingFiles(-1), ledger)
    handles.take_over(operations)
    assert operations.bound == [12, 16, 22, 26]
    assert len(handles) == 10, "the kernel will release every one of them"
    assert all(handles.remove(10 + inode) for inode in (2, 3, 4, 5, 6))
    assert caplog.text.count("could not be bound again") == 4, "what is gone is no surprise"
    ledger.close()
    os.close(memory)
    operations.close()
