"""Mount points and mounts: what must hold before, mount(2) or fusermount, read-ahead, and the way back.

Linux only. As root we call mount(2) ourselves; otherwise `fusermount3` or `fusermount` does, and hands the device over
a socket. Nothing here starts a thread or keeps state.
"""

import array
import contextlib
import errno
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import BusyError, MountPointError, NotAMountError, NotSupportedError
from tieredfs.host import libc
from tieredfs.limits import KIB, MIB, MOUNT_READY_S, UNMOUNT_WAIT_S

FILESYSTEM: Final = "fuse.tieredfs"
DEVICE: Final = "/dev/fuse"
READ_AHEAD_BYTES: Final = 4 * MIB
"""For files that the daemon serves; passthrough reads use the read-ahead of the SSD."""

_MOUNTS: Final = "/proc/self/mountinfo"
_TYPE_OF_DIRECTORY: Final = 0o40000
_DESCRIPTORS_EXPECTED: Final = 4


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What mount(2) is told. `source` is shown as the device in /proc/mounts."""

    source: str = "tieredfs"
    read_only: bool = False
    allow_other: bool = False


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device: str
    """`major:minor`, the name of its entry in /sys/class/bdi."""
    path: str
    filesystem: str
    source: str


def mounts() -> list[MountEntry]:
    """Every mount that this process sees, in mount order (the last one on a path hides those before)."""
    with open(_MOUNTS, "rb") as file:
        return [_parse_mount(line) for line in file.read().splitlines()]


def mount_at(mountpoint: str) -> MountEntry | None:
    """What is mounted exactly at `mountpoint`, without touching it (a dead daemon's mount would answer ENOTCONN)."""
    path = _normal(mountpoint)
    found = [entry for entry in mounts() if entry.path == path]
    return found[-1] if found else None


def check_mountpoint(mountpoint: str) -> str:
    """The absolute path, fit to be mounted on. Clears a dead mount of ours. Raises MountPointError."""
    path = _normal(mountpoint)
    entry = mount_at(path)
    if entry is not None and entry.filesystem == FILESYSTEM and _is_dead(path):
        unmount(path, lazy=True)
        entry = mount_at(path)
    if entry is not None:
        if _is_dead(path):
            raise MountPointError(f"{path} is a dead mount ({entry.filesystem}); clear it with: umount -l {path}")
        raise MountPointError(f"{path} is already a mount point ({entry.source}, type {entry.filesystem})")
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise MountPointError(f"{path} does not exist; make the directory first") from None
    except NotADirectoryError:
        raise MountPointError(f"{path} is not a directory") from None
    except OSError as error:
        raise MountPointError(f"{path} cannot be used as a mount point: {error.strerror}") from error
    if names:
        raise MountPointError(f"{path} is not empty ({len(names)} entries); its content would be hidden by the mount")
    return path


def open_device() -> int:
    """A fresh, unmounted /dev/fuse descriptor. Raises NotSupportedError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "is the kernel's fuse module loaded, and does a container have the device?"
        raise NotSupportedError(f"{DEVICE} cannot be opened ({error.strerror}): {hint}") from error


def mount_fuse(mountpoint: str, options: MountOptions) -> int:
    """Mount at `mountpoint` (as `check_mountpoint` returned it); returns the device descriptor.

    The mount answers nobody before INIT is answered on the descriptor. Raises MountPointError, NotSupportedError.
    """
    if os.geteuid() == 0:
        device = open_device()
        try:
            _mount_as_root(device, mountpoint, options)
        except BaseException:
            os.close(device)
            raise
        return device
    return _mount_by_fusermount(mountpoint, options)


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take the mount away; `lazy`: from the tree now, and wholly when its last file is closed.

    Raises BusyError when it is in use, NotAMountError when there is none.
    """
    path = _normal(mountpoint)
    try:
        if os.geteuid() == 0:
            libc.unmount(path, libc.MNT_DETACH if lazy else 0)
        else:
            _unmount_by_fusermount(path, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"{path} is in use: a program has a file or its working directory there") from error
        if error.errno in (errno.EINVAL, errno.ENOENT):
            raise NotAMountError(f"{path} is not mounted") from error
        raise MountPointError(f"{path} cannot be unmounted: {error.strerror}") from error


def set_read_ahead(entry: MountEntry, size_bytes: int = READ_AHEAD_BYTES) -> bool:
    """Raise the mount's read-ahead; False: not permitted, nothing changed. INIT must have been answered, as it sets it.

    Reading a file whose bytes the daemon carries: 1.2-1.7 GiB/s at the kernel's 128 KiB, 1.8-2.6 at 4 MiB.
    """
    with contextlib.suppress(OSError):
        with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(size_bytes // KIB))
        return True
    return False


def _mount_as_root(device: int, mountpoint: str, options: MountOptions) -> None:
    flags = libc.MS_NOSUID | libc.MS_NODEV | (libc.MS_RDONLY if options.read_only else 0)
    words = [
        f"fd={device}",
        f"rootmode={_TYPE_OF_DIRECTORY:o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        "default_permissions",
    ]
    if options.allow_other:
        words.append("allow_other")
    try:
        libc.mount(options.source, mountpoint, FILESYSTEM, flags, ",".join(words))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV):
            raise NotSupportedError(f"the kernel does not let us mount at {mountpoint}: {error.strerror}") from error
        raise MountPointError(f"mounting at {mountpoint} failed: {error.strerror}") from error


def fusermount() -> str | None:
    """The set-user-id program that mounts for users, or None."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _mount_by_fusermount(mountpoint: str, options: MountOptions) -> int:
    program = fusermount()
    if program is None:
        raise NotSupportedError("mounting needs root, or fusermount3 (the package fuse3), and neither is here")
    words = ["default_permissions", "subtype=tieredfs", f"fsname={options.source}", "nosuid", "nodev"]
    words += ["ro"] if options.read_only else []
    words += ["allow_other"] if options.allow_other else []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(MOUNT_READY_S)
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        command = [program, "-o", ",".join(words), "--", mountpoint]
        done = subprocess.run(
            command,
            env=environment,
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            timeout=MOUNT_READY_S,
            check=False,
        )
        if done.returncode != 0:
            raise MountPointError(f"{os.path.basename(program)} could not mount at {mountpoint}: {done.stderr.strip()}")
        return _receive_descriptor(ours)


def _receive_descriptor(channel: socket.socket) -> int:
    descriptors = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_LEN(_DESCRIPTORS_EXPECTED))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not descriptors:
        raise MountPointError("fusermount mounted but handed no device over")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _unmount_by_fusermount(path: str, *, lazy: bool) -> None:
    program = fusermount()
    if program is None:
        raise NotSupportedError("unmounting needs root, or fusermount3 (the package fuse3), and neither is here")
    command = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=UNMOUNT_WAIT_S, check=False)
    if done.returncode != 0:
        busy = "busy" in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EINVAL, done.stderr.strip())


def _is_dead(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _normal(mountpoint: str) -> str:
    """Absolute, with the links of its parents resolved, but without touching the last component."""
    absolute = os.path.abspath(mountpoint)
    parent, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(parent), name) if name else absolute


def _parse_mount(line: bytes) -> MountEntry:
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    filesystem, source = after.split(b" ")[:2]
    return MountEntry(fields[2].decode(), _unescape(fields[4]), filesystem.decode(errors="replace"), _unescape(source))


def _unescape(field: bytes) -> str:
    for character in b" \t\n\\":
        field = field.replace(b"\\%03o" % character, bytes([character]))
    return os.fsdecode(field)
