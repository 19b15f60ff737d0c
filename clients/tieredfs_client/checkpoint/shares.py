"""What ranks tell one another of a save: what each has, and what was stored of it. Values and their JSON form; pure.

A *share* is one rank's tree and its tensors. A *part* is what one machine stored: its files, and where in them each tensor
lies, by rank and number. Rows are lists, not objects: there is one per rank and tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.layout import Blob, Item, StoredFile, decode_blob, encode_blob
from tieredfs_client.checkpoint.tree import Flat, Leaf

Place = tuple[int, int]
"""A tensor of a save: rank, and number among the rank's tensors."""


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor of one rank as the others need to know it. `identity`: equal for what needs to be stored once, the same piece
    of a sharded tensor, or the same content of another; each rank computes its own, so that nobody computes those of all."""

    key: str
    origin: Any
    dtype: str
    item_bytes: int
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    sharded: bool
    identity: bytes

    @property
    def whole(self) -> tuple[object, ...]:
        """Equal for pieces of one sharded tensor."""
        return (self.key, self.origin, self.dtype, self.global_shape)

    @property
    def size_bytes(self) -> int:
        size = self.item_bytes
        for length in self.shape:
            size *= length
        return size

    @property
    def item(self) -> Item:
        """As it is called in a data file."""
        name = self.key
        if self.sharded:
            name += "@" + ",".join(f"{at}+{length}" for at, length in zip(self.offsets, self.shape, strict=True))
        return Item(name, self.dtype, self.item_bytes, self.shape, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank has."""

    skeleton: Any
    tensors: tuple[Described, ...]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What one process has: the trees of the ranks that it carries, and the tensors of all of them in one row."""

    ranks: tuple[int, ...]
    flats: tuple[Flat, ...]
    leaves: tuple[Leaf, ...]
    places: tuple[Place, ...]
    """Of each leaf."""

    @classmethod
    def of(cls, flats: Mapping[int, Flat]) -> "Cargo":
        leaves = tuple(leaf for flat in flats.values() for leaf in flat.leaves)
        places = tuple((rank, index) for rank, flat in flats.items() for index in range(len(flat.leaves)))
        return cls(tuple(flats), tuple(flats.values()), leaves, places)

    def shares(self, digests: Mapping[int, Digest]) -> dict[int, Share]:
        """By rank. `digests`: of leaves whose content may be elsewhere, too."""
        found: dict[int, Share] = {}
        start = 0
        for rank, flat in zip(self.ranks, self.flats, strict=True):
            rows = tuple(describe(leaf, digests.get(start + at)) for at, leaf in enumerate(flat.leaves))
            found[rank] = Share(flat.skeleton, rows)
            start += len(flat.leaves)
        return found


def describe(leaf: Leaf, digest: Digest | None) -> Described:
    """`digest` None: of a sharded tensor, or where nobody else could have the same."""
    kind = (leaf.key, leaf.origin, leaf.dtype, leaf.global_shape, leaf.sharded)
    what = (leaf.offsets, leaf.shape) if leaf.sharded else (digest.content if digest is not None else None,)
    identity = xxhash.xxh3_128_digest(repr((kind, what)).encode("utf-8", "surrogatepass"))
    sizes = (leaf.global_shape, leaf.offsets, leaf.shape)
    return Described(leaf.key, leaf.origin, leaf.dtype, leaf.item_bytes, *sizes, leaf.sharded, identity)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What the ranks of one machine stored. `Blob.file` counts in `files`; `seconds`: when a rank's bytes were written."""

    files: tuple[StoredFile, ...]
    blobs: Mapping[Place, Blob]
    reused: frozenset[Place]
    seconds: Mapping[int, float]


# ---- messages --------------------------------------------------------------------------------------------------------


def encode_shares(shares: Mapping[int, Share]) -> list[object]:
    return [[rank, share.skeleton, [_row(one) for one in share.tensors]] for rank, share in shares.items()]


def _row(one: Described) -> list[object]:
    kind = [one.key, one.origin, one.dtype, one.item_bytes, one.global_shape]
    return [*kind, one.offsets, one.shape, one.sharded, one.identity.hex()]


def decode_shares(rows: Any) -> dict[int, Share]:
    return {rank: Share(skeleton, tuple(_described(row) for row in tensors)) for rank, skeleton, tensors in rows}


def _described(row: Sequence[Any]) -> Described:
    key, origin, dtype, item, whole, offsets, shape, sharded, identity = row
    return Described(
        key, origin, dtype, item, tuple(whole), tuple(offsets), tuple(shape), sharded, bytes.fromhex(identity)
    )


def encode_part(part: StoredPart) -> dict[str, object]:
    return {
        "files": [[file.name, file.size_bytes, file.reused] for file in part.files],
        "blobs": [[*place, encode_blob(blob), place in part.reused] for place, blob in part.blobs.items()],
        "seconds": list(part.seconds.items()),
    }


def decode_part(body: Any) -> StoredPart:
    files = tuple(StoredFile(name, size, reused) for name, size, reused in body["files"])
    blobs = {(rank, index): decode_blob(blob) for rank, index, blob, _ in body["blobs"]}
    reused = frozenset((rank, index) for rank, index, _, again in body["blobs"] if again)
    return StoredPart(files, blobs, reused, dict(body["seconds"]))
