"""The checkpoints of a run: which there are, reading their manifests, leases, tags, and deleting without pulling a rug.

A checkpoint exists when its directory has its name; it got that by one rename, whole. Of a step's generations the highest
counts. Deleting is a rename, too, into the trash, so nobody sees half a checkpoint; the removal follows.

**Leases.** Who reads a checkpoint first puts a lease there, then looks whether the checkpoint still is. Who deletes
moves it to the trash, then looks for leases, and moves it back if there is a live one. In whichever order the four happen,
either the deleter sees the lease or the reader sees that the checkpoint is gone (and looks again for a moment, for it may
come back). Who tags a checkpoint reads it meanwhile, and who prunes looks for tags after he looked for leases: so no tag is
set on what is being deleted. A lease whose heartbeat is older than `LEASE_TIMEOUT_S` is a dead reader's.

Safe from any thread and from several processes.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    ConditionError,
    ConflictError,
    NotDirectoryError,
    NotFoundError,
)
from tieredfs.host import Host, crash
from tieredfs.model import Attributes, FileKind, InodeId
from tieredfs.volume.contract import FileSystemContract
from tieredfs.volume.open_files import Condition
from tieredfs_client.checkpoint.documents import open_steady, read_document, shown, write_document
from tieredfs_client.checkpoint.layout import MANIFEST_NAME, Manifest, decode_manifest
from tieredfs_client.checkpoint.names import CheckpointName, RunPaths, check_new_tag, check_tag, parse_checkpoint

LEASE_HEARTBEAT_S: Final = 15.0
LEASE_TIMEOUT_S: Final = 60.0
LEASE_XATTR: Final = b"user.tieredfs.lease"
LOOKS_MAX: Final = 20
LOOK_PAUSE_S: Final = 0.05
LISTED: Final = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint and what its directory says."""

    name: CheckpointName
    attributes: Attributes


class Catalog:
    """One run's directory."""

    def __init__(
        self,
        volume: FileSystemContract,
        host: Host,
        paths: RunPaths,
        remove_tree: Callable[[bytes], object] | None = None,
    ) -> None:
        """`remove_tree`: who removes what was put into the trash, perhaps later (None: here and at once)."""
        self.volume = volume
        self.host = host
        self.paths = paths
        self._remove_tree = remove_tree or volume.remove_tree

    # ---- looking ----------------------------------------------------------------------------------------------------

    def generations(self) -> list[Found]:
        """All, also those that a later generation replaced; in order."""
        found = []
        for name, attributes in self.listed(self.paths.root):
            checkpoint = parse_checkpoint(name)
            if checkpoint is not None and attributes.kind is FileKind.DIRECTORY:
                found.append(Found(checkpoint, attributes))
        return sorted(found, key=lambda one: one.name)

    def checkpoints(self) -> list[Found]:
        """One per step, in order."""
        return list({one.name.step: one for one in self.generations()}.values())

    def listed(self, directory: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """Names in a directory; nothing when there is none."""
        after = b""
        while True:
            try:
                page = self.volume.entries(directory, after, LISTED)
            except (NotFoundError, NotDirectoryError):
                return
            for entry, attributes in page:
                yield entry.name, attributes
            if len(page) < LISTED:
                return
            after = page[-1][0].name

    def resolve(self, which: int | str) -> CheckpointName:
        """A step, `latest`, or a tag. Raises NotFoundError."""
        if isinstance(which, str) and which != "latest":
            named = parse_checkpoint(self._tag_target(which).encode())
            which = named.step if named is not None else -1
        found = self.checkpoints()
        if which == "latest":
            if not found:
                raise NotFoundError(f"no checkpoint in {shown(self.paths.root)}")
            return found[-1].name
        names = [one.name for one in found if one.name.step == which]
        if not names:
            raise NotFoundError(f"no checkpoint of step {which} in {shown(self.paths.root)}")
        return names[0]

    def manifest(self, name: CheckpointName) -> Manifest:
        """Raises NotFoundError, CorruptError, NewerFormatError."""
        path = self.paths.checkpoint(name) + b"/" + MANIFEST_NAME.encode()
        return decode_manifest(read_document(self.volume, self.host.clock, path), shown(path))

    # ---- leases -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leased(self, which: int | str) -> Iterator[CheckpointName]:
        """A checkpoint that is not deleted inside the `with`. Raises NotFoundError."""
        for look in range(LOOKS_MAX):
            try:
                name = self.resolve(which)
            except NotFoundError:
                if look + 1 == LOOKS_MAX or not self._in_trash():
                    raise
                self.host.clock.sleep(LOOK_PAUSE_S)
                continue
            lease = _Lease(self, name)
            try:
                if self._is_there(name):
                    yield name
                    return
            finally:
                lease.end()
            self.host.clock.sleep(LOOK_PAUSE_S)
        raise BusyError(f"{shown(self.paths.root)}: checkpoints come and go faster than they can be opened")

    def _is_there(self, name: CheckpointName) -> bool:
        try:
            self.volume.stat(self.paths.checkpoint(name))
        except (NotFoundError, NotDirectoryError):
            return False
        return True

    def _in_trash(self) -> bool:
        return any(True for _ in self.listed(self.paths.trash))

    def is_leased(self, name: CheckpointName) -> bool:
        prefix = name.encode() + b"-"
        oldest_ns = self.host.clock.wall_ns() - int(LEASE_TIMEOUT_S * 1e9)
        return any(
            found.startswith(prefix) and attributes.ctime_ns >= oldest_ns
            for found, attributes in self.listed(self.paths.leases)
        )

    # ---- tags -------------------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, CheckpointName]:
        """Also tags of checkpoints that are gone."""
        found = {}
        for name, _ in self.listed(self.paths.tags):
            with contextlib.suppress(NotFoundError):  # taken away since it was listed
                target = parse_checkpoint(self._tag_target(name.decode("ascii", "replace")).encode())
                if target is not None:
                    found[name.decode("ascii", "replace")] = target
        return found

    def _tag_target(self, tag: str) -> str:
        path = self.paths.tags + b"/" + check_tag(tag).encode()
        try:
            return read_document(self.volume, self.host.clock, path).decode("ascii", "replace").strip()
        except (NotFoundError, NotDirectoryError):
            raise NotFoundError(f"no tag {tag!r} in {shown(self.paths.root)}") from None

    def set_tag(self, tag: str, which: int | str) -> None:
        """Point a tag to a checkpoint; it moves if it is there already. Raises NotFoundError, InvalidRequestError."""
        path = self.paths.tags + b"/" + check_new_tag(tag).encode()
        with self.leased(which) as name:
            write_document(self.host.files, self.volume, path, name.encode() + b"\n")

    def remove_tag(self, tag: str) -> None:
        """Raises NotFoundError."""
        self._tag_target(tag)
        self.volume.remove(self.paths.tags + b"/" + tag.encode())

    # ---- latest, for other tools ------------------------------------------------------------------------------------

    def point_latest(self) -> None:
        """Make `latest` say what is the newest. Never back while a newer one is there: a write that lost a race is done again."""
        for _ in range(LOOKS_MAX):
            seen = self._latest_now()
            found = self.checkpoints()
            if not found:
                return
            condition = only_if(seen[0] if seen else None)
            wanted = found[-1].name
            if seen and seen[1] == wanted:
                return
            with contextlib.suppress(ConflictError):
                data = wanted.encode() + b"\n"
                write_document(self.host.files, self.volume, self.paths.latest, data, condition=condition)
                return

    def _latest_now(self) -> tuple[InodeId, CheckpointName | None] | None:
        try:
            with open_steady(self.volume, self.host.clock, self.paths.latest) as reading:
                data = bytearray(64)
                size = reading.read_into(0, memoryview(data))
                return reading.attributes.inode, parse_checkpoint(bytes(data[:size]).strip())
        except NotFoundError:
            return None

    # ---- deleting ---------------------------------------------------------------------------------------------------

    def delete(
        self, name: CheckpointName, *, spare_tagged: bool = False, staying: CheckpointName | None = None
    ) -> bool:
        """Delete one generation of a step unless somebody reads it, or has just tagged it (False). `staying`: another checkpoint
        that must be there in the transaction that takes this one away; so of two that delete the last two, one is told.
        Raises NotFoundError, ConflictError (`staying` is gone)."""
        if self.is_leased(name):
            return False
        hidden = self.paths.trash + f"/{name}-{self.host.random.getrandbits(32):08x}".encode()
        beside = b"" if staying is None else staying.encode()
        self.volume.rename(self.paths.checkpoint(name), hidden, replace=False, beside=beside)
        crash.here("checkpoint.trashed")
        if self.is_leased(name) or (
            spare_tagged and self._is_tagged(name)
        ):  # in this order: a tag is set under a lease
            with contextlib.suppress(AlreadyExistsError):
                self.volume.rename(hidden, self.paths.checkpoint(name), replace=False)
            return False
        with contextlib.suppress(NotFoundError):  # somebody sweeps
            self._remove_tree(hidden)
        return True

    def _is_tagged(self, name: CheckpointName) -> bool:
        return any(target.step == name.step for target in self.tags().values())

    def discard(self, path: bytes) -> None:
        """Take a directory that is no checkpoint away, in one step, and remove it. Whoever still works in it finds out at
        its commit: what it renames is not there. Raises NotFoundError."""
        name = path.rpartition(b"/")[2]
        hidden = self.paths.trash + b"/" + name + f"-{self.host.random.getrandbits(32):08x}".encode()
        self.volume.rename(path, hidden, replace=False)
        self._remove_tree(hidden)

    def sweep(self) -> None:
        """Remove what interrupted deletions and dead readers left."""
        for name, _ in list(self.listed(self.paths.trash)):
            with contextlib.suppress(NotFoundError):
                self._sweep_one(name)
        oldest_ns = self.host.clock.wall_ns() - int(LEASE_TIMEOUT_S * 1e9)
        for name, attributes in list(self.listed(self.paths.leases)):
            if attributes.ctime_ns < oldest_ns:
                with contextlib.suppress(NotFoundError):
                    self.volume.remove(self.paths.leases + b"/" + name)

    def _sweep_one(self, name: bytes) -> None:
        """Under another name first: whoever put it there may just find a lease and put it back, and that must be all of it."""
        stem = name.rpartition(b"-")[0]
        checkpoint = parse_checkpoint(stem)
        if checkpoint is not None and self.is_leased(checkpoint):
            return
        hidden = self.paths.trash + b"/" + stem + f"-{self.host.random.getrandbits(32):08x}".encode()
        self.volume.rename(self.paths.trash + b"/" + name, hidden, replace=False)
        self.volume.remove_tree(hidden)


def only_if(inode: InodeId | None) -> Condition:
    """The name still shows the inode that was seen (None: nothing). Raises ConflictError in the committing transaction."""

    def check(now: Attributes | None) -> None:
        if (None if now is None else now.inode) != inode:
            raise ConflictError("somebody else was faster")

    return check


class _Lease:
    """A lease and the thread that renews it. An empty directory, which is one transaction and no sync: after a power cut there is
    no reader either, and four syncs (8 ms) were a tenth of a load of 1 GiB from the page cache."""

    def __init__(self, catalog: Catalog, name: CheckpointName) -> None:
        self._catalog = catalog
        suffix = f"-{catalog.host.random.getrandbits(64):016x}"
        self._path = catalog.paths.leases + b"/" + name.encode() + suffix.encode()
        self._ended = threading.Event()
        catalog.volume.make_directories(self._path, beyond_quotas=True)
        self._thread = threading.Thread(target=self._renew, name="tieredfs-ckpt-lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(LEASE_HEARTBEAT_S):
            with contextlib.suppress(ConditionError, NotFoundError):  # the next beat is in time
                self._catalog.volume.set_xattr(self._path, LEASE_XATTR, self._catalog.host.name.encode())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(NotFoundError):
            self._catalog.volume.remove(self._path)
