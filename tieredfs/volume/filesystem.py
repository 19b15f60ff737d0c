"""`FileSystem`: a volume by paths, from Python, without a mount: what checkpoints, the S3 endpoint and datasets stand on.

Paths are bytes from the root of the volume (`b"runs/gpt/step-10"`; leading and doubled slashes do not count, `.` and `..`
are refused). A file is written without a name and gets one when it is whole (`Writing.commit`), so nothing half-written
is ever seen, and replacing is atomic. Bytes go through local files on the SSD tier of this process, as the mount's do.

Every process has an SSD directory of its own, a *slot* below `clients` beside the metadata file; what a process leaves
staged there is stored by whoever takes the slot next, by a caretaker, or by `tieredfs drain`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Self

from tieredfs.cache.burials import Burials
from tieredfs.cache.durable import make_durable
from tieredfs.cache.foresight import Expectation
from tieredfs.cache.local import LocalFile
from tieredfs.cache.pace import Pacer
from tieredfs.core.budget import Budget, Traffic
from tieredfs.core.file_life import DIRTY, FileState
from tieredfs.core.foresight import Use
from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    DeadlineError,
    InvalidRequestError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    StaleError,
    TieredError,
)
from tieredfs.host import Host, crash
from tieredfs.host.files import Buffer
from tieredfs.limits import BACKPRESSURE_WAIT_S, CACHE_BYTES_DEFAULT, MEMORY_BYTES_DEFAULT
from tieredfs.meta.metadata import Content, Creation, Placement, Removed
from tieredfs.meta.placing import Wanted
from tieredfs.model import NO_CACHE, ROOT, Attributes, Durability, Entry, Extent, FileKind, InodeId
from tieredfs.volume.caretaker import Caretaker
from tieredfs.volume.contract import Part, Seen, Writing
from tieredfs.volume.open_files import (
    BorrowedReading,
    Condition,
    Naming,
    TierReading,
    Unnamed,
    UnnamedOwner,
    caller_ids,
)
from tieredfs.volume.places import slots_directory
from tieredfs.volume.ssd import SsdTier
from tieredfs.volume.through import ThroughReading
from tieredfs.volume.volume import Volume

_LIST_BATCH: Final = 1024
_RACES_MAX: Final = 10
_SLOTS_MAX: Final = 65_536
_POLL_S: Final = 0.02
FIRST_VERSION: Final = 1
"""Of a content that is written as its inode is made."""


class FileSystem(UnnamedOwner):
    """The volume at a metadata URL, with an SSD directory of this process's own. Safe from any thread; a context manager.

    Not for use in a child after fork: open another.
    """

    def __init__(self, volume: Volume, ssd: SsdTier) -> None:
        """Takes over both, started; `at` is the usual way."""
        self.volume = volume
        self._ssd = ssd
        self._tier = ssd.tier
        self._metadata = volume.metadata
        self._burials = Burials(volume.metadata, ssd.tier, volume.session)
        self._caretaker = Caretaker(volume, ssd.tier.cache)

    @classmethod
    def at(
        cls,
        meta_url: str,
        *,
        purpose: str,
        cache_dir: str | None = None,
        cache_bytes: int = CACHE_BYTES_DEFAULT,
        memory_bytes: int = MEMORY_BYTES_DEFAULT,
        host: Host | None = None,
    ) -> Self:
        """`cache_dir` None: the first free slot. Raises what `Volume.open` and the SSD directory raise."""
        volume = Volume.open(meta_url, purpose=purpose, memory_bytes=memory_bytes, host=host)
        try:
            ssd = SsdTier(volume, cache_dir, cache_bytes) if cache_dir else _take_slot(volume, cache_bytes)
        except BaseException:
            volume.close()
            raise
        ssd.start()
        opened = cls(volume, ssd)
        opened._caretaker.start()
        return opened

    @property
    def uuid(self) -> str:
        """Of the volume."""
        return self.volume.config.uuid

    def close(self) -> None:
        """What is staged stays staged: safe on the SSD, and stored by whoever comes next."""
        self._caretaker.close()
        self._burials.close()
        self._ssd.close()
        self.volume.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- names ------------------------------------------------------------------------------------------------------

    def attributes(self, inode: InodeId) -> Attributes:
        """Of an inode, whatever its name is now. Raises NotFoundError."""
        return self._metadata.attributes(inode)

    def versions(self, inodes: Sequence[InodeId]) -> dict[InodeId, int]:
        """Of the contents of many inodes, in one snapshot; those that exist."""
        return self._metadata.versions(inodes)

    def stat(self, path: bytes) -> Attributes:
        """Symlinks are not followed. Raises NotFoundError, NotDirectoryError."""
        return self._metadata.resolve(_checked(path))

    def look(self, paths: Sequence[bytes], xattrs: Sequence[bytes] = ()) -> list[Seen | None]:
        """What each path shows, with its value of each of `xattrs`, in one snapshot. None: nothing."""
        return self._metadata.look([_checked(path) for path in paths], xattrs)

    def entries(self, path: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[Entry, Attributes]]:
        """Entries with names greater than `after`, in byte order. Raises NotDirectoryError."""
        return self._metadata.list_directory_plus(self.stat(path).inode, after, limit)

    def walk(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """Everything below `path`, parents before children, each directory in byte order. What vanishes meanwhile is left out."""
        base = b"/".join(_parts(path))
        after = b""
        while True:
            try:
                found = self.entries(base, after, _LIST_BATCH)
            except (NotFoundError, NotDirectoryError):
                return
            for entry, attributes in found:
                child = base + b"/" + entry.name if base else entry.name
                yield child, attributes
                if entry.kind is FileKind.DIRECTORY:
                    yield from self.walk(child)
            if len(found) < _LIST_BATCH:
                return
            after = found[-1][0].name

    def make_directories(self, path: bytes, mode: int = 0o755, *, beyond_quotas: bool = False) -> Attributes:
        """Like `mkdir -p`. Raises NotDirectoryError where a file is in the way."""
        current = self._metadata.attributes(ROOT)
        uid, gid = caller_ids()
        for name in _parts(path):
            try:
                following = self._metadata.lookup(current.inode, name)
            except NotFoundError:
                creation = Creation(FileKind.DIRECTORY, mode, uid, gid, beyond_quotas=beyond_quotas)
                following = self._made_or_found(current.inode, name, creation)
            if following.kind is not FileKind.DIRECTORY:
                raise NotDirectoryError(f"{name!r} in {path!r} is not a directory")
            current = following
        return current

    def _made_or_found(self, parent: InodeId, name: bytes, creation: Creation) -> Attributes:
        try:
            return self._metadata.create(parent, name, creation)
        except AlreadyExistsError:
            return self._metadata.lookup(parent, name)

    def remove(self, path: bytes, condition: Condition | None = None, *, spare_limited: bool = False) -> None:
        """A file or an empty directory. Open readings go on. `condition` raises to leave it; `spare_limited`: see the contract."""
        parent, name = self._parent_of(path)
        for _ in range(_RACES_MAX):
            found = self._metadata.lookup(parent, name)
            if condition is not None:
                condition(found)
            if found.kind is FileKind.DIRECTORY:
                self._metadata.remove_directory(parent, name, spare_limited=spare_limited)
                return
            try:
                removed = self._metadata.unlink(parent, name, self.volume.session, expected_target=found.inode)
            except ConflictError:
                continue
            crash.here("remove.committed")
            self._bury(removed)
            return
        raise ConflictError(f"{path!r} was replaced {_RACES_MAX} times while it was being removed")

    def remove_tree(self, path: bytes) -> int:
        """Everything below `path` and itself; the number of files removed. Not atomic: rename the tree away first."""
        if self.stat(path).kind is not FileKind.DIRECTORY:
            self.remove(path)
            return 1
        files = 0
        while found := self.entries(path, b"", _LIST_BATCH):
            for entry, _ in found:
                child = path.rstrip(b"/") + b"/" + entry.name
                if entry.kind is FileKind.DIRECTORY:
                    files += self.remove_tree(child)
                else:
                    self.remove(child)
                    files += 1
        self.remove(path)
        return files

    def rename(
        self,
        source: bytes,
        target: bytes,
        *,
        replace: bool = True,
        expected_target: InodeId | None = None,
        beside: bytes = b"",
    ) -> None:
        """Atomic; parents of the target are made. Durable on return. Raises ConflictError (`expected_target`, `beside`)."""
        names = *self._parent_of(source), *self._parent_of(target, make=True, beyond_quotas=True)
        removed = self._metadata.rename(
            *names, replace=replace, holder=self.volume.session, expected_target=expected_target, beside=beside
        )
        crash.here("rename.committed")
        if removed is not None:
            self._bury(removed)
        self._metadata.sync()

    def link(self, inode: InodeId, target: bytes) -> None:
        """Raises NotFoundError too (its last name is gone), NotPermittedError (a directory). Durable with what comes after. A file
        with names below different quotas counts in those that hold all of them."""
        parent, name = self._parent_of(target, make=True)
        self._metadata.link(inode, parent, name, across=True)
        crash.here("link.committed")

    def remove_xattr(self, path: bytes, name: bytes) -> None:
        self._metadata.remove_xattr(self.stat(path).inode, name)

    def get_xattr(self, path: bytes, name: bytes) -> bytes:
        return self._metadata.get_xattr(self.stat(path).inode, name)

    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        self._metadata.set_xattr(self.stat(path).inode, name, value)

    def list_xattrs(self, path: bytes) -> list[bytes]:
        return self._metadata.list_xattrs(self.stat(path).inode)

    def xattrs_of(self, inodes: Sequence[InodeId], name: bytes) -> dict[InodeId, bytes]:
        """One attribute of many inodes, in one snapshot; those that have it."""
        return self._metadata.xattrs_of(inodes, name)

    def _parent_of(self, path: bytes, *, make: bool = False, beyond_quotas: bool = False) -> tuple[InodeId, bytes]:
        parts = _parts(path)
        if not parts:
            raise InvalidRequestError("the root of the volume has no name")
        parent = b"/".join(parts[:-1])
        shown = self._metadata.look([parent])[0]  # from memory, when others looked before
        if shown is not None:
            directory = shown[0]
        elif make:
            directory = self.make_directories(parent, beyond_quotas=beyond_quotas)
        else:
            directory = self.stat(parent)  # says what is wrong
        if make and directory.kind is not FileKind.DIRECTORY:
            raise NotDirectoryError(f"{parent!r} is not a directory")
        return directory.inode, parts[-1]

    # ---- contents ---------------------------------------------------------------------------------------------------

    def open(self, path: bytes) -> TierReading | BorrowedReading:
        """Raises NotFoundError, IsDirectoryError, InvalidRequestError (a device or a link), and what a fill raises."""
        attributes = self.stat(path)
        if attributes.kind is FileKind.DIRECTORY:
            raise IsDirectoryError(f"{path!r} is a directory")
        if attributes.kind is not FileKind.REGULAR:
            raise InvalidRequestError(f"{path!r} is not a regular file")
        return self.open_seen(attributes)

    def open_seen(self, attributes: Attributes) -> TierReading | BorrowedReading:
        """`open` of a regular file that was just looked at. Raises NotFoundError, and what a fill raises."""
        return self.open_here(attributes) or self._open_tier(attributes)

    def open_here(self, attributes: Attributes) -> TierReading | BorrowedReading | None:
        """See `FileSystemContract`. What another process of this host has on its SSD is here too."""
        cache = attributes.staged_in
        if cache == self._tier.cache or self._tier.holds(attributes.inode, attributes.version):
            return self._open_tier(attributes)
        if cache != NO_CACHE and self._ssd.elsewhere.is_near(cache):
            return self._open_tier(attributes)
        descriptor = self._tier.part.neighbours.open_copy(attributes)
        return None if descriptor is None else BorrowedReading(attributes, descriptor, self.volume.host.files)

    def _open_tier(self, attributes: Attributes) -> TierReading:
        return TierReading(self._tier, attributes, self.volume.host.files, self._close_reading)

    def open_version(self, attributes: Attributes) -> TierReading | ThroughReading:
        """The regular file whose content `attributes` describe, with or without a name. Raises StaleError when its content
        is another one now, NotFoundError when it is gone, and what a fill raises.

        A file that is expected (`expect`), but not worth its room on the SSD, is read past it."""
        with self._ssd.foresight.admit(attributes.inode) as keep:
            through = None if keep else self._through(attributes)
            if through is None and self._tier.state_of(attributes.inode) is FileState.ABSENT:
                self._ssd.pace(Traffic.TRAINING, attributes.size_bytes)
            return through or self._open_here(attributes)

    def _through(self, attributes: Attributes) -> ThroughReading | None:
        """None: the store does not have that content, or not any more."""
        now = self._metadata.attributes(attributes.inode)
        extents = self._metadata.extents(attributes.inode)
        blocks = self._metadata.blocks({extent.block for extent in extents})
        after = self._metadata.attributes(attributes.inode)
        if not now.version == after.version == attributes.version or after.staged_in != NO_CACHE:
            return None
        pace = partial(self._ssd.pace, Traffic.TRAINING)
        return ThroughReading(attributes, extents, blocks, self._ssd.filler, pace)

    @property
    def cache_bytes(self) -> int:
        """Of this process's SSD tier."""
        return self._tier.room.capacity_bytes

    def open_bytes(self) -> int:
        """Of copies on this SSD that somebody has open: they cannot be evicted."""
        return sum(file.held_bytes for file in self._tier.active() if file.state not in DIRTY)

    def expect(self, uses: Iterable[Use] = ()) -> Expectation:
        """Announce what will be read next, in order: the SSD keeps, fetches and evicts by it. A hint: nothing depends on it."""
        return self._ssd.foresight.expect(uses)

    def limit(self, budget: Budget) -> None:
        """From now on what `open_version` fetches from the store waits for its turn, as training; what expectations fetch ahead,
        as backfill; what is drained never waits, but the others wait for it. The rate is divided between the processes with a
        living session of the same purpose."""
        self._ssd.pacer = Pacer(budget, self.volume.host.clock, self.volume.companions)

    def granted_bytes(self) -> dict[Traffic, int]:
        """What went under the budget so far, of each class; nothing without one."""
        return self._ssd.pacer.granted_bytes() if self._ssd.pacer is not None else {}

    def _open_here(self, attributes: Attributes) -> TierReading:
        reading = TierReading(self._tier, attributes, self.volume.host.files, self._close_reading)
        if reading.version != attributes.version:
            reading.close()
            raise StaleError(f"inode {attributes.inode} has another content than version {attributes.version}")
        return reading

    def create(self) -> Unnamed:
        """A file to write, without a name until `commit`. Waits, bounded, for room on the SSD (NoSpaceError)."""
        self._tier.room.wait_for_room()
        attributes = self._metadata.create_unnamed(self._creation(), self.volume.session)
        return Unnamed(attributes.inode, self._tier.create(attributes.inode, attributes.version), self)

    def has_room(self) -> bool:
        """Whether `create` would not wait now."""
        return not self._tier.room.is_full

    def stage_group(self, contents: Sequence[Buffer]) -> list[Writing | Exception]:
        """See `FileSystemContract`. One write and one sync for all of them. Where the volume's durability is `store`, each is
        as of `create`: to be stored, a file must be recorded."""
        if self.volume.config.durability is not Durability.SSD:
            return [self._written(content) for content in contents]
        inodes = [self._metadata.new_inode_id() for _ in contents]
        packed = self._tier.pack(contents, inodes, FIRST_VERSION)
        return [Unnamed(file.inode, file, self, recorded=False) for file in packed]

    def _written(self, content: Buffer) -> Unnamed | Exception:
        try:
            writing = self.create()
        except (TieredError, OSError) as error:
            return error
        try:
            self.volume.host.files.write(writing.descriptor, [content], 0)
        except OSError as error:
            writing.discard()
            return error
        return writing

    def sync_names(self) -> None:
        """See `FileSystemContract`."""
        self._metadata.sync()

    def _creation(self) -> Creation:
        return Creation(FileKind.REGULAR, 0o644, *caller_ids(), staged_in=self._tier.cache)

    def splice(self, parts: Sequence[Part]) -> Unnamed:
        """A new file by reference to stored ones. Raises InvalidRequestError (beyond an end), DeadlineError."""
        extents: list[Extent] = []
        size = 0
        for part in parts:
            extents.extend(self._slice(part, size))
            size += part.length
        uid, gid = caller_ids()
        creation = Creation(FileKind.REGULAR, 0o644, uid, gid)
        attributes = self._metadata.create_unnamed(creation, self.volume.session, extents, size)
        return Unnamed(attributes.inode, None, self)

    def _slice(self, part: Part, at: int) -> Iterator[Extent]:
        """The extents of a part, moved to offset `at` of the new file."""
        source = self.wait_until_stored(part.inode)
        if part.offset < 0 or part.length < 0 or part.offset + part.length > source.size_bytes:
            raise InvalidRequestError(f"inode {part.inode} has no {part.length} bytes at {part.offset}")
        for extent in self._metadata.extents(part.inode):
            start, end = max(extent.offset, part.offset), min(extent.end, part.offset + part.length)
            if start < end:
                within = extent.block_offset + start - extent.offset
                yield Extent(at + start - part.offset, end - start, extent.block, within)

    def wait_until_stored(self, inode: InodeId) -> Attributes:
        """The attributes once the content is in the store; staged ones are hurried. Raises DeadlineError."""
        clock = self.volume.host.clock
        deadline_s = clock.monotonic_s() + BACKPRESSURE_WAIT_S
        while (attributes := self._metadata.attributes(inode)).staged_in != NO_CACHE:
            self._ssd.hurry(attributes.staged_in)
            if clock.monotonic_s() > deadline_s:
                raise DeadlineError(f"inode {inode} was not stored within {BACKPRESSURE_WAIT_S:.0f} s")
            clock.sleep(_POLL_S)
        return attributes

    def is_stored(self, path: bytes) -> bool:
        """The content is in the store, not only staged."""
        return self.stat(path).staged_in == NO_CACHE

    def evict(self, path: bytes) -> bool:
        """Drop this process's copy of a stored file. False: it is in use here, or only here."""
        return self._tier.evict(self.stat(path).inode)

    def flush(self, timeout_s: float) -> None:
        """Returns when nothing that this process staged is only on the SSD. Raises DeadlineError."""
        self._ssd.flush(timeout_s)

    # ---- what an unnamed file asks ----------------------------------------------------------------------------------

    def make_durable(self, unnamed: Unnamed, durability: Durability | None) -> None:
        """See `Writing.make_durable`."""
        if unnamed.file is None or unnamed.durable:
            return  # its bytes are in the store already, or in a segment
        if (durability or self.volume.config.durability) is Durability.STORE:
            self._ssd.drainer.store_now(unnamed.file)
            return
        make_durable(self._tier.part, unnamed.file)
        unnamed.durable = True

    def commit(self, unnamed: Unnamed, naming: Naming, durability: Durability | None) -> Attributes:
        """See `Writing.commit`: bytes first, then the name, then the log that has it."""
        placement = self._placement(unnamed, naming, {})
        if unnamed.recorded:
            attributes, removed = self._place(unnamed, placement, naming.condition, durability)
        else:
            found = self._create_placed([(unnamed, self._wanted(unnamed, placement, naming.condition))])[0]
            if isinstance(found, Exception):
                raise found
            attributes, removed = found
        crash.here("place.committed")
        if not unnamed.grouped:
            self._metadata.sync()
        self._placed(unnamed, removed)
        return attributes

    def commit_group(self, group: Sequence[tuple[Writing, Naming]]) -> list[Attributes | Exception]:
        """See `FileSystemContract`."""
        outcomes: dict[int, Attributes | Exception] = {}
        together: list[tuple[int, Unnamed, Wanted]] = []
        parents: dict[bytes, InodeId] = {}
        for number, (writing, naming) in enumerate(group):
            assert isinstance(writing, Unnamed), "of this file system's own"
            try:
                if writing.recorded:
                    outcomes[number] = writing.commit_as(naming)
                else:
                    placement = self._placement(writing, naming, parents)
                    together.append((number, writing, self._wanted(writing, placement, naming.condition)))
            except (TieredError, OSError) as error:
                outcomes[number] = error
        made = self._create_placed([(unnamed, wanted) for _, unnamed, wanted in together])
        crash.here("place.committed")
        for (number, unnamed, _), found in zip(together, made, strict=True):
            if isinstance(found, Exception):
                outcomes[number] = found
                continue
            outcomes[number] = found[0]
            unnamed.end()
            self._placed(unnamed, found[1])
        return [outcomes[number] for number in range(len(group))]

    def _placement(self, unnamed: Unnamed, naming: Naming, parents: dict[bytes, InodeId]) -> Placement:
        """`parents`: of others that are committed with it, by path. The transaction sees whether they still are directories."""
        above, _, name = naming.path.rpartition(b"/")
        if above not in parents or name in {b"", b".", b".."}:
            parent, last = self._parent_of(naming.path, make=True)
            if name == last:
                parents[above] = parent
        else:
            parent, last = parents[above], name
        return Placement(unnamed.inode, parent, last, naming.mode, naming.replace, naming.xattrs, naming.absent)

    def _placed(self, unnamed: Unnamed, removed: Removed | None) -> None:
        """The name is committed: what is open is closed, and what had the name before is buried."""
        if unnamed.file is not None and unnamed.grouped:
            self._tier.packed(unnamed.file)
        elif unnamed.file is not None:
            self._tier.release(unnamed.file, writer=True)
        if removed is not None:
            self._bury(removed)

    def _place(
        self, unnamed: Unnamed, placement: Placement, condition: Condition | None, durability: Durability | None
    ) -> tuple[Attributes, Removed | None]:
        if unnamed.file is not None:
            self._tier.publish(unnamed.file)
        self.make_durable(unnamed, durability)
        return self._metadata.place(placement, self.volume.session, condition)

    def _wanted(self, unnamed: Unnamed, placement: Placement, condition: Condition | None) -> Wanted:
        file = unnamed.file
        assert file is not None
        assert file.place is not None, "only what is in a segment has no record"
        content = Content(file.size_bytes, file.mtime_ns, file.size_bytes, file.place)
        return Wanted(placement, content, condition)

    def _create_placed(
        self, group: Sequence[tuple[Unnamed, Wanted]]
    ) -> list[tuple[Attributes, Removed | None] | TieredError]:
        if not group:
            return []
        wanted = [each for _, each in group]
        outcomes = self._metadata.create_placed(wanted, self._creation(), self.volume.session, self._tier.is_open)
        for (unnamed, _), outcome in zip(group, outcomes, strict=True):
            unnamed.recorded = not isinstance(outcome, Exception)
        return outcomes

    def discard(self, unnamed: Unnamed) -> None:
        if unnamed.file is not None and unnamed.recorded:
            self._tier.mark_deleted(unnamed.inode)
            self._tier.release(unnamed.file, writer=True)
        if unnamed.recorded:
            self._dispose(unnamed.inode)
        else:
            self._tier.discard(unnamed.inode)

    def _bury(self, removed: Removed) -> None:
        """A name is gone. With the last one the inode is deleted, or an orphan of this session until nobody here has it open."""
        if removed.gone and removed.kind is not FileKind.DIRECTORY:
            self._tier.mark_deleted(removed.inode)
            if removed.deleted:
                self._burials.discard(removed.inode)
            elif not self._tier.is_open(removed.inode):
                self._burials.bury((removed.inode,))

    def _close_reading(self, file: LocalFile) -> None:
        self._tier.release(file, writer=False)
        if file.deleted and not self._tier.is_open(file.inode):
            self._dispose(file.inode)

    def _dispose(self, inode: InodeId) -> None:
        """A content that is here only goes when its deletion is durable: the name must not come back without its bytes."""
        self._metadata.reclaim_orphan(inode, self.volume.session)
        if self._tier.state_of(inode) in DIRTY:
            self._metadata.sync()
        self._tier.discard(inode)


def _parts(path: bytes) -> list[bytes]:
    parts = [part for part in path.split(b"/") if part]
    if b"." in parts or b".." in parts:
        raise InvalidRequestError(f"{path!r}: no `.` or `..` in a path of the volume")
    return parts


def _checked(path: bytes) -> bytes:
    return b"/".join(_parts(path))


def _take_slot(volume: Volume, cache_bytes: int) -> SsdTier:
    """The first slot that no living process uses; what its last user left staged is ours to store now."""
    clients = slots_directory(volume.meta_url, volume.config.uuid)
    for number in range(_SLOTS_MAX):
        try:
            return SsdTier(volume, f"{clients}/{number}", cache_bytes)
        except BusyError:
            continue
    raise BusyError(f"all {_SLOTS_MAX} slots below {clients} are in use")
