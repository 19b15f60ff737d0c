"""Open directories: listings that go on where they stopped, however the directory changes meanwhile.

A listing is in byte order of the names, and goes on after the last *name* given out, not after a count: so a name that
stays is seen exactly once. A cookie is the position in the listing; each handle remembers at which name every batch
began, and so finds the name that belongs to a cookie (seekdir) by listing one batch again.
"""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tieredfs.errors import InvalidRequestError, NotDirectoryError, NotFoundError, StaleError
from tieredfs.fuse.operations import DirectoryItem
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes, Entry, FileKind, InodeId

_BATCH: Final = 1024
_DOTS: Final = 2


@dataclass(slots=True)
class _Listing:
    attributes: Attributes
    """As of the opening: what remains of a directory that is removed meanwhile."""
    starts: list[int] = field(default_factory=lambda: [_DOTS])
    names: list[bytes] = field(default_factory=lambda: [b""])
    """Batch i holds the cookies after `starts[i]`, names greater than `names[i]`."""
    batch: Sequence[DirectoryItem] = ()
    batch_with_attributes: bool = False


class DirectoryHandles:
    """Listings by handle. Safe from any thread; one handle is read by one thread at a time, as the kernel does."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._listings: dict[int, _Listing] = {}
        self._lock = threading.Lock()

    def open(self, handle: int, inode: InodeId) -> None:
        """Raises StaleError, NotDirectoryError."""
        try:
            attributes = self._metadata.attributes(inode)
        except NotFoundError:
            attributes = self.removed(inode)
        if attributes.kind is not FileKind.DIRECTORY:
            raise NotDirectoryError(f"inode {inode} is not a directory")
        with self._lock:
            self._listings[handle] = _Listing(attributes)

    def removed(self, inode: InodeId) -> Attributes:
        """A directory that was removed while it is open, as it is seen through its handles. Raises StaleError."""
        with self._lock:
            for listing in self._listings.values():
                if listing.attributes.inode == inode:
                    return listing.attributes._replace(link_count=0)
        raise StaleError(f"inode {inode} was deleted")

    def close(self, handle: int) -> None:
        with self._lock:
            self._listings.pop(handle, None)

    def read(self, handle: int, cookie: int, *, with_attributes: bool) -> Sequence[DirectoryItem]:
        """Items after `cookie`; empty at the end. Raises InvalidRequestError for a handle that is not open."""
        listing = self._listings.get(handle)
        if listing is None:
            raise InvalidRequestError(f"no open directory has handle {handle}")
        if cookie == 0:
            listing.batch, listing.starts[1:], listing.names[1:] = (), [], []
        if cookie < _DOTS:
            return self._dots(listing.attributes)[cookie:]
        held = listing.batch
        if held and listing.batch_with_attributes >= with_attributes and held[0].cookie <= cookie < held[-1].cookie:
            return held[cookie - held[0].cookie + 1 :]
        position = bisect_right(listing.starts, cookie) - 1
        return self._list(listing, position, cookie, with_attributes=with_attributes)

    def _dots(self, directory: Attributes) -> list[DirectoryItem]:
        """`.` and `..`; a directory that was removed lists nothing at all."""
        try:
            here = self._metadata.attributes(directory.inode)
            above = self._metadata.attributes(here.parent)
        except NotFoundError:
            return []
        return [
            DirectoryItem(Entry(b".", here.inode, FileKind.DIRECTORY), 1, here),
            DirectoryItem(Entry(b"..", above.inode, FileKind.DIRECTORY), 2, above),
        ]

    def _list(self, listing: _Listing, position: int, cookie: int, *, with_attributes: bool) -> Sequence[DirectoryItem]:
        """The batch at `position`, or a later one, from the first item after `cookie` on."""
        while True:
            start, after = listing.starts[position], listing.names[position]
            found = self._found(listing.attributes.inode, after, with_attributes=with_attributes)
            if not found:
                return ()
            batch = [
                DirectoryItem(entry, start + number, attributes)
                for number, (entry, attributes) in enumerate(found, start=1)
            ]
            listing.batch, listing.batch_with_attributes = batch, with_attributes
            if position + 1 == len(listing.starts):
                listing.starts.append(batch[-1].cookie)
                listing.names.append(batch[-1].entry.name)
            if batch[-1].cookie > cookie:
                return batch[max(0, cookie - start) :]
            position += 1

    def _found(self, inode: InodeId, after: bytes, *, with_attributes: bool) -> list[tuple[Entry, Attributes | None]]:
        try:
            if with_attributes:
                return list(self._metadata.list_directory_plus(inode, after, _BATCH))
            return [(entry, None) for entry in self._metadata.list_directory(inode, after, _BATCH)]
        except NotFoundError:
            return []
