"""What tests that mount need: skip marks, and a mount served by threads of the test itself."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.fuse.kernel import mounting
from tieredfs.fuse.kernel.ledger import Ledger, make_memory
from tieredfs.fuse.kernel.session import Session, SessionOptions
from tieredfs.fuse.operations import Operations

needs_root_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(mounting.DEVICE, os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)


@contextlib.contextmanager
def served(
    operations: Operations,
    point: Path,
    options: SessionOptions | None = None,
    mount: mounting.MountOptions | None = None,
) -> Iterator[Session]:
    """`operations` mounted at `point`, served by this process."""
    point.mkdir(exist_ok=True)
    path = mounting.check_mountpoint(str(point))
    device = mounting.mount_fuse(path, mount or mounting.MountOptions())
    session = Session(operations, device, Ledger(make_memory()), options)
    ready = threading.Event()
    server = threading.Thread(target=session.run, args=(ready.set,), daemon=True)
    server.start()
    try:
        assert ready.wait(10)
        yield session
    finally:
        try:
            with contextlib.suppress(Exception):
                mounting.unmount(path)
        finally:
            while mounting.mount_at(path) is not None:
                mounting.unmount(path, lazy=True)
            server.join(10)
            os.close(device)
