"""What programs rely on when one process uses a file system: files and names. See `tieredfs.testing.features`.

Each test states one promise, asks the kernel for it, and knows nothing of what is below. The suites pass on ext4, which
is how we know that they ask for no more than POSIX as Linux has it. What takes several processes is in
`process_suite`, whole programs are in `program_suite`, attributes in `attribute_suite`.
"""

import errno
import mmap
import os
import socket
import stat
from pathlib import Path
from typing import Final

import pytest

from tieredfs.host import libc
from tieredfs.limits import KIB, MIB, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, TIB
from tieredfs.testing.features import Features, fails, needs, opened, write_file
from tieredfs.testing.loopback import renameat2

AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class FileSuite:
    """Contents: open modes, reading and writing, sizes, holes, maps, removal while open."""

    def test_exclusive_create_refuses_an_existing_name(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x")
        with fails(errno.EEXIST):
            os.open(mounted / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.symlink("nowhere", mounted / "link")
        with fails(errno.EEXIST):
            os.open(mounted / "link", os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def test_open_without_create_needs_the_file(self, mounted: Path) -> None:
        with fails(errno.ENOENT):
            os.open(mounted / "absent", os.O_RDWR)
        with fails(errno.ENOENT):
            os.open(mounted / "absent" / "f", os.O_RDWR | os.O_CREAT)

    def test_directories_cannot_be_written(self, mounted: Path) -> None:
        with fails(errno.EISDIR):
            os.open(mounted, os.O_WRONLY)
        write_file(mounted / "f", b"")
        with fails(errno.ENOTDIR):
            os.open(mounted / "f" / "g", os.O_RDONLY)
        with fails(errno.ENOTDIR):
            os.open(mounted / "f", os.O_RDONLY | os.O_DIRECTORY)

    def test_access_mode_is_kept(self, mounted: Path) -> None:
        write_file(mounted / "f", b"abc")
        with opened(mounted / "f", os.O_RDONLY) as descriptor, fails(errno.EBADF):
            os.write(descriptor, b"x")
        with opened(mounted / "f", os.O_WRONLY) as descriptor, fails(errno.EBADF):
            os.read(descriptor, 1)

    def test_truncating_open_empties_the_file(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x" * 10_000)
        with opened(mounted / "f", os.O_RDWR | os.O_TRUNC) as descriptor:
            assert os.fstat(descriptor).st_size == 0
            assert os.read(descriptor, 10) == b""

    def test_append_writes_at_the_end_wherever_the_position_is(self, mounted: Path) -> None:
        write_file(mounted / "f", b"head")
        with opened(mounted / "f", os.O_RDWR | os.O_APPEND) as descriptor:
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, b"-tail")
            os.truncate(mounted / "f", 4)
            os.write(descriptor, b"+end")
        assert (mounted / "f").read_bytes() == b"head+end"

    def test_positional_reads_and_writes(self, mounted: Path) -> None:
        with opened(mounted / "f", os.O_RDWR | os.O_CREAT) as descriptor:
            assert os.pwrite(descriptor, b"world", 100_000) == 5
            assert os.pwrite(descriptor, b"hello", 0) == 5
            assert os.pread(descriptor, 5, 100_000) == b"world"
            assert os.pread(descriptor, 10, 99_995) == b"\0" * 5 + b"world"
            assert os.pread(descriptor, 10, 100_005) == b""
            assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
            assert os.preadv(descriptor, [bytearray(3), bytearray(4)], 0) == 7

    def test_large_transfers_are_whole(self, mounted: Path) -> None:
        data = os.urandom(3 * MIB + 17)
        write_file(mounted / "f", data)
        with opened(mounted / "f", os.O_RDONLY) as descriptor:
            assert os.pread(descriptor, len(data) + 100, 0) == data
            assert os.pread(descriptor, MIB, 2 * MIB + 3) == data[2 * MIB + 3 : 3 * MIB + 3]

    def test_truncate_cuts_and_extends_with_zeros(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"x" * 10_000)
        os.truncate(path, 5_000)
        os.truncate(path, 7_000)
        assert path.read_bytes() == b"x" * 5_000 + b"\0" * 2_000
        with opened(path, os.O_RDWR) as descriptor:
            os.ftruncate(descriptor, 100)
            os.ftruncate(descriptor, 200)
            assert os.fstat(descriptor).st_size == 200
            assert os.pread(descriptor, 300, 0) == b"x" * 100 + b"\0" * 100
        assert path.stat().st_size == 200
        with fails(errno.EINVAL):
            os.truncate(path, -1)
        with fails(errno.EISDIR):
            os.truncate(mounted, 0)

    def test_truncate_through_a_read_only_descriptor_is_refused(self, mounted: Path) -> None:
        write_file(mounted / "f", b"abc")
        with opened(mounted / "f", os.O_RDONLY) as descriptor, fails(errno.EINVAL, errno.EBADF):
            os.ftruncate(descriptor, 0)

    def test_holes_read_as_zeros_and_seek_tells_data(self, mounted: Path) -> None:
        with opened(mounted / "f", os.O_RDWR | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, b"d" * 4096, 8 * MIB)
            os.ftruncate(descriptor, 16 * MIB)
            assert os.pread(descriptor, 4096, MIB) == b"\0" * 4096
            # Coarse answers are allowed (all is data, one hole at the end); wrong ones are not.
            assert os.lseek(descriptor, 0, os.SEEK_DATA) in range(8 * MIB + 1)
            assert os.lseek(descriptor, 8 * MIB, os.SEEK_DATA) == 8 * MIB
            assert 8 * MIB + 4096 <= os.lseek(descriptor, 8 * MIB, os.SEEK_HOLE) <= 16 * MIB
            for offset in (16 * MIB, -1):
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    with fails(errno.ENXIO, *([errno.EINVAL] if offset < 0 else [])):
                        os.lseek(descriptor, offset, whence)

    def test_sparse_file_of_a_tebibyte(self, mounted: Path, features: Features) -> None:
        path = mounted / "f"
        with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            os.ftruncate(descriptor, TIB)
            assert os.pwrite(descriptor, b"end", TIB - 3) == 3
            assert os.pread(descriptor, 10, TIB - 3) == b"end"
            assert os.pread(descriptor, 4096, TIB // 2) == b"\0" * 4096
            assert os.fstat(descriptor).st_size == TIB
        assert path.stat().st_size == TIB
        if features.allocated_blocks:
            assert path.stat().st_blocks * 512 < 16 * MIB

    def test_fallocate_extends_or_keeps_the_size(self, mounted: Path, features: Features) -> None:
        needs(features.fallocate, "fallocate")
        with opened(mounted / "f", os.O_RDWR | os.O_CREAT) as descriptor:
            os.posix_fallocate(descriptor, 0, 100_000)
            assert os.fstat(descriptor).st_size == 100_000
            libc.fallocate(descriptor, libc.FALLOC_FL_KEEP_SIZE, 0, MIB)
            assert os.fstat(descriptor).st_size == 100_000
            assert os.pread(descriptor, 100_000, 0) == b"\0" * 100_000
            with fails(errno.EINVAL):
                libc.fallocate(descriptor, 0, -1, 10)

    def test_punched_holes_read_as_zeros(self, mounted: Path, features: Features) -> None:
        needs(features.punch_hole, "FALLOC_FL_PUNCH_HOLE")
        write_file(mounted / "f", b"x" * 100_000)
        with opened(mounted / "f", os.O_RDWR) as descriptor:
            libc.fallocate(descriptor, libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, 10_000, 50_000)
            assert os.pread(descriptor, 100_000, 0) == b"x" * 10_000 + b"\0" * 50_000 + b"x" * 40_000

    def test_fallocate_is_refused_where_it_is_absent(self, mounted: Path, features: Features) -> None:
        if features.fallocate:
            pytest.skip("present here")
        with opened(mounted / "f", os.O_RDWR | os.O_CREAT) as descriptor, fails(errno.EOPNOTSUPP):
            libc.fallocate(descriptor, 0, 0, 4096)

    def test_sync_calls_succeed(self, mounted: Path) -> None:
        with opened(mounted / "f", os.O_RDWR | os.O_CREAT) as descriptor:
            os.write(descriptor, b"abc")
            os.fdatasync(descriptor)
            os.fsync(descriptor)
        with opened(mounted, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)

    def test_a_removed_file_lives_while_it_is_open(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"before")
        with opened(path, os.O_RDWR) as descriptor:
            os.unlink(path)
            assert os.listdir(mounted) == []
            assert os.fstat(descriptor).st_nlink == 0
            assert os.pread(descriptor, 10, 0) == b"before"
            os.pwrite(descriptor, b"after", 100)
            os.ftruncate(descriptor, 103)
            os.fchmod(descriptor, 0o600)
            status = os.fstat(descriptor)
            assert (status.st_size, stat.S_IMODE(status.st_mode)) == (103, 0o600)
            assert os.pread(descriptor, 10, 98) == b"\0\0aft"
            os.fsync(descriptor)
            write_file(path, b"another")
            assert os.pread(descriptor, 6, 0) == b"before"
        os.unlink(path)
        os.rmdir(mounted)
        os.mkdir(mounted)

    def test_a_replaced_file_lives_while_it_is_open(self, mounted: Path) -> None:
        write_file(mounted / "old", b"old")
        write_file(mounted / "new", b"new")
        with opened(mounted / "old", os.O_RDONLY) as descriptor:
            os.rename(mounted / "new", mounted / "old")
            assert os.listdir(mounted) == ["old"]
            assert os.pread(descriptor, 3, 0) == b"old"
            assert os.fstat(descriptor).st_nlink == 0
        assert (mounted / "old").read_bytes() == b"new"

    def test_shared_map_is_the_file(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"a" * 20_000)
        with opened(path, os.O_RDWR) as descriptor:
            with mmap.mmap(descriptor, 20_000) as memory:
                memory[5_000:5_005] = b"HELLO"
                assert os.pread(descriptor, 5, 5_000) == b"HELLO"
                os.pwrite(descriptor, b"world", 10_000)
                assert memory[10_000:10_005] == b"world"
                memory.flush()
            os.fsync(descriptor)
        data = path.read_bytes()
        assert (data[5_000:5_005], data[10_000:10_005], len(data)) == (b"HELLO", b"world", 20_000)

    def test_map_outlives_its_descriptor(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"a" * 8_192)
        with opened(path, os.O_RDWR) as descriptor:
            memory = mmap.mmap(descriptor, 8_192)
        memory[0:3] = b"xyz"
        memory.flush()
        memory.close()
        assert path.read_bytes()[:5] == b"xyzaa"

    def test_private_map_keeps_its_changes_to_itself(self, mounted: Path) -> None:
        path = write_file(mounted / "f", b"a" * 8_192)
        with (
            opened(path, os.O_RDONLY) as descriptor,
            mmap.mmap(descriptor, 8_192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory,
        ):
            memory[0:3] = b"xyz"
            assert os.pread(descriptor, 3, 0) == b"aaa"

    def test_direct_io(self, mounted: Path) -> None:
        path = mounted / "f"
        with mmap.mmap(-1, 64 * KIB) as memory:
            memory[:] = os.urandom(64 * KIB)
            with opened(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT) as descriptor:
                assert os.pwritev(descriptor, [memory], 128 * KIB) == 64 * KIB
            assert path.read_bytes() == b"\0" * (128 * KIB) + memory[:]
            with mmap.mmap(-1, 64 * KIB) as target, opened(path, os.O_RDONLY | os.O_DIRECT) as descriptor:
                assert os.preadv(descriptor, [target], 128 * KIB) == 64 * KIB
                assert target[:] == memory[:]

    def test_sizes_beyond_the_limit_are_refused(self, mounted: Path) -> None:
        write_file(mounted / "f", b"")
        with fails(errno.EFBIG, errno.EINVAL):
            os.truncate(mounted / "f", (1 << 63) - 1)
        assert (mounted / "f").stat().st_size == 0


class NameSuite:
    """Directories, links, renames, and names at their limits."""

    def test_rename_replaces_a_file(self, mounted: Path) -> None:
        write_file(mounted / "a", b"a")
        write_file(mounted / "b", b"b")
        before = (mounted / "a").stat().st_ino
        os.rename(mounted / "a", mounted / "b")
        assert os.listdir(mounted) == ["b"]
        assert ((mounted / "b").read_bytes(), (mounted / "b").stat().st_ino) == (b"a", before)

    def test_rename_between_kinds(self, mounted: Path) -> None:
        write_file(mounted / "file", b"")
        os.mkdir(mounted / "dir")
        with fails(errno.EISDIR):
            os.rename(mounted / "file", mounted / "dir")
        with fails(errno.ENOTDIR):
            os.rename(mounted / "dir", mounted / "file")
        with fails(errno.ENOENT):
            os.rename(mounted / "absent", mounted / "file")

    def test_rename_of_directories(self, mounted: Path) -> None:
        for name in ("source", "empty", "full", "full/sub"):
            os.mkdir(mounted / name)
        write_file(mounted / "source" / "f", b"inside")
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(mounted / "source", mounted / "full")
        os.rename(mounted / "source", mounted / "empty")
        assert (mounted / "empty" / "f").read_bytes() == b"inside"
        os.rename(mounted / "empty", mounted / "full" / "sub" / "moved")
        assert (mounted / "full/sub/moved/f").read_bytes() == b"inside"
        assert not (mounted / "empty").exists()
        assert (mounted / "full/sub").stat().st_nlink == 3

    def test_a_directory_cannot_move_below_itself(self, mounted: Path) -> None:
        os.makedirs(mounted / "a/b/c")
        with fails(errno.EINVAL):
            os.rename(mounted / "a", mounted / "a/b/c/d")
        with fails(errno.ENOTEMPTY):
            os.rename(mounted / "a/b", mounted / "a")

    def test_renaming_one_hard_link_over_another_does_nothing(self, mounted: Path) -> None:
        write_file(mounted / "a", b"x")
        os.link(mounted / "a", mounted / "b")
        os.rename(mounted / "a", mounted / "b")
        assert sorted(os.listdir(mounted)) == ["a", "b"]
        assert (mounted / "a").stat().st_nlink == 2

    def test_paths_follow_a_renamed_directory(self, mounted: Path) -> None:
        os.makedirs(mounted / "one/deep")
        write_file(mounted / "one/deep/f", b"1")
        assert (mounted / "one/deep/f").read_bytes() == b"1"
        os.rename(mounted / "one", mounted / "two")
        os.makedirs(mounted / "one/deep")
        write_file(mounted / "one/deep/f", b"2")
        assert (mounted / "two/deep/f").read_bytes() == b"1"
        assert (mounted / "one/deep/f").read_bytes() == b"2"

    def test_rename_without_replacing(self, mounted: Path, features: Features) -> None:
        needs(features.rename_flags, "RENAME_NOREPLACE")
        a, b = bytes(write_file(mounted / "a", b"a")), bytes(write_file(mounted / "b", b"b"))
        with fails(errno.EEXIST):
            renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_NOREPLACE)
        renameat2(AT_FDCWD, a, AT_FDCWD, bytes(mounted / "c"), RENAME_NOREPLACE)
        assert sorted(os.listdir(mounted)) == ["b", "c"]

    def test_rename_exchanges(self, mounted: Path, features: Features) -> None:
        needs(features.rename_flags, "RENAME_EXCHANGE")
        write_file(mounted / "file", b"content")
        os.makedirs(mounted / "dir/sub")
        renameat2(AT_FDCWD, bytes(mounted / "file"), AT_FDCWD, bytes(mounted / "dir"), RENAME_EXCHANGE)
        assert (mounted / "dir").read_bytes() == b"content"
        assert os.listdir(mounted / "file") == ["sub"]
        with fails(errno.ENOENT):
            renameat2(AT_FDCWD, bytes(mounted / "file"), AT_FDCWD, bytes(mounted / "absent"), RENAME_EXCHANGE)

    def test_hard_links_share_an_inode(self, mounted: Path) -> None:
        a = write_file(mounted / "a", b"first")
        os.link(a, mounted / "b")
        assert a.stat().st_ino == (mounted / "b").stat().st_ino
        assert (a.stat().st_nlink, (mounted / "b").stat().st_nlink) == (2, 2)
        write_file(mounted / "b", b"second!")
        assert (a.read_bytes(), a.stat().st_size) == (b"second!", 7)
        os.unlink(mounted / "b")
        assert a.stat().st_nlink == 1

    def test_links_that_cannot_be(self, mounted: Path) -> None:
        os.mkdir(mounted / "dir")
        write_file(mounted / "f", b"")
        with fails(errno.EPERM):
            os.link(mounted / "dir", mounted / "dir2")
        with fails(errno.EEXIST):
            os.link(mounted / "f", mounted / "dir")
        with fails(errno.ENOENT):
            os.link(mounted / "absent", mounted / "x")

    def test_directories_count_their_subdirectories(self, mounted: Path) -> None:
        before = mounted.stat().st_nlink
        os.mkdir(mounted / "a")
        os.mkdir(mounted / "b")
        assert mounted.stat().st_nlink == before + 2
        assert (mounted / "a").stat().st_nlink == 2
        os.rename(mounted / "a", mounted / "b/a")
        assert (mounted.stat().st_nlink, (mounted / "b").stat().st_nlink) == (before + 1, 3)
        os.rmdir(mounted / "b/a")
        assert (mounted / "b").stat().st_nlink == 2

    def test_symlinks(self, mounted: Path) -> None:
        target = b"t" * 200 + b"/" + b"\xff\xfe" * 100
        longest = (b"long/" * 819)[:SYMLINK_BYTES_MAX]
        assert len(longest) == SYMLINK_BYTES_MAX
        for name, text in ((b"bytes", target), (b"longest", longest), (b"loop", b"loop")):
            os.symlink(text, bytes(mounted) + b"/" + name)
            assert os.readlink(bytes(mounted) + b"/" + name) == text
            assert os.lstat(bytes(mounted) + b"/" + name).st_size == len(text)
        with fails(errno.ELOOP):
            os.open(mounted / "loop", os.O_RDONLY)
        with fails(errno.EINVAL):
            os.readlink(mounted)
        with fails(errno.ENAMETOOLONG):
            os.symlink(b"x" * 4096, mounted / "too-long")
        with fails(errno.ENOENT):
            os.symlink("", mounted / "empty")

    def test_symlinks_are_followed(self, mounted: Path) -> None:
        os.mkdir(mounted / "dir")
        os.symlink("dir", mounted / "link")
        write_file(mounted / "link" / "f", b"through")
        assert (mounted / "dir/f").read_bytes() == b"through"
        os.unlink(mounted / "link")
        assert (mounted / "dir/f").exists()

    def test_directory_errors(self, mounted: Path) -> None:
        os.mkdir(mounted / "dir")
        write_file(mounted / "dir/f", b"")
        with fails(errno.EEXIST):
            os.mkdir(mounted / "dir")
        with fails(errno.ENOENT):
            os.mkdir(mounted / "absent/dir")
        with fails(errno.ENOTDIR):
            os.mkdir(mounted / "dir/f/dir")
        with fails(errno.ENOTEMPTY):
            os.rmdir(mounted / "dir")
        with fails(errno.ENOTDIR):
            os.rmdir(mounted / "dir/f")
        with fails(errno.EISDIR):
            os.unlink(mounted / "dir")
        with fails(errno.ENOENT):
            os.unlink(mounted / "absent")
        with fails(errno.EINVAL):
            os.rmdir(f"{mounted}/dir/.")

    def test_an_open_directory_outlives_its_removal(self, mounted: Path, features: Features) -> None:
        needs(features.open_removed_directories, "attributes of an open directory that was removed")
        os.mkdir(mounted / "dir")
        with opened(mounted / "dir", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.rmdir(mounted / "dir")
            assert stat.S_ISDIR(os.fstat(descriptor).st_mode)
            assert os.fstatvfs(descriptor).f_blocks > 0
            with fails(errno.ENOENT):
                os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
            assert os.listdir(descriptor) == []

    def test_listing_shows_kinds_and_inodes(self, mounted: Path) -> None:
        os.mkdir(mounted / "dir")
        write_file(mounted / "file", b"")
        os.symlink("x", mounted / "link")
        with os.scandir(mounted) as entries:
            seen = {e.name: (e.is_dir(follow_symlinks=False), e.is_symlink(), e.inode()) for e in entries}
        expected = {name: os.lstat(mounted / name).st_ino for name in ("dir", "file", "link")}
        assert seen == {
            "dir": (True, False, expected["dir"]),
            "file": (False, False, expected["file"]),
            "link": (False, True, expected["link"]),
        }

    def test_a_listing_that_is_modified_meanwhile(self, mounted: Path) -> None:
        """Names that stay are seen exactly once, whatever comes and goes between two calls of getdents."""
        staying = {f"stay-{number:04d}" for number in range(1500)}
        for name in staying:
            os.mknod(mounted / name)
        seen: list[str] = []
        with os.scandir(mounted) as entries:
            for number, entry in enumerate(entries):
                seen.append(entry.name)
                if number % 3 == 0:
                    os.mknod(mounted / f"new-{number}")
                if number % 3 == 1 and entry.name.startswith("new-"):
                    os.unlink(mounted / entry.name)
        kept = [name for name in seen if name in staying]
        assert len(kept) == len(staying)
        assert set(kept) == staying

    def test_names_at_their_limit(self, mounted: Path) -> None:
        name = "n" * NAME_BYTES_MAX
        write_file(mounted / name, b"")
        os.rename(mounted / name, mounted / ("m" * NAME_BYTES_MAX))
        assert os.listdir(mounted) == ["m" * NAME_BYTES_MAX]
        longer = mounted / (name + "n")
        with fails(errno.ENAMETOOLONG):
            os.open(longer, os.O_CREAT | os.O_WRONLY)
        for call in (os.mkdir, os.stat, os.unlink, os.mknod):
            with fails(errno.ENAMETOOLONG):
                call(longer)
        with fails(errno.ENAMETOOLONG):
            os.symlink("x", longer)

    def test_names_are_bytes(self, mounted: Path) -> None:
        base = bytes(mounted) + b"/"
        names = [b"\xff\xfe", b"tab\tnew\nline", b"\xc3\x28", "ünï".encode(), b" ", b"-rf", b"%s\\"]
        for name in names:
            os.mkdir(base + name)
            with open(base + name + b"/\x80inner", "wb") as file:
                file.write(name)
        assert sorted(os.listdir(bytes(mounted))) == sorted(names)
        for name in names:
            with open(base + name + b"/\x80inner", "rb") as file:
                assert file.read() == name
            os.rename(base + name, base + name + b"\xfd")
            assert os.listdir(base + name + b"\xfd") == [b"\x80inner"]

    def test_paths_at_their_limit(self, mounted: Path) -> None:
        path = bytes(mounted)
        while len(path) + 203 < 4096:
            path += b"/" + b"d" * 200
            os.mkdir(path)
        path += b"/" + b"f" * (4095 - len(path) - 1)
        assert len(path) == 4095, "with its NUL the longest that the kernel takes"
        with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
            os.write(descriptor, b"deep")
        with opened(path, os.O_RDONLY) as descriptor:
            assert os.read(descriptor, 10) == b"deep"
        with fails(errno.ENAMETOOLONG):
            os.stat(path + b"f")

    def test_a_thousand_nested_directories(self, mounted: Path) -> None:
        # By descriptors: the path is beyond what one call takes.
        trail = [os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)]
        try:
            for _ in range(1000):
                os.mkdir("d", dir_fd=trail[-1])
                trail.append(os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=trail[-1]))
                if len(trail) > 2:
                    os.close(trail.pop(0))
            with open(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=trail[-1]), "wb") as file:
                file.write(b"bottom")
            assert os.stat("f", dir_fd=trail[-1]).st_size == 6
            os.unlink("f", dir_fd=trail[-1])
            for _ in range(1000):
                above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=trail[-1])
                trail.append(above)
                os.rmdir("d", dir_fd=above)
                os.close(trail.pop(0))
        finally:
            for descriptor in trail:
                os.close(descriptor)
        assert os.listdir(mounted) == []

    def test_fifos_and_sockets(self, mounted: Path) -> None:
        os.mkfifo(mounted / "fifo", 0o640)
        assert stat.S_ISFIFO(os.lstat(mounted / "fifo").st_mode)
        with opened(mounted / "fifo", os.O_RDWR | os.O_NONBLOCK) as descriptor:
            os.write(descriptor, b"through")
            assert os.read(descriptor, 10) == b"through"
        here = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            try:
                server.bind(f"/proc/self/fd/{here}/socket")
                server.listen(1)
                client.connect(f"/proc/self/fd/{here}/socket")
            finally:
                os.close(here)
        assert stat.S_ISSOCK(os.lstat(mounted / "socket").st_mode)

    def test_statvfs_makes_sense(self, mounted: Path) -> None:
        status = os.statvfs(mounted)
        assert status.f_bavail <= status.f_bfree <= status.f_blocks
        assert status.f_blocks * status.f_frsize > 0
        assert status.f_namemax == NAME_BYTES_MAX
