"""Setting, recounting, moving and taking away quotas: what looks at everything below a directory.

The walk goes by names, so what it counts is right whatever the records of files say, and it can set them right.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from tieredfs.errors import CorruptError, NotFoundError, QuotaBoundaryError
from tieredfs.format import keys, records
from tieredfs.format.records import FROZEN, HAS_QUOTA, MAY_BE_COUNTED, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import QUOTA_BATCH, QUOTA_MOVED_MAX
from tieredfs.meta import inodes, names, quotas, volumes
from tieredfs.meta.quotas import NOTHING, Usage
from tieredfs.model import FileKind, InodeId, Quota


@dataclass(slots=True)
class Walked:
    """What lies below a directory. `changed`: records that were not as they should be, as they should be; `uncounted`: what of
    `usage` had not the bit. `strays`: files with names elsewhere, too, which are in no sum."""

    usage: Usage = NOTHING
    uncounted: Usage = NOTHING
    changed: list[InodeRecord] = field(default_factory=list)
    strays: list[InodeRecord] = field(default_factory=list)

    def add(self, record: InodeRecord, parent: InodeId) -> None:
        """Something that counts; `parent`: what its record should say."""
        usage = quotas.usage_of(record)
        self.usage = self.usage.plus(usage)
        if not record.hints & MAY_BE_COUNTED:
            self.uncounted = self.uncounted.plus(usage)
        elif record.parent == parent:
            return
        self.changed.append(record._replace(parent=parent, hints=record.hints | MAY_BE_COUNTED))


def walk(reader: Reader, top: InodeId, limit: int | None = None) -> Walked:
    """About 20 us an entry. Raises QuotaBoundaryError beyond `limit` entries."""
    walked, entries = Walked(), 0
    directories, pending = {top}, [top]
    linked: dict[InodeId, int] = {}
    while pending:
        directory, after = pending.pop(), b""
        while page := names.listed(reader, directory, after, QUOTA_BATCH):
            after = page[-1].name
            entries += len(page)
            if limit is not None and entries > limit:
                raise QuotaBoundaryError(f"a directory with more than {limit} entries cannot move between quotas")
            values = reader.get_many([keys.inode(entry.inode) for entry in page])
            for entry, value in zip(page, values, strict=True):
                if value is None:
                    continue  # fsck tells of it
                record = records.decode_inode(entry.inode, value)
                if record.hints & FROZEN:
                    continue
                if record.kind is FileKind.DIRECTORY:
                    directories.add(entry.inode)
                    pending.append(entry.inode)
                if record.kind is FileKind.DIRECTORY or record.link_count == 1:
                    walked.add(record, directory)
                else:
                    linked[entry.inode] = linked.get(entry.inode, 0) + 1
    for inode, count in linked.items():
        _add_linked(walked, inodes.read(reader, inode), count, top, directories)
    return walked


def _add_linked(walked: Walked, record: InodeRecord, count: int, top: InodeId, directories: set[InodeId]) -> None:
    """A file with several names, `count` of them below `top`. Where its record knows a quota further below that holds all of
    them, it is right; else they have `top` in common."""
    if count < record.link_count:
        walked.strays.append(record)
        return
    known = record.hints & MAY_BE_COUNTED and record.parent in directories
    walked.add(record, InodeId(record.parent) if known else top)


def _save(writer: Writer, walked: Walked) -> None:
    for record in walked.changed:
        inodes.save(writer, record)


# ---- setting and taking away -----------------------------------------------------------------------------------------


def prepare(writer: Writer, directory: InodeId, after: bytes) -> tuple[list[InodeId], bytes | None]:
    """Give the entries of a directory after a name the bit, `QUOTA_BATCH` of them, so that setting a quota has little to write:
    its directories, and the name to go on after. Nothing where a quota holds them: they have it."""
    record = inodes.find(writer, directory)
    if record is None or record.kind is not FileKind.DIRECTORY or quotas.above(writer, record):
        return [], None
    page = names.listed(writer, directory, after, QUOTA_BATCH)
    for value, entry in zip(writer.get_many([keys.inode(one.inode) for one in page]), page, strict=True):
        if value is None:
            continue
        child = records.decode_inode(entry.inode, value)
        if child.hints & FROZEN:
            continue
        alone = child.kind is FileKind.DIRECTORY or child.link_count == 1
        if alone and (not child.hints & MAY_BE_COUNTED or child.parent != directory):
            inodes.save(writer, child._replace(parent=directory, hints=child.hints | MAY_BE_COUNTED))
    below = [entry.inode for entry in page if entry.kind is FileKind.DIRECTORY]  # below a frozen one, everything is
    return below, page[-1].name if len(page) == QUOTA_BATCH else None


def put(
    writer: Writer, directory: InodeId, path: bytes, limit_bytes: int | None, limit_inodes: int | None, *, recount: bool
) -> Quota:
    """Set limits (None: as it is, or none), and count where there was no quota, or with `recount`. Raises NotFoundError,
    NotDirectoryError. From then on versions of this program that know no quotas refuse the volume."""
    record = inodes.read_directory(writer, directory)
    inodes.refuse_frozen(record)
    before = next(quotas.read(writer, (directory,)), None)
    if before is None or recount:
        usage = _count_afresh(writer, record)
    else:
        usage = Usage(before.used_bytes, before.used_inodes)
    kept_bytes, kept_inodes = (0, 0) if before is None else (before.limit_bytes, before.limit_inodes)
    quota = Quota(
        directory,
        path,
        kept_bytes if limit_bytes is None else limit_bytes,
        kept_inodes if limit_inodes is None else limit_inodes,
        usage.size_bytes,
        usage.inodes,
    )
    writer.put(keys.quota(directory), records.encode_quota(quota))
    if not record.hints & HAS_QUOTA:
        inodes.save(writer, record._replace(hints=record.hints | HAS_QUOTA))
    config = volumes.config(writer)
    if config.format_version < volumes.QUOTAS_VERSION:
        writer.put(keys.VOLUME, records.encode_volume(replace(config, format_version=volumes.QUOTAS_VERSION)))
    return quota


def _count_afresh(writer: Writer, directory: InodeRecord) -> Usage:
    walked = walk(writer, InodeId(directory.inode))
    _save(writer, walked)
    chain = quotas.holding(writer, directory)
    quotas.charge(writer, chain, walked.uncounted)
    for stray in walked.strays:
        _count_stray(writer, stray, InodeId(directory.inode), chain)
    return walked.usage


def _count_stray(writer: Writer, stray: InodeRecord, directory: InodeId, chain: quotas.Chain) -> None:
    """A file with names on both sides counts above, if anywhere: its record may not lead through `directory` any more."""
    if not stray.hints & MAY_BE_COUNTED or not _lies_below(writer, InodeId(stray.parent), directory):
        return
    if chain:
        inodes.save(writer, stray._replace(parent=chain[0]))
    else:
        inodes.save(writer, stray._replace(hints=stray.hints & ~MAY_BE_COUNTED))


def _lies_below(reader: Reader, inode: InodeId, top: InodeId) -> bool:
    return top in names.ancestry(reader, inode)


def delete(writer: Writer, directory: InodeId, path: bytes) -> Quota:
    """A damaged record, too. Raises NotFoundError when it has none."""
    try:
        quota = next(quotas.read(writer, (directory,)), None)
    except CorruptError:
        quota = Quota(directory, path, 0, 0, 0, 0)
    if quota is None:
        raise NotFoundError(f"{quotas.shown(path)} has no quota: `tieredfs quota set META_URL --path` sets one")
    writer.delete(keys.quota(directory))
    record = inodes.find(writer, directory)
    if record is not None:
        inodes.save(writer, record._replace(hints=record.hints & ~HAS_QUOTA))
    return quota


def end_temporary(writer: Writer, directory: InodeId) -> None:
    """Take away a quota that was only there to know what moves; no other."""
    record = inodes.find(writer, directory)
    if record is not None and _is_temporary(writer, record):
        delete(writer, directory, b"")


def path_of(reader: Reader, directory: InodeId) -> bytes:
    """Reads all names of the directories above; ends where the tree is broken."""
    parts: list[bytes] = []
    lineage = list(names.ancestry(reader, directory))
    for child, parent in pairwise(lineage):
        prefix = keys.names(parent)
        for key, value in reader.scan(prefix, keys.end_of(prefix)):
            if records.decode_entry(b"", value).inode == child:
                parts.append(keys.text_after_u64(key))
                break
    return b"/" + b"/".join(reversed(parts))


# ---- moving ----------------------------------------------------------------------------------------------------------


def moved(writer: Writer, record: InodeRecord, old: InodeId, new: InodeRecord, *, enforce: bool = True) -> InodeRecord:
    """What is named in `old` is named in `new` instead; the record as it is then, for the caller to save.

    Raises QuotaExceededError; QuotaBoundaryError for what cannot move in one step to where other quotas hold: a file with other
    names, and a directory that has neither a quota of its own nor few entries.
    """
    is_directory = record.kind is FileKind.DIRECTORY
    if not (record.hints | new.hints) & quotas.QUOTA_BITS:
        return record._replace(parent=new.inode) if is_directory else record
    if old == new.inode:
        return record
    before, after = quotas.holding(writer, record), quotas.above(writer, new)
    alone = is_directory or record.link_count == 1
    if before != after:
        if not alone:
            raise QuotaBoundaryError("a file with several names cannot move between quotas")
        quotas.transfer(writer, before, after, _moving(writer, record), enforce=enforce)
    if not alone and not after:
        return record._replace(hints=record.hints & ~MAY_BE_COUNTED)
    if not alone:
        return record._replace(parent=new.inode) if record.parent == old else record
    hints = record.hints | quotas.inherited(new)
    if is_directory and _is_temporary(writer, record):
        writer.delete(keys.quota(InodeId(record.inode)))
        hints &= ~HAS_QUOTA
    return record._replace(parent=new.inode, hints=hints)


def _is_temporary(reader: Reader, record: InodeRecord) -> bool:
    """A quota that was only there to know what moves (`QuotaMethods.count_what_moves`) ends when it has."""
    return record.hints & HAS_QUOTA != 0 and any(
        not quota.path for quota in quotas.read(reader, (InodeId(record.inode),))
    )


def _moving(writer: Writer, record: InodeRecord) -> Usage:
    itself = quotas.usage_of(record)
    if record.kind is not FileKind.DIRECTORY:
        return itself
    for quota in quotas.read(writer, (InodeId(record.inode),)):
        return itself.plus(Usage(quota.used_bytes, quota.used_inodes))
    walked = walk(writer, InodeId(record.inode), QUOTA_MOVED_MAX)
    if walked.strays:
        raise QuotaBoundaryError("a directory cannot move between quotas while files in it have names elsewhere")
    _save(writer, walked)
    return itself.plus(walked.usage)
