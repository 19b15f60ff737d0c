"""The bytes of the FUSE protocol, version 7.40: opcodes, flags and structures of Linux `include/uapi/linux/fuse.h`.

Only layout lives here, no decision. Every `Struct` is compiled once; `=` is native byte order without padding, and the
protocol pads its structures by hand, so the formats spell the padding as `4x`. Times are signed, as the kernel reads
them.
"""

import enum
from struct import Struct
from typing import Final

PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR: Final = 40
"""The first with passthrough. We answer the smaller of this and the kernel's."""
PROTOCOL_MINOR_LEAST: Final = 31
"""Linux 5.4: everything that is not optional below."""


class Op(enum.IntEnum):
    """Request opcodes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


OPCODE_LIMIT: Final = 64
"""Counters are lists of this length; an opcode at or over it is counted at 0."""


class Init(enum.IntFlag):
    """Features of INIT; from bit 32 up they travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
GETATTR_FH: Final = 1 << 0
FSYNC_DATA_ONLY: Final = 1 << 0

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_DELETE: Final = 6
NOTIFY_RESEND: Final = 7

UNIQUE_RESEND: Final = 1 << 63
"""Set in `unique` of a request that the kernel sends again; the reply repeats it."""

DEV_IOC_CLONE: Final = 0x8004E500
DEV_IOC_BACKING_OPEN: Final = 0x4010E501
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502

# len, opcode, unique, nodeid, uid, gid, pid (and the length of extensions, which nothing that we negotiate sends)
IN_HEADER: Final = Struct("=IIQQIII4x")
# len, error, unique
OUT_HEADER: Final = Struct("=IiQ")
IN_HEADER_BYTES: Final = IN_HEADER.size
OUT_HEADER_BYTES: Final = OUT_HEADER.size
assert (IN_HEADER_BYTES, OUT_HEADER_BYTES) == (40, 16)

# major, minor, max_readahead, flags; since 7.36 flags2 follows
INIT_IN: Final = Struct("=IIII")
INIT_IN_FLAGS2: Final = Struct("=I")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, max_stack_depth
INIT_OUT: Final = Struct("=IIIIHHIIHHII24x")
assert INIT_OUT.size == 64

_ATTRIBUTES: Final = "QQQqqqIIIIIIIIII"
# attr_valid s and ns, then ino, size, blocks, atime, mtime, ctime, their ns, mode, nlink, uid, gid, rdev, blksize,
# flags
ATTR_OUT: Final = Struct("=QI4x" + _ATTRIBUTES)
# nodeid, generation, entry_valid, attr_valid, their ns, attributes
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTRIBUTES)
assert (ATTR_OUT.size, ENTRY_OUT.size) == (104, 128)

BATCH_FORGET_IN: Final = Struct("=II")  # count, dummy
FORGET_ONE: Final = Struct("=QQ")  # inode, lookups
GETATTR_IN: Final = Struct("=I4xQ")
# valid, fh, size, lock_owner, atime, mtime, ctime, their ns, mode, uid, gid
SETATTR_IN: Final = Struct("=I4xQQQqqqIIII4xII4x")
assert SETATTR_IN.size == 88
MKNOD_IN: Final = Struct("=III4x")  # mode, rdev, umask
MKDIR_IN: Final = Struct("=II")  # mode, umask
RENAME_IN: Final = Struct("=Q")  # new directory
RENAME2_IN: Final = Struct("=QI4x")  # new directory, flags
LINK_IN: Final = Struct("=Q")  # old nodeid
OPEN_IN: Final = Struct("=II")  # flags, open_flags
CREATE_IN: Final = Struct("=IIII")  # flags, mode, umask, open_flags
OPEN_OUT: Final = Struct("=QIi")  # fh, open_flags, backing_id
CREATE_OUT: Final = Struct("=QQQQII" + _ATTRIBUTES + "QIi")
RELEASE_IN: Final = Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN: Final = Struct("=Q4x4xQ")  # fh, lock_owner
READ_IN: Final = Struct("=QQIIQI4x")  # fh, offset, size, read_flags, lock_owner, flags
WRITE_IN: Final = Struct("=QQIIQI4x")  # fh, offset, size, write_flags, lock_owner, flags
WRITE_OUT: Final = Struct("=I4x")
FSYNC_IN: Final = Struct("=QI4x")  # fh, fsync_flags
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = Struct("=QQQQQIII4x24x")
assert STATFS_OUT.size == 80
SETXATTR_IN: Final = Struct("=II")  # size, flags (the longer form needs SETXATTR_EXT, which we do not ask for)
GETXATTR_IN: Final = Struct("=I4x")  # size
GETXATTR_OUT: Final = Struct("=I4x")
FALLOCATE_IN: Final = Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN: Final = Struct("=QqI4x")  # fh, offset, whence
LSEEK_OUT: Final = Struct("=Q")
DIRENT: Final = Struct("=QQII")  # ino, off, namelen, type; the name follows, padded to 8 bytes
INTERRUPT_IN: Final = Struct("=Q")
INVAL_INODE_OUT: Final = Struct("=Qqq")  # ino, off, len
INVAL_ENTRY_OUT: Final = Struct("=QII")  # parent, namelen, flags
DELETE_OUT: Final = Struct("=QQI4x")  # parent, child, namelen
BACKING_MAP: Final = Struct("=iIQ")  # fd, flags, padding
BACKING_ID: Final = Struct("=I")

DIRENT_ALIGNMENT: Final = 8
PADDING: Final = tuple(bytes(-length % DIRENT_ALIGNMENT) for length in range(DIRENT_ALIGNMENT))
"""What follows a name of `length` bytes (modulo 8) in a directory record."""
