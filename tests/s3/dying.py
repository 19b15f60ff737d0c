"""One change of an object with versions, by a process that is to die in it: META_URL ACT [VERSION_ID]."""

import sys

from tieredfs.volume import FileSystem
from tieredfs_gateway.s3 import record
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.store import Store

BUCKET, KEY = b"bkt", b"dir/k"


def put(store: Store, etag: str) -> None:
    """An object that is known by its ETag."""
    with store.splice([]) as writing:
        store.commit(BUCKET, KEY, writing, Record(etag, record.SPLICED_VERSION))


def act(meta_url: str, what: str, version_id: str | None = None) -> None:
    with FileSystem.at(meta_url, purpose="dying") as volume:
        store = Store(volume, volume.volume.host.clock)
        if what == "put":
            put(store, "new")
        else:
            store.delete(BUCKET, KEY, version_id=version_id)


if __name__ == "__main__":
    act(*sys.argv[1:])
