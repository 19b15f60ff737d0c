"""What the tests of this folder run in processes of their own: `python other_process.py ACTION PATH ...`."""

import contextlib
import signal
import sys

from tieredfs.host import SystemClock
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.model import NOBODY, ROOT, CacheId, FileKind

WORK_S = 60


def hold(metadata: Metadata) -> None:
    """Open a session, leave an orphan and two reservations in it, say so, and wait to be killed."""
    session = metadata.open_session("host", 1, "test").session
    for name in (b"held", b"kept"):
        metadata.create(ROOT, name, Creation(FileKind.REGULAR, 0o644, 0, 0, staged_in=CacheId(1)))
    orphan = metadata.unlink(ROOT, b"held", session).inode
    blocks = [metadata.reserve_block(session) for _ in range(2)]
    sys.stdout.write(" ".join(str(number) for number in (session, orphan, *blocks)) + "\n")
    sys.stdout.flush()
    signal.pause()


def create_many(metadata: Metadata, name: str, count: int) -> None:
    """In one directory with others: files of one's own, and a race for names that everybody wants."""
    from tieredfs.errors import AlreadyExistsError, NotFoundError

    won = 0
    for number in range(count):
        metadata.create(ROOT, f"{name}-{number}".encode(), Creation(FileKind.REGULAR, 0o644, 0, 0))
        if number % 3 == 0:
            metadata.unlink(ROOT, f"{name}-{number}".encode(), NOBODY)
        try:
            metadata.create(ROOT, f"shared-{number}".encode(), Creation(FileKind.DIRECTORY, 0o755, 0, 0))
            won += 1
        except AlreadyExistsError:
            pass
        with contextlib.suppress(NotFoundError):
            metadata.rename(ROOT, f"moved-{number - 1}".encode(), ROOT, f"moved-{number}".encode())
    sys.stdout.write(f"{won}\n")


if __name__ == "__main__":
    signal.alarm(WORK_S)
    volume = Metadata(SqliteEngine(sys.argv[2]), SystemClock())
    if sys.argv[1] == "hold":
        hold(volume)
    else:
        create_many(volume, sys.argv[3], int(sys.argv[4]))
