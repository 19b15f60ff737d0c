"""INIT: what the kernel offers, what we take, and what follows from it. Pure.

Why each choice:

- AUTO_INVAL_DATA, not EXPLICIT_INVAL_DATA: other hosts and processes change files behind this mount; pages of a cached
  file go when its time or size has changed. Passthrough files have no pages here, so it costs them nothing.
- HANDLE_KILLPRIV_V2: without it the kernel asks GETXATTR(security.capability) before *every* write, passthrough
  included: one round trip through Python per write(2). With it the answer is kept while the attributes are; in exchange
  we drop setuid and setgid on write, truncate and chown (`content.py`, `metadata.py`).
- No POSIX_LOCKS and FLOCK_LOCKS: locks stay in the kernel, between the processes of this mount.
- No WRITEBACK_CACHE: passthrough excludes it. No POSIX_ACL, EXPORT_SUPPORT, NO_OPEN(DIR)_SUPPORT, DONT_MASK (the kernel
  applies the umask).
- READDIRPLUS_AUTO: attributes with the entries when the program also asks for them.
- `max_stack_depth` 1: backing files lie on a file system that is not itself stacked, and ours may be the lower layer of
  one more.
"""

from dataclasses import dataclass
from typing import Final

from tieredfs.fuse.kernel.wire import (
    INIT_IN,
    INIT_IN_FLAGS2,
    INIT_OUT,
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Init,
)
from tieredfs.limits import FUSE_REQUEST_BYTES_MAX, KIB

PAGE_BYTES: Final = 4 * KIB
BACKGROUND_MAX: Final = 64
CONGESTION_THRESHOLD: Final = 48
STACK_DEPTH_MAX: Final = 1

WANTED: Final = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.HAS_RESEND
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the kernel said in INIT."""

    major: int
    minor: int
    readahead_bytes_max: int
    flags: Init


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for the life of the mount."""

    minor: int
    readahead_bytes_max: int
    flags: Init

    @property
    def passthrough(self) -> bool:
        return Init.PASSTHROUGH in self.flags

    @property
    def resend(self) -> bool:
        return Init.HAS_RESEND in self.flags


def parse_offer(body: memoryview) -> Offer:
    """The body of an INIT request, of at least `INIT_IN.size` bytes."""
    major, minor, readahead, flags = INIT_IN.unpack_from(body)
    if flags & Init.INIT_EXT and len(body) >= INIT_IN.size + INIT_IN_FLAGS2.size:
        flags |= INIT_IN_FLAGS2.unpack_from(body, INIT_IN.size)[0] << 32
    return Offer(major, minor, readahead, Init(flags))


def agree(offer: Offer, *, passthrough: bool) -> Agreement:
    """What we take of `offer`."""
    wanted = WANTED | Init.PASSTHROUGH if passthrough else WANTED
    return Agreement(min(offer.minor, PROTOCOL_MINOR), offer.readahead_bytes_max, offer.flags & wanted)


def encode_agreement(agreement: Agreement) -> bytes:
    """The body of the answer to INIT."""
    flags = int(agreement.flags)
    return INIT_OUT.pack(
        PROTOCOL_MAJOR,
        agreement.minor,
        agreement.readahead_bytes_max,
        flags & 0xFFFFFFFF,
        BACKGROUND_MAX,
        CONGESTION_THRESHOLD,
        FUSE_REQUEST_BYTES_MAX,
        1,
        FUSE_REQUEST_BYTES_MAX // PAGE_BYTES,
        0,
        flags >> 32,
        STACK_DEPTH_MAX if agreement.passthrough else 0,
    )
