"""Quotas: what lies below a directory, counted in the transaction that changes it.

A directory with a quota has a record with its limits and what is used (`model.Quota`), and the HAS_QUOTA bit. What lies below it
has the MAY_BE_COUNTED bit, which new inodes inherit. So whoever changes an inode knows from the record that it has read
anyway whether there is anything to count: a volume without quotas pays for testing a bit. With the bit, the quotas that hold
an inode are found by climbing from its parent; all of them count it.

Invariants, each kept inside one transaction:

- `used` of a quota is the sum over all inodes with the MAY_BE_COUNTED bit below whose parent, or an ancestor of it, is the quota's
  directory. That is everything all of whose names lie below it.
- Everything below a directory with a quota has the bit, except files that have other names elsewhere (from before the quota was
  set, or made by S3 for versions): they count in the quotas that hold all of their names, if any.
- A file's parent, where its bit is set, is a directory below the same quotas as all of its names. It exists: when the name in it is
  removed and others stay, the nearest quota's directory takes its place, or the bit goes.
- An inode without a name counts nowhere, and has not the bit; nor has what belongs to a snapshot: it holds what others made.

Limits are asked for by whoever creates, opens for writing, moves or copies; what was written and is only told of now (a size
that is published, a content that was stored) is counted and never refused, so nothing acknowledged is lost.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from tieredfs.config import format_size
from tieredfs.errors import QuotaBoundaryError, QuotaExceededError
from tieredfs.format import keys, records
from tieredfs.format.records import HAS_QUOTA, MAY_BE_COUNTED, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import DIRECTORY_DEPTH_MAX, QUOTA_UNIT_BYTES
from tieredfs.model import FileKind, InodeId, Quota

Chain = tuple[InodeId, ...]
"""Directories with quotas that hold something, from the nearest to the farthest."""

QUOTA_BITS: Final = MAY_BE_COUNTED | HAS_QUOTA


class Usage(NamedTuple):
    """What something counts, or how much more it counts now."""

    size_bytes: int
    inodes: int

    def plus(self, other: "Usage") -> "Usage":
        return Usage(self.size_bytes + other.size_bytes, self.inodes + other.inodes)

    def minus(self, other: "Usage") -> "Usage":
        return Usage(self.size_bytes - other.size_bytes, self.inodes - other.inodes)


NOTHING: Final = Usage(0, 0)


def rounded(size_bytes: int) -> int:
    return -(-size_bytes // QUOTA_UNIT_BYTES) * QUOTA_UNIT_BYTES


def usage_of(record: InodeRecord) -> Usage:
    """Of an inode by itself."""
    return Usage(rounded(record.size_bytes) if record.kind is FileKind.REGULAR else 0, 1)


# ---- which quotas ----------------------------------------------------------------------------------------------------


def inherited(directory: InodeRecord) -> int:
    """The bit of what is made in a directory."""
    return MAY_BE_COUNTED if directory.hints & QUOTA_BITS else 0


def above(reader: Reader, directory: InodeRecord | None) -> Chain:
    """The quotas that hold what is in `directory`. No read where its record has no bit."""
    found: list[InodeId] = []
    for _ in range(DIRECTORY_DEPTH_MAX):
        if directory is None:  # fsck tells of it
            break
        if directory.hints & HAS_QUOTA:
            found.append(InodeId(directory.inode))
        if not directory.hints & MAY_BE_COUNTED:
            break
        directory = _record(reader, InodeId(directory.parent))
    return tuple(found)


def holding(reader: Reader, record: InodeRecord) -> Chain:
    """The quotas that count an inode."""
    return above(reader, _record(reader, InodeId(record.parent))) if record.hints & MAY_BE_COUNTED else ()


def _record(reader: Reader, inode: InodeId) -> InodeRecord | None:
    value = reader.get(keys.inode(inode))
    return None if value is None else records.decode_inode(inode, value)


def read(reader: Reader, chain: Chain) -> Iterator[Quota]:
    """Their records; what has none is passed over (fsck tells of it)."""
    for directory in chain:
        value = reader.get(keys.quota(directory))
        if value is not None:
            yield records.decode_quota(directory, value)


# ---- asking and counting ---------------------------------------------------------------------------------------------


def check(reader: Reader, chain: Chain, more: Usage) -> None:
    """Raises QuotaExceededError when one of them has no room for so much more. What gets less, or stays, always may."""
    for quota in read(reader, chain):
        _check(quota, more)


def _check(quota: Quota, more: Usage) -> None:
    if more.size_bytes > 0 and quota.limit_bytes and quota.used_bytes + more.size_bytes > quota.limit_bytes:
        raise _exceeded(quota, f"{format_size(more.size_bytes)} more were asked for")
    if more.inodes > 0 and quota.limit_inodes and quota.used_inodes + more.inodes > quota.limit_inodes:
        raise _exceeded(quota, f"{more.inodes:,} more {'inode was' if more.inodes == 1 else 'inodes were'} asked for")


def check_not_full(reader: Reader, chain: Chain) -> None:
    """Raises QuotaExceededError when one of them has no byte left: who opens a file to write is going to need some."""
    for quota in read(reader, chain):
        if quota.limit_bytes and quota.used_bytes >= quota.limit_bytes:
            raise _exceeded(quota, "nothing is left to write")


def _exceeded(quota: Quota, asked: str) -> QuotaExceededError:
    limits = []
    if quota.limit_bytes:
        limits.append(f"{format_size(quota.used_bytes)} of {format_size(quota.limit_bytes)} used")
    if quota.limit_inodes:
        limits.append(f"{quota.used_inodes:,} of {quota.limit_inodes:,} inodes used")
    return QuotaExceededError(f"the quota of {shown(quota.path)} has {', '.join(limits)}: {asked}")


def shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def charge(writer: Writer, chain: Chain, more: Usage, *, enforce: bool = False) -> None:
    """Count so much more (or less) in each of them. With `enforce`, raises QuotaExceededError before anything is changed."""
    if more == NOTHING:
        return
    found = list(read(writer, chain))
    if enforce:
        for quota in found:
            _check(quota, more)
    for quota in found:
        changed = quota._replace(
            used_bytes=max(0, quota.used_bytes + more.size_bytes), used_inodes=max(0, quota.used_inodes + more.inodes)
        )
        writer.put(keys.quota(quota.directory), records.encode_quota(changed))


# ---- what happens to inodes ------------------------------------------------------------------------------------------


def entered(writer: Writer, directory: InodeRecord, record: InodeRecord, *, enforce: bool) -> None:
    """A new inode got its name in `directory`; one that is going to be written to needs a byte. Raises QuotaExceededError."""
    if directory.hints & QUOTA_BITS:
        chain = above(writer, directory)
        charge(writer, chain, usage_of(record), enforce=enforce)
        if record.staged_in and enforce:
            check_not_full(writer, chain)


def resized(writer: Writer, record: InodeRecord, size_bytes: int) -> None:
    """An inode with that record has another size now. Never refused."""
    if record.hints & MAY_BE_COUNTED and size_bytes != record.size_bytes:
        more = rounded(size_bytes) - rounded(record.size_bytes)
        charge(writer, holding(writer, record), Usage(more, 0))


def check_writable(reader: Reader, record: InodeRecord) -> None:
    """Raises QuotaExceededError when nothing can be written to it."""
    if record.hints & MAY_BE_COUNTED:
        check_not_full(reader, holding(reader, record))


def left(writer: Writer, record: InodeRecord, directory: InodeId, *, last: bool) -> InodeRecord:
    """A name in `directory` is gone; the record as it is then."""
    if not record.hints & MAY_BE_COUNTED:
        return record
    if last:
        charge(writer, holding(writer, record), NOTHING.minus(usage_of(record)))
    elif record.parent == directory:
        chain = holding(writer, record)
        if chain:
            return record._replace(parent=chain[0])
    else:
        return record
    return record._replace(hints=record.hints & ~MAY_BE_COUNTED)


def deleted(writer: Writer, record: InodeRecord) -> None:
    """An inode goes, and the quota that it has."""
    if record.hints & HAS_QUOTA:
        writer.delete(keys.quota(InodeId(record.inode)))
    if record.hints & MAY_BE_COUNTED:
        charge(writer, holding(writer, record), NOTHING.minus(usage_of(record)))


def linked(writer: Writer, record: InodeRecord, directory: InodeRecord, *, across: bool) -> InodeRecord:
    """It gets another name, in `directory`; the record as it is then. Where other quotas hold, QuotaBoundaryError; or, with
    `across`, it counts from now on in those only that hold both."""
    if not record.hints & MAY_BE_COUNTED and not directory.hints & QUOTA_BITS:
        return record
    before, there = holding(writer, record), above(writer, directory)
    if before == there:
        return record
    if not across:
        raise QuotaBoundaryError("a file cannot have names below different quotas")
    both = tuple(quota for quota in before if quota in there)
    charge(writer, tuple(quota for quota in before if quota not in both), NOTHING.minus(usage_of(record)))
    if both:
        return record._replace(parent=both[0])
    return record._replace(hints=record.hints & ~MAY_BE_COUNTED)


def transfer(writer: Writer, before: Chain, after: Chain, usage: Usage, *, enforce: bool) -> None:
    """Something moves. Those that hold both places see nothing of it. Raises QuotaExceededError."""
    charge(writer, tuple(quota for quota in before if quota not in after), NOTHING.minus(usage))
    charge(writer, tuple(quota for quota in after if quota not in before), usage, enforce=enforce)


def check_grown(reader: Reader, before: Iterable[Quota]) -> None:
    """Several changes were made without asking. Raises QuotaExceededError when one that was `before` had no room for their sum."""
    for old in before:
        for new in read(reader, (old.directory,)):
            _check(old, Usage(new.used_bytes - old.used_bytes, new.used_inodes - old.used_inodes))


# ---- looking ---------------------------------------------------------------------------------------------------------


def room(reader: Reader, record: InodeRecord) -> tuple[int, Quota] | None:
    """The size that a file may have, and the quota that says so; None: there is no limit."""
    tightest = None
    for quota in read(reader, holding(reader, record)):
        if quota.limit_bytes:
            most = quota.limit_bytes - quota.used_bytes + rounded(record.size_bytes)
            if tightest is None or most < tightest[0]:
                tightest = most, quota
    return tightest


def check_size(reader: Reader, record: InodeRecord, size_bytes: int) -> int | None:
    """Raises QuotaExceededError when a file cannot grow to `size_bytes`; else how far it can (None: without limit)."""
    found = room(reader, record)
    if found is None:
        return None
    most, quota = found
    if rounded(size_bytes) > max(most, rounded(record.size_bytes)):
        raise _exceeded(quota, f"{format_size(size_bytes - record.size_bytes)} more were asked for")
    return most


def listed(reader: Reader) -> list[Quota]:
    prefix = keys.QUOTAS_PREFIX
    return [
        records.decode_quota(InodeId(keys.last_u64(key)), value)
        for key, value in reader.scan(prefix, keys.end_of(prefix))
    ]
