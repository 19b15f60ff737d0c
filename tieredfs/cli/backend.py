"""What the command line needs from the rest, as one protocol, and the real thing behind it.

The protocol is what the tests of the command line fake. The real backend imports the volume and the mount when a verb
needs them, so that `tieredfs --help` answers at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Final, Protocol

from tieredfs.model import Code, DiskId, Durability, InodeId, VolumeConfig

Progress = Callable[[int, int, str], None]
"""done, total (0: unknown), unit (`bytes`, `files`, `blocks`, ...)."""

DAEMON_WAIT_S: Final = 5.0
"""A daemon that died is replaced within about a second; one that is not there after this long is not coming back."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What `mount` and `up` ask for: the fields of `tieredfs.fuse.mounting.MountOptions`."""

    meta_url: str
    mountpoint: str
    cache_dir: str | None
    cache_bytes: int
    memory_bytes: int
    driver: str
    read_only: bool
    allow_other: bool
    foreground: bool


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What `restore` asks for; paths from the volume's root. `mount_point`: of a mount that shows all of the volume, if there is
    one: what is replaced is removed through it."""

    meta_url: str
    path: str
    name: str
    target: str
    force: bool
    mount_point: str | None


class Mounted(Protocol):
    """A mount that is ready."""

    @property
    def driver(self) -> str: ...
    @property
    def reason(self) -> str:
        """Why that driver."""
        ...

    @property
    def mountpoint(self) -> str: ...
    @property
    def mount_id(self) -> str: ...


class Place(Protocol):
    """A row of the mount table that is a mount of ours."""

    @property
    def mount_point(self) -> str: ...
    @property
    def mount_id(self) -> str: ...
    @property
    def volume_name(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    def relative(self, path: str) -> str: ...


class Staged(Protocol):
    """What is on SSDs only."""

    @property
    def file_count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def oldest_age_s(self) -> float: ...


class Check(Protocol):
    """What `fsck` found."""

    @property
    def clean(self) -> bool: ...
    @property
    def findings(self) -> Sequence[object]: ...


class QuotaState(Protocol):
    """A directory with a quota."""

    @property
    def path(self) -> str: ...


class QuotaChecked(Protocol):
    """A quota that was recounted."""

    @property
    def path(self) -> str: ...
    @property
    def right(self) -> bool: ...
    @property
    def repaired(self) -> bool: ...


class Quotas(Protocol):
    """`tieredfs.volume.quotas.Quotas`."""

    def set(self, path: str, limit_bytes: int | None, limit_inodes: int | None) -> object: ...
    def get(self, path: str) -> object: ...
    def list(self) -> Sequence[QuotaState]: ...
    def delete(self, path: str) -> object: ...
    def check(self, path: str, *, repair: bool) -> QuotaChecked: ...


class OpenVolume(Protocol):
    """`tieredfs.volume.Volume`. What is returned as `object` is a tree of frozen dataclasses, for printing."""

    @property
    def config(self) -> VolumeConfig: ...
    def status(self) -> object: ...
    def collect_garbage(self, progress: Progress) -> object: ...
    def check(self, *, repair: bool, progress: Progress) -> Check: ...
    def add_disk(self, url: str, domain: str | None) -> object: ...
    def drain_disk(self, disk: DiskId, progress: Progress) -> object: ...
    def rebuild_disk(self, disk: DiskId, progress: Progress) -> object: ...
    def disks(self) -> Sequence[object]: ...
    def set_config(
        self,
        *,
        name: str | None = None,
        code: Code | None = None,
        durability: Durability | None = None,
        block_bytes: int | None = None,
    ) -> VolumeConfig: ...
    def staged(self) -> Staged: ...
    def dump_to_file(self, path: str, progress: Progress) -> object: ...
    def dump_to_disks(self, progress: Progress) -> object: ...
    @property
    def quotas(self) -> Quotas: ...


class Loaded(Protocol):
    """What became of a dump."""

    @property
    def away(self) -> Mapping[int, str]:
        """Disks that could not be given to the volume, and why."""
        ...


class Backend(Protocol):
    """Everything that the verbs do. Raises the errors of `tieredfs.errors`."""

    def format_volume(
        self,
        meta_url: str,
        data_urls: Sequence[str],
        *,
        code: Code,
        durability: Durability,
        block_bytes: int,
        name: str,
        force: bool,
    ) -> VolumeConfig: ...
    def destroy_volume(self, meta_url: str, *, progress: Progress) -> None: ...
    def open_volume(self, meta_url: str, *, purpose: str) -> AbstractContextManager[OpenVolume]: ...
    def drain_volume(self, meta_url: str, progress: Progress) -> None:
        """Drain what lies in caches without a live daemon."""
        ...

    def load_volume(self, meta_url: str, sources: Sequence[str], progress: Progress) -> Loaded:
        """Make the metadata anew from the newest whole dump (`tieredfs.volume.loading`)."""
        ...

    def clone(self, meta_url: str, source: str, target: str, progress: Progress) -> object:
        """A copy by reference; paths from the volume's root (`tieredfs.volume.cloning`)."""
        ...

    def create_snapshot(self, meta_url: str, mount_id: str, path: str, name: str, progress: Progress) -> object:
        """Paths from the volume's root (`tieredfs.volume.snapshots`). The mount stores what it has staged of the directory."""
        ...

    def snapshots(self, meta_url: str, path: str) -> Sequence[object]: ...
    def remove_snapshot(self, meta_url: str, path: str, name: str, progress: Progress) -> int: ...
    def restore_snapshot(self, request: RestoreRequest, progress: Progress) -> object: ...
    def mount_volume(self, request: MountRequest) -> Mounted: ...
    def unmount(self, mountpoint: str, *, flush: bool, progress: Progress) -> None: ...
    def mounts(self) -> Sequence[Place]: ...
    def locate(self, path: str) -> tuple[Place, str] | None:
        """The mount of a path, and the path made absolute (`tieredfs.fuse.mountinfo.locate`)."""
        ...

    def ask(self, mount_id: str, verb: str, arguments: Mapping[str, object], progress: Progress) -> object:
        """One call on the control socket of a mount."""
        ...


class LocalBackend:
    """The real one."""

    def format_volume(
        self,
        meta_url: str,
        data_urls: Sequence[str],
        *,
        code: Code,
        durability: Durability,
        block_bytes: int,
        name: str,
        force: bool,
    ) -> VolumeConfig:
        from tieredfs import volume

        return volume.format_volume(
            meta_url, data_urls, code=code, durability=durability, block_bytes=block_bytes, name=name, force=force
        )

    def destroy_volume(self, meta_url: str, *, progress: Progress) -> None:
        from tieredfs import volume

        volume.destroy_volume(meta_url, progress=progress)

    def open_volume(self, meta_url: str, *, purpose: str) -> AbstractContextManager[OpenVolume]:
        from tieredfs import volume

        return volume.Volume.open(meta_url, purpose=purpose)

    def drain_volume(self, meta_url: str, progress: Progress) -> None:
        from tieredfs import volume

        volume.drain_volume(meta_url, progress)

    def load_volume(self, meta_url: str, sources: Sequence[str], progress: Progress) -> Loaded:
        from tieredfs import volume

        return volume.load_volume(meta_url, sources, progress)

    def clone(self, meta_url: str, source: str, target: str, progress: Progress) -> object:
        from tieredfs import volume

        with volume.FileSystem.at(meta_url, purpose="clone") as opened:
            return volume.clone(opened, os.fsencode(source), os.fsencode(target), progress)

    def create_snapshot(self, meta_url: str, mount_id: str, path: str, name: str, progress: Progress) -> object:
        from tieredfs.volume import FileSystem, snapshots

        def store(inodes: Sequence[InodeId]) -> dict[InodeId, int]:
            answer = self.ask(mount_id, "store", {"inodes": list(inodes)}, lambda _done, _total, _unit: None)
            assert isinstance(answer, dict)
            return {InodeId(inode): version for inode, version in answer["stored"]}

        with FileSystem.at(meta_url, purpose="snapshot") as opened:
            return snapshots.create(opened, os.fsencode(path), os.fsencode(name), progress, store)

    def snapshots(self, meta_url: str, path: str) -> Sequence[object]:
        from tieredfs.volume import Volume, snapshots

        with Volume.open(meta_url, purpose="snapshot") as opened:
            return snapshots.listed(opened.metadata, os.fsencode(path))

    def remove_snapshot(self, meta_url: str, path: str, name: str, progress: Progress) -> int:
        from tieredfs.volume import FileSystem, snapshots

        with FileSystem.at(meta_url, purpose="snapshot") as opened:
            return snapshots.remove(opened, os.fsencode(path), os.fsencode(name), progress)

    def restore_snapshot(self, request: RestoreRequest, progress: Progress) -> object:
        from tieredfs.fuse.discarding import discard_through
        from tieredfs.volume import FileSystem, snapshots

        target = os.fsencode(request.target)
        point = request.mount_point
        with FileSystem.at(request.meta_url, purpose="restore") as opened:
            return snapshots.restore(
                opened,
                os.fsencode(request.path),
                os.fsencode(request.name),
                target,
                force=request.force,
                progress=progress,
                discard=None if point is None else discard_through(os.fsencode(point), target),
            )

    def mount_volume(self, request: MountRequest) -> Mounted:
        from tieredfs.fuse import mounting

        options = {field.name: getattr(request, field.name) for field in fields(request)}
        return mounting.mount_volume(mounting.MountOptions(**options))

    def unmount(self, mountpoint: str, *, flush: bool, progress: Progress) -> None:
        from tieredfs.fuse import mounting

        mounting.unmount(mountpoint, flush=flush, progress=progress)

    def mounts(self) -> Sequence[Place]:
        from tieredfs.fuse.mountinfo import our_mounts

        return our_mounts()

    def locate(self, path: str) -> tuple[Place, str] | None:
        from tieredfs.fuse.mountinfo import locate

        return locate(path)

    def ask(self, mount_id: str, verb: str, arguments: Mapping[str, object], progress: Progress) -> object:
        from tieredfs.fuse.control import ControlClient

        def is_mounted() -> bool:
            return any(mount.mount_id == mount_id for mount in self.mounts())

        client = ControlClient(mount_id, connect_wait_s=DAEMON_WAIT_S, is_mounted=is_mounted)
        return client.call(verb, arguments, progress)
