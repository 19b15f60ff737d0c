"""A volume's metadata as a sequence of pairs, and a new database from one.

What a dump has is the volume at one moment. Between that moment and its loading, processes wrote on: they handed out ids,
and chunks and local files bear those. So what is loaded goes on far above: no id is ever given twice, which is what lets a
chunk, a local file or an ETag be trusted by its name. What belonged to processes that ran then is left out where nobody
would ever take it away (receipts, the change feed), and kept where garbage collection ends it as for any dead process
(sessions with their orphans and intents).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from tieredfs.errors import CorruptError, VolumeExistsError
from tieredfs.format import keys, records
from tieredfs.format.dump import Pair
from tieredfs.format.keys import Counter, Tag
from tieredfs.kv.engine import Engine, Reader, Writer
from tieredfs.meta import allocation
from tieredfs.model import Progress, VolumeConfig

IDS_SKIPPED: Final = 1 << 40
"""More than were handed out since any dump: ten thousand a second for three years."""
_SKIPPING: Final = (Counter.INODE, Counter.BLOCK, Counter.SESSION, Counter.CACHE, Counter.INODES_DELETED)
"""Of inodes that were deleted, too: what lies between the two is the number of those that are. Disks are found by uuid."""
_LEFT_OUT: Final = frozenset({Tag.RECEIPT, Tag.FOLLOWER, Tag.CHANGE})
_LOAD_BATCH: Final = 4096


def pairs(reader: Reader) -> Iterator[Pair]:
    """Everything that a dump has, in key order."""
    return ((key, value) for key, value in reader.scan(b"", keys.END_OF_KEYS) if keys.tag_of(key) not in _LEFT_OUT)


def fill(engine: Engine, found: Iterable[Pair], progress: Progress) -> tuple[VolumeConfig, int]:
    """Put all into an empty database but the volume record, which is returned: without it the database is no volume. And the
    number of records.

    Raises CorruptError, and what iterating raises; the database is of no use then.
    """
    volume: bytes | None = None
    count = 0
    remaining = iter(found)
    while batch := list(islice(remaining, _LOAD_BATCH)):
        volume = next((value for key, value in batch if key == keys.VOLUME), volume)
        rest = [pair for pair in batch if pair[0] != keys.VOLUME]
        engine.write(partial(_put_all, rest))
        count += len(batch)
        progress(count, 0, "records")
    if volume is None:
        raise CorruptError("the dump has no volume record")
    return records.decode_volume(volume), count


def _put_all(several: Iterable[Pair], writer: Writer) -> None:
    for key, value in several:
        writer.put(key, value)


def complete(engine: Engine, config: VolumeConfig) -> None:
    """Make a filled database a volume, durably. Raises VolumeExistsError."""

    def change(writer: Writer) -> None:
        if writer.get(keys.VOLUME) is not None:
            raise VolumeExistsError("there is a volume in this metadata database")
        for which in _SKIPPING:
            allocation.take(writer, which, IDS_SKIPPED)
        writer.put(keys.VOLUME, records.encode_volume(config))

    engine.write(change)
    engine.sync()
