"""Which TieredFS mount a path is below, from the kernel's mount table, without touching the mount.

A path is looked up here before anything else is done with it: a mount whose daemon is gone would make a plain `stat`
wait. So symlinks are followed up to the mount and not inside it. Ours are recognised by their source,
`tieredfs:<volume name>:<mount id>`, whatever their file system type (`fuse.tieredfs` from the kernel driver, another
`fuse.*` from the portable one).
"""

import os
import re
from dataclasses import dataclass
from typing import Final

from tieredfs.host import Files, LocalFiles

MOUNT_TABLE: Final = "/proc/self/mountinfo"
MOUNT_ID: Final = re.compile(r"[0-9a-f]{16}")
SYMLINKS_MAX: Final = 40
"""As the kernel has it (MAXSYMLINKS)."""

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_SOURCE: Final = re.compile(r"tieredfs:([^:]*):([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One row of the mount table. Paths are `str` as `os.fsdecode` makes them, so that any bytes survive."""

    mount_point: str
    root: str
    """Which directory of the file system is mounted there: `/`, unless it is a bind mount of a subdirectory."""
    kind: str
    source: str
    device: tuple[int, int]
    read_only: bool

    @property
    def volume_name(self) -> str:
        """Empty for a mount that is not ours."""
        match = _SOURCE.fullmatch(self.source)
        return match[1] if match else ""

    @property
    def mount_id(self) -> str:
        """Sixteen hex digits; empty for a mount that is not ours."""
        match = _SOURCE.fullmatch(self.source)
        return match[2] if match else ""

    def relative(self, path: str) -> str:
        """`path`, as `locate` returned it, seen from the root of the volume: `a/b`, or the empty string for that."""
        assert path == self.mount_point or path.startswith(_as_prefix(self.mount_point)), path
        inside = path[len(self.mount_point) :].strip("/")
        return "/".join(part for part in (self.root.strip("/"), inside) if part)


def mount_source(volume_name: str, mount_id: str) -> str:
    """What a driver gives as the source of its mount."""
    assert ":" not in volume_name
    assert MOUNT_ID.fullmatch(mount_id)
    return f"tieredfs:{volume_name}:{mount_id}"


def parse_mount_table(table: bytes) -> list[MountInfo]:
    """Rows of /proc/PID/mountinfo (proc_pid_mountinfo(5)), in the kernel's order: later ones cover earlier ones."""
    return [row for line in table.split(b"\n") if (row := _parse_row(line)) is not None]


def _parse_row(line: bytes) -> MountInfo | None:
    before, separator, after = line.partition(b" - ")
    left, right = before.split(b" "), after.split(b" ")
    if not separator or len(left) < 6 or len(right) < 3:
        return None
    major, _, minor = left[2].partition(b":")
    options = left[5].split(b",") + right[2].split(b",")
    return MountInfo(
        mount_point=_unescape(left[4]),
        root=_unescape(left[3]),
        kind=_unescape(right[0]),
        source=_unescape(right[1]),
        device=(int(major), int(minor)),
        read_only=b"ro" in options,
    )


def _unescape(field: bytes) -> str:
    """The kernel writes space, tab, newline, backslash and `#` as three octal digits."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def read_mounts(files: Files | None = None) -> list[MountInfo]:
    """Every mount that this process sees."""
    return parse_mount_table((files or LocalFiles()).load(MOUNT_TABLE))


def our_mounts(files: Files | None = None) -> list[MountInfo]:
    """The TieredFS mounts among them, each mount point once: what is covered by a later mount is left out."""
    visible = {mount.mount_point: mount for mount in read_mounts(files)}
    return [mount for mount in visible.values() if mount.mount_id]


def find_mount(path: str, files: Files | None = None) -> MountInfo | None:
    """The TieredFS mount that `path` is below, or None. What is inside the mount is not touched."""
    located = locate(path, files)
    return located[0] if located else None


def locate(path: str, files: Files | None = None) -> tuple[MountInfo, str] | None:
    """The mount, and `path` made absolute, with symlinks followed on the way to the mount but not inside it."""
    visible = {mount.mount_point: mount for mount in read_mounts(files)}
    resolved = _walk(os.path.join(os.getcwd(), path), visible)
    mount = _deepest(resolved, visible)
    return (mount, resolved) if mount and mount.mount_id else None


def _deepest(path: str, visible: dict[str, MountInfo]) -> MountInfo | None:
    while True:
        if path in visible:
            return visible[path]
        if path == "/":
            return None
        path = os.path.dirname(path)


def _walk(path: str, visible: dict[str, MountInfo]) -> str:
    """`os.path.realpath`, but a component that is on one of our mounts is taken as it is."""
    pending = [part for part in path.split("/")[::-1] if part]
    current = "/"
    links = 0
    while pending:
        part = pending.pop()
        if part == ".":
            continue
        if part == "..":
            current = os.path.dirname(current)
            continue
        inside = _deepest(current, visible)
        step = os.path.join(current, part)
        target = None if (inside and inside.mount_id) or step in visible else _read_link(step)
        if target is None or links == SYMLINKS_MAX:
            current = step
            continue
        links += 1
        current = "/" if target.startswith("/") else current
        pending.extend(piece for piece in target.split("/")[::-1] if piece)
    return current


def _read_link(path: str) -> str | None:
    """None for what is no symlink, or not there."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def _as_prefix(mount_point: str) -> str:
    return mount_point.rstrip("/") + "/"
