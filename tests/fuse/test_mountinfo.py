"""The mount table: escapes, covered mounts, bind mounts, symlinks on the way, and a real mount of the kernel."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.fuse.mountinfo import find_mount, locate, mount_source, our_mounts, parse_mount_table
from tieredfs.host import LocalFiles

ID = "0123456789abcdef"
SOURCE = f"tieredfs:vol:{ID}"


def row(
    point: str, source: str = SOURCE, *, root: str = "/", kind: str = "fuse.tieredfs", options: str = "rw"
) -> bytes:
    return f"36 35 98:7 {root} {point} {options},noatime shared:1 master:2 - {kind} {source} rw,user_id=0\n".encode()


class TableFiles(LocalFiles):
    """Files whose mount table is the one given."""

    def __init__(self, table: bytes) -> None:
        self.table = table

    def load(self, path: str) -> bytes:
        assert path == "/proc/self/mountinfo"
        return self.table


def test_a_row() -> None:
    (mount,) = parse_mount_table(row("/mnt", root="/sub", options="ro"))
    assert (mount.mount_point, mount.root, mount.kind, mount.source) == ("/mnt", "/sub", "fuse.tieredfs", SOURCE)
    assert (mount.device, mount.read_only, mount.volume_name, mount.mount_id) == ((98, 7), True, "vol", ID)


def test_the_source_round_trips() -> None:
    (mount,) = parse_mount_table(row("/mnt", mount_source("my-volume", ID)))
    assert (mount.volume_name, mount.mount_id) == ("my-volume", ID)


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_any_file_name_survives_the_escapes(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)
    table = b"36 35 98:7 / /mnt/%s rw - fuse.tieredfs %s rw\n" % (escaped, SOURCE.encode())
    (mount,) = parse_mount_table(table)
    assert os.fsencode(mount.mount_point) == b"/mnt/" + name


@given(st.binary(max_size=200))
def test_garbage_is_no_row(line: bytes) -> None:
    assert parse_mount_table(line.replace(b" - ", b"")) == []


def test_only_sources_of_ours_are_ours() -> None:
    for source in (
        "tmpfs",
        "tieredfs",
        "tieredfs:vol",
        f"tieredfs:vol:{ID[:-1]}",
        f"tieredfs:vol:{ID.upper()}",
        f"x{SOURCE}",
    ):
        assert our_mounts(TableFiles(row("/mnt", source))) == [], source
    assert len(our_mounts(TableFiles(row("/mnt", kind="fuse.python3")))) == 1


def test_a_later_mount_covers_an_earlier_one() -> None:
    files = TableFiles(row("/mnt") + row("/mnt", "tmpfs", kind="tmpfs"))
    assert our_mounts(files) == []
    assert find_mount("/mnt/file", files) is None


def test_the_deepest_mount_counts() -> None:
    inner = f"tieredfs:inner:{ID[::-1]}"
    files = TableFiles(
        row("/", "root", kind="ext4") + row("/mnt") + row("/mnt/a", inner) + row("/mnt/b", "x", kind="tmpfs")
    )
    found = {path: find_mount(path, files) for path in ("/mnt/x", "/mnt/a/x", "/mnt/b/x", "/mntx", "/other")}
    assert {path: mount.volume_name if mount else None for path, mount in found.items()} == {
        "/mnt/x": "vol",
        "/mnt/a/x": "inner",
        "/mnt/b/x": None,
        "/mntx": None,
        "/other": None,
    }


def test_paths_relative_to_the_volume() -> None:
    (plain,) = parse_mount_table(row("/mnt"))
    (bound,) = parse_mount_table(row("/mnt", root="/sub/dir"))
    assert [plain.relative(path) for path in ("/mnt", "/mnt/", "/mnt/a/b")] == ["", "", "a/b"]
    assert [bound.relative(path) for path in ("/mnt", "/mnt/a")] == ["sub/dir", "sub/dir/a"]


def test_symlinks_are_followed_to_the_mount_and_dots_resolved(tmp_path: Path) -> None:
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    (tmp_path / "link").symlink_to("mnt/inside")
    (tmp_path / "loop").symlink_to("loop")
    (mount_point / "inner").symlink_to("/elsewhere")  # on the mount: must not be followed
    files = TableFiles(row("/", "root", kind="ext4") + row(str(mount_point)))
    for path, inside in (("link/x", "inside/x"), ("mnt/./a/../b", "b"), ("mnt/inner/x", "inner/x"), ("mnt", "")):
        located = locate(str(tmp_path / path), files)
        assert located is not None, path
        assert located[0].relative(located[1]) == inside
    assert locate(str(tmp_path / "mnt/.."), files) is None
    assert locate(str(tmp_path / "loop"), files) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_of_the_kernel_with_an_awkward_name(tmp_path: Path) -> None:
    point = tmp_path / "a b\\040\tc#\nd"
    point.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", SOURCE, str(point)], check=False, timeout=20).returncode != 0:
        pytest.skip("this root may not mount")
    try:
        mount = find_mount(str(point / "file"))
        assert mount is not None
        assert (mount.mount_point, mount.mount_id) == (str(point), ID)
        assert str(point) in [one.mount_point for one in our_mounts()]
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=20)
    assert find_mount(str(point / "file")) is None
