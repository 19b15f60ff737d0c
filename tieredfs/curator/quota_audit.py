"""Quotas in an audit: each record against the sum of what counts in it. Costs nothing where there are no quotas.

Sums are kept for the nearest quota of each inode and put together along the quotas above it at the end, so memory is for quotas and
for directories that were climbed from lately.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format import keys, records
from tieredfs.format.records import HAS_QUOTA, MAY_BE_COUNTED, InodeRecord
from tieredfs.kv.engine import Reader
from tieredfs.meta import inodes, quotas
from tieredfs.meta.quotas import NOTHING, Chain, Usage
from tieredfs.model import InodeId, Quota

_CHAINS_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class WrongQuota:
    """A directory whose quota is not as it should be, and how."""

    directory: InodeId
    detail: str


class QuotaSums:
    """Fed with every inode; then `wrong` tells."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._quotas: dict[InodeId, Quota] = {}
        self._unreadable: set[InodeId] = set()
        self._sums: dict[Chain, Usage] = {}
        self._chains: dict[int, Chain] = {}
        self._with_bit: set[InodeId] = set()
        for key, value in reader.scan(keys.QUOTAS_PREFIX, keys.end_of(keys.QUOTAS_PREFIX)):
            directory = InodeId(keys.last_u64(key))
            try:
                self._quotas[directory] = records.decode_quota(directory, value)
            except (CorruptError, NewerFormatError):  # told by who looks at each record
                self._unreadable.add(directory)

    def add(self, record: InodeRecord) -> None:
        if record.hints & HAS_QUOTA:
            self._with_bit.add(InodeId(record.inode))
        if self._quotas and record.hints & MAY_BE_COUNTED:
            chain = self._chain(record.parent)
            if chain:
                self._sums[chain] = self._sums.get(chain, NOTHING).plus(quotas.usage_of(record))

    def _chain(self, directory: int) -> Chain:
        known = self._chains.get(directory)
        if known is None:
            if len(self._chains) >= _CHAINS_MAX:
                self._chains.clear()
            known = quotas.above(self._reader, inodes.find(self._reader, InodeId(directory)))
            self._chains[directory] = known
        return known

    def wrong(self) -> Iterator[WrongQuota]:
        used = dict.fromkeys(self._quotas, NOTHING)
        for chain, usage in self._sums.items():
            for directory in chain:
                if directory in used:
                    used[directory] = used[directory].plus(usage)
        for directory, quota in self._quotas.items():
            if directory not in self._with_bit:
                yield WrongQuota(directory, "its quota is not known to its record, or it does not exist")
            elif (quota.used_bytes, quota.used_inodes) != used[directory]:
                right = used[directory]
                yield WrongQuota(
                    directory,
                    f"its quota has {quota.used_bytes} bytes and {quota.used_inodes} inodes used; {right.size_bytes} and "
                    f"{right.inodes} are right",
                )
        for directory in sorted(self._with_bit - self._quotas.keys() - self._unreadable):
            yield WrongQuota(directory, "its record says that it has a quota, and there is none")
