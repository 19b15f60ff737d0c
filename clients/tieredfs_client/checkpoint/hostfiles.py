"""The files in which one machine stores its part of a checkpoint: laid out, made, handed out to the ranks, committed.

All ranks of a machine write into the same few files, each into ranges of its own, so a save costs transactions per machine
and per 4 GiB, whatever the number of ranks and tensors. Tensors that are as they were in an earlier checkpoint become one
file made of its blocks (`FileSystem.splice`). Packed tensors, whose length nobody knows before, go into files that one process each
fills from the front (`pack`): one per process and 4 GiB; their headers are written when it is known what is in them.
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tieredfs.errors import CorruptError, NotFoundError, StaleError
from tieredfs.host import Files, crash
from tieredfs.model import Durability, InodeId
from tieredfs.volume.contract import FileSystemContract, Part, Writing
from tieredfs_client.checkpoint.layout import (
    FILE_BYTES_MAX,
    FILE_ITEMS_MAX,
    Blob,
    Item,
    Outline,
    StoredFile,
    data_header,
    lay_out,
    lay_out_unnamed,
    packed_header,
    packed_item,
    packed_room,
    split_into_files,
)
from tieredfs_client.checkpoint.neighbours import DESCRIPTORS_MAX
from tieredfs_client.checkpoint.remembered import Remembered
from tieredfs_client.checkpoint.write import speaking_the_domain

Place = int
"""By which who makes the files knows a tensor."""
FILES_MAX: Final = DESCRIPTORS_MAX // 4
"""About so many files; beyond 4 GiB or 100,000 tensors each they grow."""
REUSE_BYTES_MIN: Final = 4 << 20
"""Less than this is written again: making a file by reference has its price, too (a stored header, a transaction)."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A tensor that is stored already, as `item` says, `offset` in the file `path`."""

    place: Place
    item: Item
    path: bytes
    offset: int


class Reference(NamedTuple):
    """Where a tensor lies in an earlier checkpoint. `packed_bytes`: how long it is there, if it is packed."""

    path: bytes
    offset: int
    packed_bytes: int | None

    def of(self, place: Place, item: Item) -> Unchanged:
        packed = self.packed_bytes
        return Unchanged(place, item if packed is None else packed_item(item, packed), self.path, self.offset)


class Spot(NamedTuple):
    """Where a tensor lies: number of the file, and offset in it; of a packed one that is to be written, where the first
    tensor of its file begins."""

    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Planned:
    """A file that is to be made with room for its header. `spots`: of its places."""

    number: int
    name: str
    places: Sequence[Place]
    room_bytes: int
    size_bytes: int
    spots: Mapping[Place, Spot]


@dataclass(frozen=True, slots=True)
class _Filling:
    """A file that one process fills with packed tensors."""

    number: int
    places: Sequence[Place]
    items: Sequence[Item]
    room_bytes: int


class HostFiles:
    """Made once per save. A context manager: what is not committed then is discarded."""

    def __init__(
        self,
        volume: FileSystemContract,
        files: Files,
        durability: Durability | None,
        directory: bytes,
        rank: int,
        remembered: Remembered | None = None,
    ) -> None:
        """`directory`: the attempt's. `rank`: whose number the names of the files have. `remembered`: of the last save's."""
        self._volume = volume
        self._files = files
        self._durability = durability
        self._directory = directory
        self._rank = rank
        self._open = contextlib.ExitStack()
        self._writings: list[tuple[int, Writing, bytes]] = []
        self._fillings: list[_Filling] = []
        self._headless: list[_Planned] = []
        self._remembered = remembered if remembered is not None else Remembered()
        self.stored: list[StoredFile] = []
        self.spots: dict[Place, Spot] = {}

    def __enter__(self) -> "HostFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def descriptors(self) -> dict[int, int]:
        """Of the files to write into, by number."""
        return {number: writing.descriptor for number, writing, _ in self._writings}

    # ---- by reference -----------------------------------------------------------------------------------------------

    def refer(self, members: Sequence[Unchanged]) -> bool:
        """Make one file of ranges of earlier ones, in their order there. False: they were deleted meanwhile, or are too small
        for it; then they are to be written."""
        if sum(one.item.size_bytes for one in members) < REUSE_BYTES_MIN:
            return False
        try:
            self._splice(sorted(members, key=lambda one: (one.path, one.offset)))
        except (NotFoundError, StaleError):
            return False
        return True

    def _splice(self, members: Sequence[Unchanged]) -> None:
        layout = lay_out([one.item for one in members])
        inodes: dict[bytes, InodeId] = {path: self._volume.stat(path).inode for path in {one.path for one in members}}
        with self._volume.create() as header:
            self._files.write(header.descriptor, [layout.header], 0)
            inode = header.commit(self._directory + f"/header-r{self._rank:05d}".encode()).inode
        parts = [Part(inode, 0, len(layout.header))]
        for position in sorted(range(len(members)), key=lambda position: layout.offsets[position]):
            one = members[position]
            parts.append(Part(inodes[one.path], one.offset, one.item.size_bytes))
        name = f"same-r{self._rank:05d}.safetensors"
        with self._volume.splice(joined_parts(parts)) as writing:
            writing.commit(self._directory + b"/data/" + name.encode(), durability=self._durability)
        number = len(self.stored)
        self.stored.append(StoredFile(name, layout.size_bytes, reused=True))
        for one, offset in zip(members, layout.offsets, strict=True):
            self.spots[one.place] = Spot(number, offset)

    # ---- to be written ----------------------------------------------------------------------------------------------

    def make(self, places: Sequence[Place], outline: Outline) -> None:
        """Files for all of these tensors, of their length, with room for their headers, not yet named. Raises NoSpaceError."""
        first = len(self.stored)
        self._headless = self._remembered.placed.of(
            lambda: self._plan(first, places, outline), first, self._rank, places, outline
        )
        for planned in self._headless:
            writing = self._open.enter_context(self._volume.create())
            with speaking_the_domain():
                self._files.allocate(writing.descriptor, 0, 0, planned.size_bytes)
            number = self._opened(planned.name, writing, planned.size_bytes)
            assert number == planned.number
            self.spots |= planned.spots
        crash.here("checkpoint.files-made")

    def _plan(self, first: int, places: Sequence[Place], outline: Outline) -> list[_Planned]:
        """Files, the first of which is number `first` of all that there are."""
        planned = []
        for number, group in enumerate(_files_of(outline.sizes)):
            own = places[group.start : group.stop]
            placed = lay_out_unnamed(outline if len(group) == len(places) else outline.of(group))
            spots = dict(zip(own, map(Spot, itertools.repeat(first + number), placed.offsets), strict=True))
            name = f"data-r{self._rank:05d}-{number:03d}.safetensors"
            planned.append(_Planned(first + number, name, own, placed.room_bytes, placed.size_bytes, spots))
        return planned

    @property
    def plan(self) -> object:
        """The same for two saves whose tensors lie in the same places of the same files, none of them with a header yet."""
        return self._headless

    def head(self, items: Callable[[], Sequence[Item]], *of: object) -> None:
        """The headers of the files that `make` made: before they are committed, and, being one line for each tensor, beside those
        who write into them. `items`: by place, of all tensors, as follows from `of` (see `Once`). Raises NoSpaceError."""
        planned, self._headless = self._headless, []
        headers = self._remembered.headers.of(lambda: _headers(planned, items()), planned, *of)
        descriptors = self.descriptors
        for file, header in zip(planned, headers, strict=True):
            with speaking_the_domain():
                self._files.write(descriptors[file.number], [header], 0)

    def _opened(self, name: str, writing: Writing, size_bytes: int) -> int:
        number = len(self.stored)
        self._writings.append((number, writing, self._directory + b"/data/" + name.encode()))
        self.stored.append(StoredFile(name, size_bytes, reused=False))
        return number

    def make_packed(self, places: Sequence[Place], items: Sequence[Item], rank: int) -> None:
        """Files for one process, that of `rank`, to fill with these tensors, packed, in this order."""
        for number, group in enumerate(_files_of([item.size_bytes for item in items])):
            members = items[group.start : group.stop]
            room = packed_room([packed_item(item, item.size_bytes) for item in members])
            writing = self._open.enter_context(self._volume.create())
            file = self._opened(f"packed-r{rank:05d}-{number:03d}.safetensors", writing, room)
            at = places[group.start : group.stop]
            self._fillings.append(_Filling(file, at, members, room))
            self.spots |= dict.fromkeys(at, Spot(file, room))

    def head_packed(self, blobs: Mapping[Place, Blob]) -> None:
        """The files of packed tensors are filled, as `blobs` say: they get their headers. Raises CorruptError where tensors do
        not follow one another."""
        descriptors = self.descriptors
        for filling in self._fillings:
            end = filling.room_bytes
            stored: list[Item] = []
            for place, item in zip(filling.places, filling.items, strict=True):
                blob = blobs[place]
                if blob.file != filling.number or blob.offset != end:
                    raise CorruptError(f"{item.name} is not where the tensor before it ends")
                stored.append(packed_item(item, blob.stored_bytes))
                end += blob.stored_bytes
            with speaking_the_domain():
                header = packed_header(stored, filling.room_bytes)
                self._files.write(descriptors[filling.number], [header], 0)
            self.stored[filling.number] = replace(self.stored[filling.number], size_bytes=end)
            crash.here("checkpoint.packed-headed")

    def commit(self) -> None:
        """Every byte is written: the files become durable and get their names."""
        assert not self._headless, "every file has its header"
        for _, writing, path in self._writings:
            self._commit_file(writing, path)
        self._writings.clear()

    def _commit_file(self, writing: Writing, path: bytes) -> None:
        writing.commit(path, durability=self._durability)


def _headers(planned: Sequence[_Planned], items: Sequence[Item]) -> list[bytes]:
    return [data_header([items[at] for at in file.places], file.room_bytes) for file in planned]


def _files_of(sizes: Sequence[int]) -> list[range]:
    bytes_max = max(FILE_BYTES_MAX, sum(sizes) // FILES_MAX)
    return split_into_files(sizes, bytes_max, max(FILE_ITEMS_MAX, len(sizes) // FILES_MAX))


def joined_parts(parts: Sequence[Part]) -> list[Part]:
    """Neighbours in one file become one part."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and last.inode == part.inode and last.offset + last.length == part.offset:
            merged[-1] = Part(last.inode, last.offset, last.length + part.length)
        elif part.length:
            merged.append(part)
    return merged
