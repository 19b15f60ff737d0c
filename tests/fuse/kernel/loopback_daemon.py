"""A daemon over a plain directory, for the keeper's tests: `loopback_daemon.py DIRECTORY [--fail-to-open|--crash]`."""

import contextlib
import os
import sys
from collections.abc import Iterator

from tieredfs.errors import AlreadyExistsError, NotFoundError, VolumeNotFoundError
from tieredfs.fuse.kernel.daemon import serve_for_keeper
from tieredfs.fuse.operations import Caller, Opened, Operations
from tieredfs.model import Attributes, InodeId
from tieredfs.testing.loopback import LoopbackOperations


class OnceOnly(LoopbackOperations):
    """What a daemon that is gone may have carried out is looked for before it fails.

    A real volume keeps a record of requests; here names are never used twice, so their presence tells.
    """

    def make_directory(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Attributes:
        try:
            return super().make_directory(parent, name, mode, caller)
        except AlreadyExistsError:
            return self._already_made(parent, name, caller)

    def create(self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, Opened]:
        try:
            return super().create(parent, name, mode, flags, caller)
        except AlreadyExistsError:
            attributes = self._already_made(parent, name, caller)
            return attributes, self.open(attributes.inode, flags & os.O_ACCMODE, caller)

    def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        try:
            super().unlink(parent, name, caller)
        except NotFoundError:
            if not caller.resent:
                raise

    def rename(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        try:
            super().rename(parent, name, new_parent, new_name, flags, caller)
        except NotFoundError:
            if not caller.resent:
                raise

    def _already_made(self, parent: InodeId, name: bytes, caller: Caller) -> Attributes:
        if not caller.resent:
            raise AlreadyExistsError(os.fsdecode(name))
        return self.lookup(parent, name)


@contextlib.contextmanager
def open_operations() -> Iterator[Operations]:
    if "--fail-to-open" in sys.argv:
        raise VolumeNotFoundError("there is no volume here")
    if "--crash" in sys.argv:
        os.abort()
    operations = OnceOnly(sys.argv[1])
    yield operations
    operations.close()


if __name__ == "__main__":
    sys.exit(serve_for_keeper(open_operations))
