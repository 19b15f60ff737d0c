"""`Metadata`: every change of the namespace, of file contents and of the block maps, each one transaction.

A facade: what a change does is in the layers (`names`, `renames`, `files`, `blocks`, `sessions`, `volumes`),
functions over a `Reader` or `Writer`, so that several compose in one transaction. Here is only which of them make
one, and what is taken before it begins: the time, ids, and checks that need no state.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from tieredfs.errors import NotFoundError, TieredError
from tieredfs.format import keys
from tieredfs.format.keys import Counter
from tieredfs.host import Clock
from tieredfs.kv.engine import Engine, Reader, Writer
from tieredfs.meta import allocation, feed, files, inodes, names, placing, renames, sessions, volumes
from tieredfs.meta.allocation import IdRange
from tieredfs.meta.changes import Content, Creation, Placement, Receipt, Removed
from tieredfs.meta.looks import Looks
from tieredfs.meta.quota_methods import QuotaMethods
from tieredfs.model import (
    NOBODY,
    AttributeChange,
    Attributes,
    Block,
    CacheId,
    CacheRecord,
    Code,
    Disk,
    Entry,
    Extent,
    FileKind,
    InodeId,
    Peer,
    Place,
    Session,
    SessionId,
    StagedRecord,
    StoredContent,
    VolumeConfig,
)

__all__ = ["Content", "Creation", "Metadata", "Placement", "Receipt", "Removed", "format_volume"]

CODE_CACHED_S: Final = 1.0

T = TypeVar("T")


def format_volume(engine: Engine, config: VolumeConfig, disks: Sequence[Disk], uid: int = 0, gid: int = 0) -> None:
    """Write the volume record, the disks and the root directory, which is `uid`'s. Raises VolumeExistsError."""
    engine.write(lambda writer: volumes.format_volume(writer, config, disks, uid, gid))


class Metadata(QuotaMethods):
    """The three layers over one engine. Safe from any thread; every method is one transaction unless it says otherwise.

    Names are checked here (NameTooLongError; InvalidRequestError for an empty name, `.`, `..`, or one with `/` or NUL).
    Directory changes update the directory's mtime and ctime, and link counts of directories count subdirectories.
    `receipt` is stored in the same transaction.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__(engine, clock)
        self._inode_ids = IdRange(self._take_ids, Counter.INODE)
        self._known_caches: set[CacheId] = set()
        self._code: tuple[float, Code] | None = None
        self._deleted_lock = threading.Lock()
        self._deleted = 0
        self._looks = Looks(engine)
        self._audience = feed.Audience()
        self._origin = NOBODY
        self._feed_position = 0

    def config(self) -> VolumeConfig:
        """Raises VolumeNotFoundError, NewerFormatError."""
        return self._engine.read(volumes.config)

    def set_config(self, config: VolumeConfig) -> None:
        """Replace the settings that may change (name, code, durability, block size): they act on what is written from
        now on.
        """
        self._write(lambda writer: volumes.set_config(writer, config))

    def sync(self) -> None:
        """`Engine.sync`."""
        self._engine.sync()

    # ---- names ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        """Raises NotFoundError, NotDirectoryError."""
        return self._looks.lookup(parent, name)

    def resolve(self, path: bytes) -> Attributes:
        """Walk `path` from the root, symlinks not followed. Raises NotFoundError, NotDirectoryError."""
        return self._engine.read(lambda reader: names.resolve(reader, path)).attributes()

    def look(self, paths: Sequence[bytes], xattrs: Sequence[bytes] = ()) -> list[names.Shown | None]:
        """What each path shows, with its value of each of `xattrs`, in one snapshot. None: nothing."""
        return self._looks.look(paths, xattrs)

    def list_directory(self, directory: InodeId, after: bytes, limit: int) -> list[Entry]:
        """Entries with a name greater than `after` in byte order, without `.` and `..`."""
        return self._engine.read(lambda reader: names.listed(reader, directory, after, limit))

    def list_directory_plus(self, directory: InodeId, after: bytes, limit: int) -> list[tuple[Entry, Attributes]]:
        """`list_directory` with attributes, in the same snapshot."""
        return self._engine.read(lambda reader: names.listed_with_attributes(reader, directory, after, limit))

    def create(self, parent: InodeId, name: bytes, creation: Creation, receipt: Receipt | None = None) -> Attributes:
        """Raises AlreadyExistsError, NotFoundError (parent removed), NotDirectoryError, NameTooLongError.

        With `staged_in`, the inode starts at version 1 staged there, with a staged record; otherwise a regular file
        starts empty and stored (version 0). A set-gid parent gives its gid, and the bit to subdirectories.
        """
        names.check_name(name)
        names.check_creation(creation)
        if creation.staged_in:
            self._check_cache(creation.staged_in)
        inode = InodeId(self._inode_ids.take())
        now_ns = self._clock.wall_ns()

        def change(writer: Writer) -> Attributes:
            record = names.create(writer, parent, name, inode, creation, now_ns=now_ns)
            sessions.leave_receipt(writer, receipt)
            return record.attributes()

        try:
            return self._write(change)
        except TieredError:
            self._count_deleted(1)  # the id is used up all the same
            raise

    def create_unnamed(
        self, creation: Creation, holder: SessionId, extents: Sequence[Extent] = (), size_bytes: int = 0
    ) -> Attributes:
        """A regular file without a name, an orphan of `holder` until `place`. With `extents`, its content is those bytes of
        blocks that other files refer to. Raises ConflictError when one of them is being deleted."""
        names.check_creation(creation)
        if creation.staged_in:
            self._check_cache(creation.staged_in)
        inode = InodeId(self._inode_ids.take())
        now_ns = self._clock.wall_ns()
        return self._write(
            lambda writer: placing.create_unnamed(writer, inode, creation, holder, extents, size_bytes, now_ns)
        ).attributes()

    def place(
        self, placement: Placement, holder: SessionId, condition: placing.Condition | None = None
    ) -> tuple[Attributes, Removed | None]:
        """Give an unnamed file its name, mode and attributes; with what it replaced, an orphan of `holder` if that was its
        last name. `condition` is called in the transaction with what the name shows (None: nothing), and raises to
        leave everything as it is; it may be called more than once.

        Raises AlreadyExistsError (`replace` False), IsDirectoryError, ConflictError (`absent` is there), NotFoundError (not an
        unnamed file of `holder`).
        """
        names.check_name(placement.name)
        now_ns = self._clock.wall_ns()
        record, removed = self._write(lambda writer: placing.place(writer, placement, holder, condition, now_ns))
        return record.attributes(), removed

    def new_inode_id(self) -> InodeId:
        """For `create_placed`; never given again."""
        return InodeId(self._inode_ids.take())

    def create_placed(
        self, several: Sequence[placing.Wanted], creation: Creation, holder: SessionId, in_use: placing.InUse
    ) -> list[tuple[Attributes, Removed | None] | TieredError]:
        """`create_unnamed`, `publish` and `place` in one, of several files in one transaction: for contents that are whole in the
        cache `staged_in`, under version 1 of inodes of `new_inode_id`. Of each, what came of it, or what `place` would raise.

        What they replace is an orphan of `holder` where that has it `in_use`, which is asked in the transaction, perhaps more than
        once; else it may be deleted at once."""
        self._check_cache(creation.staged_in)
        now_ns = self._clock.wall_ns()
        made = self._write(lambda writer: placing.create_placed(writer, several, creation, holder, in_use, now_ns))
        placed = [found for found in made if not isinstance(found, TieredError)]
        self._count_deleted(sum(removed.deleted for _, removed in placed if removed is not None))
        return [found if isinstance(found, TieredError) else (found[0].attributes(), found[1]) for found in made]

    def link(
        self, inode: InodeId, parent: InodeId, name: bytes, receipt: Receipt | None = None, *, across: bool = False
    ) -> Attributes:
        """Raises NotPermittedError for a directory, TooManyLinksError, AlreadyExistsError; QuotaBoundaryError, unless `across`:
        then it counts in the quotas that hold all of its names."""
        names.check_name(name)
        now_ns = self._clock.wall_ns()

        def change(writer: Writer) -> Attributes:
            record = names.link(writer, inode, parent, name, now_ns, across=across)
            sessions.leave_receipt(writer, receipt)
            return record.attributes()

        return self._write(change)

    def unlink(
        self,
        parent: InodeId,
        name: bytes,
        holder: SessionId,
        receipt: Receipt | None = None,
        *,
        expected_target: InodeId | None = None,
    ) -> Removed:
        """Remove a name that is not a directory's (IsDirectoryError).

        At the last link: with a `holder` (somebody in that session has it open) the inode becomes an orphan of that
        session; without, it is deleted and its blocks released. `expected_target`: as for `rename`.
        """
        names.check_name(name)
        now_ns = self._clock.wall_ns()

        def change(writer: Writer) -> Removed:
            removed = names.unlink(writer, parent, name, holder, expected_target, now_ns=now_ns)
            sessions.leave_receipt(writer, receipt)
            return removed

        removed = self._write(change)
        self._count_deleted(int(removed.gone and not holder))
        return removed

    def remove_directory(
        self, parent: InodeId, name: bytes, receipt: Receipt | None = None, *, spare_limited: bool = False
    ) -> Removed:
        """Raises NotDirectoryError, DirectoryNotEmptyError; with `spare_limited` BusyError for one that has a quota."""
        names.check_name(name)
        now_ns = self._clock.wall_ns()

        def change(writer: Writer) -> Removed:
            removed = names.remove_directory(writer, parent, name, now_ns, spare_limited=spare_limited)
            sessions.leave_receipt(writer, receipt)
            return removed

        removed = self._write(change)
        self._count_deleted(1)
        return removed

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        *,
        replace: bool = True,
        exchange: bool = False,
        holder: SessionId = NOBODY,
        expected_target: InodeId | None = None,
        beside: bytes = b"",
        receipt: Receipt | None = None,
    ) -> Removed | None:
        """Atomic, across directories too; returns what the target name showed before, if another inode.

        Both names of one inode: nothing happens. `expected_target`: the inode that the caller believes is being
        replaced and for which `holder` was chosen (0: none); another one raises ConflictError, so that an open file
        is never deleted by a race. `beside`: a name that `parent` must have, too, or ConflictError. Raises
        InvalidRequestError (a directory below itself), AlreadyExistsError (replace=False), DirectoryNotEmptyError,
        IsDirectoryError, NotDirectoryError.
        """
        names.check_name(name)
        names.check_name(new_name)
        asked = renames.Rename(parent, name, new_parent, new_name, replace, exchange, holder, expected_target, beside)
        now_ns = self._clock.wall_ns()

        def change(writer: Writer) -> Removed | None:
            removed = renames.rename(writer, asked, now_ns)
            sessions.leave_receipt(writer, receipt)
            return removed

        removed = self._write(change)
        if removed is not None and removed.gone:
            self._count_deleted(int(not holder or removed.kind is FileKind.DIRECTORY))
        return removed

    def carried_out(self, mount: int, unique: int) -> bool:
        """Whether a receipt of request `unique` exists in any slot of `mount`."""
        return self._engine.read(lambda reader: sessions.carried_out(reader, mount, unique))

    def forget_receipts(self, mount: int) -> None:
        self._write(lambda writer: sessions.forget_receipts(writer, mount))

    # ---- files ------------------------------------------------------------------------------------------------------

    def attributes(self, inode: InodeId) -> Attributes:
        """Orphans too. Raises NotFoundError."""
        return self._looks.attributes(inode)

    def versions(self, wanted: Sequence[InodeId]) -> dict[InodeId, int]:
        """The version of each inode that exists, in one snapshot."""
        return self._engine.read(lambda reader: inodes.versions(reader, wanted))

    def set_attributes(self, inode: InodeId, change: AttributeChange) -> Attributes:
        """Sets ctime to now."""
        now_ns = self._clock.wall_ns()
        return self._write(lambda writer: files.set_attributes(writer, inode, change, now_ns)).attributes()

    def read_link(self, inode: InodeId) -> bytes:
        """Raises InvalidRequestError when it is not a symlink."""
        return self._engine.read(lambda reader: files.read_link(reader, inode))

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        files.check_xattr_name(name)
        return self._engine.read(lambda reader: files.get_xattr(reader, inode, name))

    def xattrs_of(self, wanted: Sequence[InodeId], name: bytes) -> dict[InodeId, bytes]:
        """One attribute of many inodes, in one snapshot; those that have it."""
        files.check_xattr_name(name)
        return self._engine.read(lambda reader: files.xattrs_of(reader, wanted, name))

    def set_xattr(
        self, inode: InodeId, name: bytes, value: bytes, *, create: bool = False, replace: bool = False
    ) -> None:
        files.check_xattr_name(name)
        now_ns = self._clock.wall_ns()
        self._write(
            lambda writer: files.set_xattr(writer, inode, name, value, create=create, replace=replace, now_ns=now_ns)
        )

    def list_xattrs(self, inode: InodeId) -> list[bytes]:
        return self._engine.read(lambda reader: files.list_xattrs(reader, inode))

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        files.check_xattr_name(name)
        now_ns = self._clock.wall_ns()
        self._write(lambda writer: files.remove_xattr(writer, inode, name, now_ns))

    def begin_write(self, inode: InodeId, cache: CacheId, *, truncate: bool, admitted: bool = False) -> Attributes:
        """Mark the content as staged in `cache`, at the next version.

        Raises BusyError when another cache has it staged, NotFoundError when `cache` is not registered. Already
        staged in this cache: the version rises all the same. `truncate` sets the size to 0. Raises QuotaExceededError where a
        quota is full, unless `admitted`: nothing is going to be added.
        """
        self._check_cache(cache)
        now_ns = self._clock.wall_ns()
        record = self._write(
            lambda writer: files.begin_write(writer, inode, cache, truncate=truncate, now_ns=now_ns, admitted=admitted)
        )
        return record.attributes()

    def publish(
        self, inode: InodeId, version: int, size_bytes: int, mtime_ns: int, allocated_bytes: int | None = None
    ) -> None:
        """Size and mtime of a staged content, as of now (ctime becomes the later of itself and mtime). Silently
        nothing if `version` is no longer the inode's or the inode is gone. `allocated_bytes` None: no holes."""
        allocated = size_bytes if allocated_bytes is None else allocated_bytes
        self._write(lambda writer: files.publish(writer, inode, version, size_bytes, mtime_ns, allocated))

    def abandon_write(self, inode: InodeId, version: int) -> None:
        """The staged content `version` is the same as the stored one, or lost: the extents are the content again.

        The size becomes that of the stored content, and stored_version `version`. Silently nothing if `version` is not
        the inode's, or nothing is staged.
        """
        self._write(lambda writer: files.abandon_write(writer, inode, version))

    def extents(self, inode: InodeId) -> list[Extent]:
        """The stored content, in order of offset."""
        return self._engine.read(lambda reader: inodes.extents(reader, inode))

    def commit_stored(self, contents: Sequence[StoredContent], blocks: Sequence[Block]) -> set[InodeId]:
        """The drain's commit: record `blocks` (removing their intents), and replace each file's extents by the new
        ones.

        A file whose version is no longer `content.version`, or that is gone, is left alone; the inodes that took
        their content are returned. With `complete`, the staged mark is cleared and stored_version is version. Blocks
        that no file references afterwards (old ones, or new ones that nobody took) become dead. Raises ConflictError,
        and nothing is changed, when a new block's reservation is gone or an extent points to a block that does not
        exist: their chunks may be deleted, and the caller must write the content again.
        """
        now_ns = self._clock.wall_ns()
        return self._write(lambda writer: files.commit_stored(writer, contents, blocks, now_ns))

    def staged(self, cache: CacheId | None = None) -> list[StagedRecord]:
        """What is on SSDs only, oldest first; of one cache or of all. Contents of orphans too: they are still open."""
        if cache is not None:
            return self._engine.read(lambda reader: files.staged(reader, [cache]))
        return self._engine.read(
            lambda reader: files.staged(reader, [known.cache for known in sessions.caches(reader)])
        )

    def staged_as(self, cache: CacheId, inode: InodeId) -> StagedRecord | None:
        """How a content is staged in that cache; None: it is not."""
        return self._engine.read(lambda reader: files.staged_as(reader, cache, inode))

    def staged_sizes(self, cache: CacheId, wanted: Sequence[InodeId]) -> dict[InodeId, tuple[int, int]]:
        """Version and size in bytes of each inode whose own record says that its newest content is in `cache`, listed or not."""
        return self._engine.read(lambda reader: files.staged_sizes(reader, cache, wanted))

    def list_staged(self, cache: CacheId, places: Mapping[InodeId, Place | None]) -> None:
        """Make the staged records anew of contents that were found in `cache`: in a local file (None), or at a place. Those
        whose own records say something else are left alone."""
        now_ns = self._clock.wall_ns()
        self._write(lambda writer: files.list_staged(writer, cache, places, now_ns))

    # ---- orphans and sessions ----------------------------------------------------------------------------------------

    def reclaim_orphan(self, inode: InodeId, holder: SessionId) -> None:
        """Delete an open-but-unlinked inode at its last release. Nothing if it is no orphan of `holder`."""
        now_ns = self._clock.wall_ns()
        reclaimed = self._write(lambda writer: sessions.reclaim_orphan(writer, inode, holder, now_ns))
        self._count_deleted(int(reclaimed))

    def reclaim_orphans(self, wanted: Sequence[InodeId], holder: SessionId) -> None:
        """`reclaim_orphan` of many, in one transaction."""
        now_ns = self._clock.wall_ns()
        reclaimed = self._write(
            lambda writer: sum(sessions.reclaim_orphan(writer, inode, holder, now_ns) for inode in wanted)
        )
        self._count_deleted(reclaimed)

    def orphans(self) -> list[tuple[SessionId, InodeId]]:
        return self._engine.read(sessions.orphans)

    def open_session(self, host: str, process: int, purpose: str) -> Session:
        now_ns = self._clock.wall_ns()
        return self._write(lambda writer: sessions.open_session(writer, host, process, purpose, now_ns))

    def heartbeat(self, session: SessionId) -> None:
        """Raises NotFoundError when the session was ended (this process was taken for dead)."""
        now_ns = self._clock.wall_ns()
        self._write(lambda writer: sessions.heartbeat(writer, session, now_ns))
        self._record_deleted()

    def revive_session(self, session: SessionId, host: str, process: int, purpose: str) -> None:
        """After `heartbeat` raised: this process lives, and what it held is gone. It follows again what it followed."""
        now_ns = self._clock.wall_ns()
        revived = Session(session, host, process, purpose, now_ns, now_ns)
        self._write(lambda writer: sessions.revive(writer, revived, follows=self._origin == session))

    def end_session(self, session: SessionId, heartbeat_ns: int | None = None) -> list[InodeId]:
        """Delete the session, its orphans (returned) and its block intents. Also how a dead one is reclaimed: ConflictError
        if `heartbeat_ns` is not its last heartbeat (`NEVER_NS`: if it exists)."""
        now_ns = self._clock.wall_ns()
        reclaimed = self._write(lambda writer: sessions.end(writer, session, now_ns, heartbeat_ns))
        self._count_deleted(len(reclaimed))
        self._record_deleted()
        return reclaimed

    def sessions(self) -> list[Session]:
        return self._engine.read(sessions.listed)

    def announce_peer(self, session: SessionId, address: str) -> None:
        """From now on `peers` names it, until the session ends. Raises NotFoundError when it was ended."""
        self._write(lambda writer: sessions.announce_peer(writer, session, address))

    def peers(self) -> list[Peer]:
        """Who serves what is staged on its host; some may have died."""
        return self._engine.read(sessions.peers)

    def register_cache(self, uuid: str, host: str, path: str) -> CacheRecord:
        """The record of that uuid, made or updated."""
        return self._write(lambda writer: sessions.register_cache(writer, uuid, host, path))

    def caches(self) -> list[CacheRecord]:
        return self._engine.read(sessions.caches)

    def forget_cache(self, cache: CacheId) -> None:
        """Raises BusyError while something is staged there."""
        self._write(lambda writer: sessions.forget_cache(writer, cache))
        self._known_caches.discard(cache)

    # ---- totals ------------------------------------------------------------------------------------------------------

    def count_inodes(self) -> int:
        """Estimate allowed; cheap."""
        handed_out, deleted = self._engine.read(
            lambda reader: (
                allocation.value(reader, Counter.INODE) - 1,
                allocation.value(reader, Counter.INODES_DELETED),
            )
        )
        return max(1, handed_out - self._inode_ids.unused() - deleted - self._deleted)

    def code(self) -> Code:
        """`config().code`, cached for a second."""
        now_s = self._clock.monotonic_s()
        cached = self._code
        if cached is None or now_s - cached[0] >= CODE_CACHED_S:
            cached = self._code = (now_s, self.config().code)
        return cached[1]

    # ---- the records themselves ---------------------------------------------------------------------------------

    def inspect(self, function: Callable[[Reader], T]) -> T:
        """`Engine.read`, for the curator, which checks what all the methods above promise."""
        return self._engine.read(function)

    def amend(self, function: Callable[[Writer], T]) -> T:
        """`Engine.write`, for the curator, which restores what follows from other records and does not."""
        return self._write(function)

    # ---- what others change ----------------------------------------------------------------------------------------

    def follow(self, session: SessionId) -> None:
        """From now on, `changes` tells what others change.

        It begins with all that is kept: this may be the successor of a process that did not ask for the latest."""
        self._origin = session
        self._engine.write(lambda writer: feed.follow(writer, session))

    @property
    def stamp(self) -> Callable[[], bytes] | None:
        """`kv.engine.Stamped.stamp`; None: this engine cannot tell whether it is time to ask for changes."""
        return self._looks.stamp

    def changes(self) -> feed.Change:
        """What other processes changed since the last call. One thread calls it."""
        found, self._feed_position = self._engine.read(
            lambda reader: feed.changes(reader, self._feed_position, self._origin)
        )
        return found

    def _write(self, function: Callable[[Writer], T]) -> T:
        """`Engine.write`, with what it changed appended to the feed, and remembered here as it is now."""
        before, followers = b"", list[int]()
        recorder: feed.Recorder | None = None

        def recorded(writer: Writer) -> T:
            nonlocal before, followers, recorder
            before, recorder = self._looks.at(), feed.Recorder(writer)
            result = function(recorder)
            followers = self._audience.at(writer, b"" if recorder.audience_changed else before)
            if recorder.written:
                feed.append(writer, self._origin, followers, list(recorder.written))
            return result

        result = self._engine.write(recorded)
        assert recorder is not None
        after = self._looks.committed(before, recorder.written)
        if after and not recorder.audience_changed:
            self._audience.carry(after, followers)
        return result

    # ---- what is kept in memory ---------------------------------------------------------------------------------

    def _check_cache(self, cache: CacheId) -> None:
        """Raises NotFoundError unless `cache` is registered: `staged` could not find what is staged in another.

        Asked of the store once per cache; forgetting a cache that somebody writes through is its owner's mistake.
        """
        if cache in self._known_caches:
            return
        if self._engine.read(lambda reader: reader.get(keys.cache(cache))) is None:
            raise NotFoundError(f"no cache {cache} is registered")
        self._known_caches.add(cache)

    def _count_deleted(self, count: int) -> None:
        if count:
            with self._deleted_lock:
                self._deleted += count

    def _record_deleted(self) -> None:
        """Write down how many inodes this process deleted; what a killed one did not is the estimate's error."""
        with self._deleted_lock:
            count, self._deleted = self._deleted, 0
        if count:
            self._write(lambda writer: allocation.take(writer, Counter.INODES_DELETED, count))
