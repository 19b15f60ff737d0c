"""What programs rely on of attributes: modes, owners, rights, times, extended attributes. Belongs to `posix_suite`."""

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tieredfs.limits import KIB
from tieredfs.testing.features import NOBODY, Features, fails, needs, opened, run_child, write_file

AT_FDCWD: Final = -100
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
ROUNDS_OF_CHANGES: Final = 40

_libc = ctypes.CDLL(None, use_errno=True)


def _utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with (seconds, nanoseconds), where nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), times, 0) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"x")


def _changes(directory: Path, number: int) -> Iterator[Path]:
    """One after another, of what is made and of what is written; of each the path whose ctime it moves."""
    kept, written, made, touched = (directory / name for name in ("kept", f"w{number}", f"m{number}", f"t{number}"))
    touched.touch()
    yield touched
    write_file(written, b"x")
    yield written
    made.mkdir()
    yield made
    _append(kept)
    yield kept
    touched.touch()
    yield touched
    _append(written)
    yield written
    touched.chmod(0o600)
    yield touched
    os.truncate(kept, 1)
    yield kept
    os.setxattr(touched, "user.number", b"%d" % number)
    yield touched
    _append(kept)
    yield kept
    touched.rename(made / "moved")
    yield made
    _append(written)
    yield written
    os.link(written, made / "link")
    yield made
    _append(kept)
    yield kept
    (made / "link").unlink()
    yield made


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class AttributeSuite:
    """Modes, owners, rights, times, extended attributes."""

    def test_umask_applies_at_creation(self, mounted: Path) -> None:
        before = os.umask(0o027)
        try:
            os.close(os.open(mounted / "f", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(mounted / "d", 0o777)
            os.mknod(mounted / "n", 0o666 | stat.S_IFREG)
        finally:
            os.umask(before)
        assert [_mode(mounted / name) for name in "fdn"] == [0o640, 0o750, 0o640]

    def test_chmod(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"")
        for mode in (0o000, 0o4755, 0o2711, 0o1644, 0o600):
            os.chmod(path, mode)
            assert _mode(path) == mode
        with opened(path, os.O_RDONLY) as descriptor:
            os.fchmod(descriptor, 0o444)
        assert _mode(path) == 0o444
        assert stat.S_ISREG(path.stat().st_mode)

    def test_a_change_of_mode_moves_ctime_only(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"")
        os.utime(path, (1_000, 2_000))
        os.chmod(path, 0o600)
        status = path.stat()
        assert (status.st_atime, status.st_mtime) == (1_000, 2_000)
        assert status.st_ctime > 2_000

    def test_chown(self, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        path = write_file(mounted / "f", b"")
        os.chown(path, 12, 34)
        os.chown(path, -1, 56)
        assert (path.stat().st_uid, path.stat().st_gid) == (12, 56)
        os.chown(path, 4_000_000_000, -1)
        assert (path.stat().st_uid, path.stat().st_gid) == (4_000_000_000, 56)
        os.symlink("f", mounted / "link")
        os.chown(mounted / "link", 7, 8, follow_symlinks=False)
        assert (os.lstat(mounted / "link").st_uid, path.stat().st_uid) == (7, 4_000_000_000)

    def test_chown_of_nothing_drops_setuid(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"")
        os.chmod(path, 0o6755)
        os.chown(path, -1, -1)
        assert _mode(path) == 0o755
        os.mkdir(mounted / "d")
        os.chmod(mounted / "d", 0o2755)
        os.chown(mounted / "d", -1, -1)
        assert _mode(mounted / "d") == 0o2755

    @pytest.mark.parametrize(
        "change",
        [
            "file = os.open('f', os.O_WRONLY); os.write(file, b'x')",
            "file = os.open('f', os.O_WRONLY); os.chmod('f', 0o6777); os.write(file, b'x')",
            "os.truncate('f', 1)",
            "os.open('f', os.O_WRONLY | os.O_TRUNC)",
        ],
    )
    def test_a_change_by_its_owner_drops_setuid(self, change: str, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become somebody else")
        os.chmod(mounted, 0o755)
        path = write_file(mounted / "f", b"content")
        os.chown(path, NOBODY, NOBODY)
        os.chmod(path, 0o6777)
        run_child(f"import os\n{change}", cwd=mounted, user=NOBODY)
        assert _mode(path) == 0o777

    def test_times_before_1970_hurt_nobody(self, mounted: Path, features: Features) -> None:
        path = write_file(mounted / "f", b"content")
        os.utime(path, (-5, -6))
        assert path.stat().st_mtime == (-6 if features.nanosecond_times else 0)
        assert path.read_bytes() == b"content"

    def test_numbers_of_devices_are_kept(self, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        for number in (os.makedev(1, 3), os.makedev(0xFFF, 0xFFFFF)):
            os.mknod(mounted / f"{number}", 0o600 | stat.S_IFBLK, number)
            assert (mounted / f"{number}").stat().st_rdev == number

    def test_set_gid_directories_give_their_group(self, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        os.mkdir(mounted / "d")
        os.chown(mounted / "d", 0, 77)
        os.chmod(mounted / "d", 0o2775)
        os.mkdir(mounted / "d/sub")
        write_file(mounted / "d/f", b"")
        assert ((mounted / "d/sub").stat().st_gid, (mounted / "d/f").stat().st_gid) == (77, 77)
        assert _mode(mounted / "d/sub") & stat.S_ISGID
        assert not _mode(mounted / "d/f") & stat.S_ISGID

    def test_rights_are_enforced(self, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become somebody else")
        os.chmod(mounted, 0o755)
        write_file(mounted / "private", b"", 0o600)
        os.chmod(write_file(mounted / "public", b"ok"), 0o644)
        os.mkdir(mounted / "shared")
        os.chmod(mounted / "shared", 0o1777)
        os.chmod(write_file(mounted / "shared/roots", b""), 0o666)
        script = (
            "import os\n"
            "def refused(number, call, *arguments):\n"
            "    try: call(*arguments)\n"
            "    except OSError as error: assert error.errno == number, error\n"
            "    else: raise SystemExit(f'{call} {arguments} succeeded')\n"
            "refused(13, os.open, 'private', os.O_RDONLY)\n"
            "refused(13, os.open, 'public', os.O_WRONLY)\n"
            "refused(13, os.mkdir, 'dir')\n"
            "refused(13, os.unlink, 'public')\n"
            "refused(1, os.chmod, 'public', 0o777)\n"
            "refused(1, os.chown, 'public', os.getuid(), -1)\n"
            "refused(1, os.unlink, 'shared/roots')\n"
            "assert os.read(os.open('public', os.O_RDONLY), 9) == b'ok'\n"
            "os.mkdir('shared/mine'); os.close(os.open('shared/mine/f', os.O_CREAT | os.O_WRONLY, 0o400))\n"
            "refused(13, os.open, 'shared/mine/f', os.O_WRONLY)\n"
            "os.chmod('shared/mine/f', 0o600); os.rename('shared/mine', 'shared/ours')\n"
        )
        run_child(script, cwd=mounted, user=NOBODY)
        status = (mounted / "shared/ours/f").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, 0o600)

    def test_times_are_set_and_kept(self, mounted: Path, features: Features) -> None:
        path = write_file(mounted / "f", b"")
        os.mkdir(mounted / "d")
        os.symlink("f", mounted / "l")
        unit = 1 if features.nanosecond_times else 1_000_000_000
        atime, mtime = 1_111_111_111_123_456_789, 1_222_222_222_987_654_321
        for name in "fdl":
            os.utime(mounted / name, ns=(atime, mtime), follow_symlinks=False)
            status = os.lstat(mounted / name)
            assert (status.st_atime_ns, status.st_mtime_ns) == (atime // unit * unit, mtime // unit * unit)
        write_file(path, b"x")
        assert path.stat().st_mtime_ns > mtime

    def test_a_time_that_is_too_late_is_the_latest_that_can_be_kept(self, mounted: Path, features: Features) -> None:
        needs(features.nanosecond_times, "times that are more than a file system can keep (refused as invalid)")
        path = write_file(mounted / "f", b"")
        latest = (1 << 63) // 10**9
        _utimensat(path, (latest * 4, 0), (latest * 4, 0))
        assert 1 << 33 < path.stat().st_mtime <= latest * 4
        assert 1 << 33 < path.stat().st_atime <= latest * 4

    def test_single_times_are_omitted_or_now(self, mounted: Path, features: Features) -> None:
        path = write_file(mounted / "f", b"")
        os.utime(path, (1_000, 2_000))
        _utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW))
        assert path.stat().st_atime > 1_000_000_000
        needs(features.single_time_changes, "utimensat with one UTIME_OMIT")
        os.utime(path, (1_000, 2_000))
        _utimensat(path, (0, UTIME_OMIT), (3_000, 0))
        assert (path.stat().st_atime, path.stat().st_mtime) == (1_000, 3_000)
        _utimensat(path, (4_000, 0), (0, UTIME_OMIT))
        assert (path.stat().st_atime, path.stat().st_mtime) == (4_000, 3_000)

    def test_directory_times_move_with_their_entries(self, mounted: Path) -> None:
        calls: list[Callable[[], None]] = [
            lambda: os.mkdir(mounted / "a"),
            lambda: os.rename(mounted / "a", mounted / "b"),
            lambda: os.rmdir(mounted / "b"),
        ]
        for call in calls:
            os.utime(mounted, (1_000, 1_000))
            call()
            assert mounted.stat().st_mtime > 1_000

    def test_the_order_of_changes_is_the_order_of_times(self, mounted: Path) -> None:
        """What make(1) lives by. A file system stamps what is written and what is made in different places; the clock of none
        may be ahead of the others, or behind."""
        write_file(mounted / "kept", b"")
        for number in range(ROUNDS_OF_CHANGES):
            times = [path.stat().st_ctime_ns for path in _changes(mounted, number)]
            assert times == sorted(times), f"round {number}"

    def test_changes_that_nobody_looked_at_have_their_order_too(self, mounted: Path) -> None:
        """Before Linux 6.13 that makes no difference; since then a file that nobody has looked at gets a coarser time."""
        for number in range(ROUNDS_OF_CHANGES):
            made = []
            for step in range(4):
                made += [mounted / f"touched-{number}-{step}", mounted / f"written-{number}-{step}"]
                made[-2].touch()
                write_file(made[-1], b"x")
            times = [path.stat().st_mtime_ns for path in made]
            assert times == sorted(times), f"round {number}"

    @pytest.mark.parametrize("end", ["fsync", "close"])
    def test_what_is_written_through_a_map_shows_in_the_times(self, end: str, mounted: Path) -> None:
        """At the latest when it is synced, or its descriptor closed."""
        path = write_file(mounted / "f", b"a" * 4_096)
        with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 4_096) as memory:
            os.utime(path, (1_000, 1_000))
            assert path.stat().st_mtime == 1_000
            memory[0:1] = b"b"
            if end == "fsync":
                os.fsync(descriptor)
                assert path.stat().st_mtime > 1_000
        assert path.stat().st_mtime > 1_000

    def test_xattrs(self, mounted: Path, features: Features) -> None:
        path = write_file(mounted / "f", b"")
        assert os.listxattr(path) == []
        os.setxattr(path, "user.one", b"1", os.XATTR_CREATE)
        os.setxattr(path, "user.two", b"")
        with fails(errno.EEXIST):
            os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
        with fails(errno.ENODATA):
            os.setxattr(path, "user.three", b"3", os.XATTR_REPLACE)
        with fails(errno.EEXIST):
            os.setxattr(path, "user.one", b"2", os.XATTR_CREATE | os.XATTR_REPLACE)
        os.setxattr(path, "user.one", b"uno", os.XATTR_REPLACE)
        assert sorted(os.listxattr(path)) == ["user.one", "user.two"]
        assert (os.getxattr(path, "user.one"), os.getxattr(path, "user.two")) == (b"uno", b"")
        os.removexattr(path, "user.two")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.two")
        with fails(errno.ENODATA):
            os.getxattr(path, "user.two")
        os.rename(path, mounted / "g")
        assert os.listxattr(mounted / "g") == ["user.one"]
        needs(features.binary_xattrs, "extended attribute values that are not UTF-8")
        os.setxattr(mounted / "g", "user.one", bytes(range(256)))
        assert os.getxattr(mounted / "g", "user.one") == bytes(range(256))

    def test_xattrs_have_a_namespace(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"")
        for name in ("user", "plain", "other.name", "system.name"):
            with fails(errno.ENOTSUP):
                os.setxattr(path, name, b"v")
            with fails(errno.ENOTSUP):
                os.getxattr(path, name)
            with fails(errno.ENOTSUP):
                os.removexattr(path, name)
        with fails(errno.EINVAL):
            os.setxattr(path, "user.", b"v")
        with fails(errno.EINVAL):
            os.getxattr(path, "user.")
        assert os.listxattr(path) == []

    def test_trusted_xattrs_are_root_s_alone(self, mounted: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become somebody else")
        os.chmod(mounted, 0o755)
        path = write_file(mounted / "f", b"")
        os.setxattr(path, "trusted.one", b"1")
        os.setxattr(path, "user.two", b"2")
        assert sorted(os.listxattr(path)) == ["trusted.one", "user.two"]
        run_child("import os\nassert os.listxattr('f') == ['user.two'], os.listxattr('f')", cwd=mounted, user=NOBODY)

    def test_xattr_limits(self, mounted: Path, features: Features) -> None:
        os.mkdir(mounted / "d")
        value = b"v" * features.xattr_value_bytes_max
        os.setxattr(mounted / "d", "user.large", value)
        assert os.getxattr(mounted / "d", "user.large") == value
        with fails(errno.E2BIG, errno.ENOSPC):
            os.setxattr(mounted / "d", "user.large", b"v" * (64 * KIB + 1))
        with fails(errno.ERANGE):
            os.setxattr(mounted / "d", "user." + "n" * 251, b"")

    def test_many_xattrs_are_listed(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"")
        names = sorted(f"user.{number:03d}-{'n' * 20}" for number in range(40))
        for name in names:
            os.setxattr(path, name, b"v")
        assert sorted(os.listxattr(path)) == names
