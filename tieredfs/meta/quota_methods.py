"""`QuotaMethods`: the part of `Metadata` that sets, tells, recounts and asks for quotas."""

from typing import Final, NamedTuple

from tieredfs.errors import NotDirectoryError, NotFoundError
from tieredfs.host import Clock
from tieredfs.kv.engine import Engine, Reader, Writer
from tieredfs.meta import inodes, names, quota_walks, quotas, volumes
from tieredfs.meta.block_maps import BlockMaps
from tieredfs.model import FileKind, InodeId, Quota

LOOK_AGAIN_S: Final = 1.0


class QuotaCheck(NamedTuple):
    """A quota as its record is, and what a walk counts."""

    quota: Quota
    used_bytes: int
    used_inodes: int

    @property
    def right(self) -> bool:
        return (self.quota.used_bytes, self.quota.used_inodes) == (self.used_bytes, self.used_inodes)


class QuotaMethods(BlockMaps):
    """Over one engine. Safe from any thread. Paths are from the root of the volume, which is `/`."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__(engine, clock)
        self._quotas_known = False
        self._quotas_next_look_s = float("-inf")

    def set_quota(self, path: bytes, limit_bytes: int | None, limit_inodes: int | None) -> Quota:
        """Of a directory; None leaves a limit as it is, or sets none, and 0 takes it away. Raises NotFoundError, NotDirectoryError.

        Where there was none, everything below is counted in one transaction, at about 20 us an entry, in which others wait to
        write; before that, in several, it is made ready to be counted."""
        assert (limit_bytes or 0) >= 0
        assert (limit_inodes or 0) >= 0
        directory = self._engine.read(lambda reader: _directory(reader, path))
        self._prepare(directory)
        name = _normal(path)
        return self._write(
            lambda writer: quota_walks.put(writer, directory, name, limit_bytes, limit_inodes, recount=False)
        )

    def _prepare(self, directory: InodeId) -> None:
        pending: list[tuple[InodeId, bytes]] = [(directory, b"")]

        def batch(writer: Writer) -> tuple[list[InodeId], bytes | None]:
            return quota_walks.prepare(writer, current, after)

        while pending:
            current, after = pending.pop()
            below, last = self._write(batch)
            pending += [(child, b"") for child in below]
            if last is not None:
                pending.append((current, last))

    def count_what_moves(self, directory: InodeId) -> None:
        """A quota without limits and without a path, until the directory is moved: what is in it is counted, so it can move in one
        step to where a quota holds. Of one that is not empty as `set_quota`."""
        self._prepare(directory)
        self._write(lambda writer: quota_walks.put(writer, directory, b"", None, None, recount=False))

    def count_no_longer(self, directory: InodeId) -> None:
        """It did not move. Nothing, if it did or is gone."""
        self._write(lambda writer: quota_walks.end_temporary(writer, directory))

    def give_quota(self, directory: InodeId, like: Quota) -> None:
        """The limits and the path of another directory's, whose place it is going to take."""
        limits = like.limit_bytes, like.limit_inodes
        self._write(lambda writer: quota_walks.put(writer, directory, like.path, *limits, recount=False))

    def quota(self, path: bytes) -> Quota:
        """Raises NotFoundError where there is none, NotDirectoryError."""
        return self._engine.read(lambda reader: _quota(reader, path))

    def quotas(self) -> list[Quota]:
        """All, by path as it is now, but those of `count_what_moves`."""

        def look(reader: Reader) -> list[Quota]:
            return [quota._replace(path=_path_now(reader, quota)) for quota in quotas.listed(reader) if quota.path]

        return sorted(self._engine.read(look), key=lambda quota: quota.path)

    def delete_quota(self, path: bytes) -> Quota:
        """As it was; of a damaged one, what is known. Raises NotFoundError."""
        return self._write(lambda writer: quota_walks.delete(writer, _directory(writer, path), _normal(path)))

    def check_quota(self, path: bytes, *, repair: bool) -> QuotaCheck:
        """What its record says, and what a walk counts, in one snapshot; with `repair`, the record is what was counted."""

        def look(reader: Reader) -> QuotaCheck:
            quota = _quota(reader, path)
            usage = quota_walks.walk(reader, quota.directory).usage
            return QuotaCheck(quota, *usage)

        def mend(writer: Writer) -> QuotaCheck:
            before = _quota(writer, path)
            after = quota_walks.put(writer, before.directory, before.path, None, None, recount=True)
            return QuotaCheck(before, after.used_bytes, after.used_inodes)

        return self._write(mend) if repair else self._engine.read(look)

    # ---- what drivers and front ends ask ----------------------------------------------------------------------------

    def check_size(self, inode: InodeId, size_bytes: int) -> int | None:
        """Raises QuotaExceededError when a file cannot grow to `size_bytes`; else up to which size it can now (None: no limit)."""
        if not self._may_have_quotas():
            return None
        return self._engine.read(lambda reader: _check_size(reader, inode, size_bytes))

    def _may_have_quotas(self) -> bool:
        """Looked up once in `LOOK_AGAIN_S` until a quota was set: every file that is written through a daemon asks."""
        if not self._quotas_known and self._clock.monotonic_s() >= self._quotas_next_look_s:
            config = self._engine.read(volumes.config)
            self._quotas_known = config.format_version >= volumes.QUOTAS_VERSION
            self._quotas_next_look_s = self._clock.monotonic_s() + LOOK_AGAIN_S
        return self._quotas_known

    def quotas_over(self, inode: InodeId) -> list[Quota]:
        """Those that hold an inode, and that of a directory itself, from the nearest to the farthest."""

        def look(reader: Reader) -> list[Quota]:
            record = inodes.read(reader, inode)
            is_directory = record.kind is FileKind.DIRECTORY
            chain = quotas.above(reader, record) if is_directory else quotas.holding(reader, record)
            return list(quotas.read(reader, chain))

        return self._engine.read(look)


def _check_size(reader: Reader, inode: InodeId, size_bytes: int) -> int | None:
    record = inodes.find(reader, inode)
    return None if record is None else quotas.check_size(reader, record, size_bytes)


def _normal(path: bytes) -> bytes:
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in {b"", b"."})


def _directory(reader: Reader, path: bytes) -> InodeId:
    record = names.resolve(reader, path)
    if record.kind is not FileKind.DIRECTORY:
        raise NotDirectoryError(f"{quotas.shown(_normal(path))} is not a directory: a quota is one's, with all below")
    return InodeId(record.inode)


def _quota(reader: Reader, path: bytes) -> Quota:
    found = next(quotas.read(reader, (_directory(reader, path),)), None)
    if found is None:
        raise NotFoundError(
            f"{quotas.shown(_normal(path))} has no quota: `tieredfs quota set META_URL --path` sets one"
        )
    return found


def _path_now(reader: Reader, quota: Quota) -> bytes:
    """As it was set, if that still leads there; else it is looked for in the names of the directories above."""
    try:
        if names.resolve(reader, quota.path).inode == quota.directory:
            return quota.path
    except (NotFoundError, NotDirectoryError):
        pass
    return quota_walks.path_of(reader, quota.directory)
