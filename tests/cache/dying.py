"""Two small files that are written together, and one of them is opened for writing, by a process that is to die in it: META_URL."""

import sys

from tieredfs.model import Attributes
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Naming

ONE, TWO = b"one" * 1000, b"two" * 30_000


def act(meta_url: str) -> None:
    with FileSystem.at(meta_url, purpose="dying") as volume:
        first, second = volume.stage_group([ONE, TWO])
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        made, _ = volume.commit_group([(first, Naming(b"one")), (second, Naming(b"two"))])
        assert isinstance(made, Attributes)
        volume.sync_names()
        volume._tier.open_write(made.inode, truncate=False)


if __name__ == "__main__":
    act(*sys.argv[1:])
