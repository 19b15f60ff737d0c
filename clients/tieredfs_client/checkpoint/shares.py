"""What ranks tell one another of a save: what each has, and what was stored of it. Values and their JSON form; pure.

A *share* is one rank's tree and its tensors. A *part* is what one machine stored: its files, and where in them each tensor
lies, by rank and number. Rows are lists, not objects: there is one per rank and tensor.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import xxhash

from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.layout import Blob, Item, StoredFile, decode_blob, encode_blob
from tieredfs_client.checkpoint.memory import Origin
from tieredfs_client.checkpoint.tree import Flat, Leaf

Place = tuple[int, int]
"""A tensor of a save: rank, and number among the rank's tensors."""
IDENTITY_BYTES: Final = 16


class Whole(NamedTuple):
    """What pieces of one sharded tensor have in common, and what is the same for the tensors of one name on many ranks."""

    key: str
    origin: Origin
    dtype: str
    item_bytes: int
    global_shape: tuple[int, ...]
    sharded: bool


class Described(NamedTuple):
    """A tensor of one rank as the others need to know it. `identity`: equal for what needs to be stored once, the same piece
    of a sharded tensor, or the same content of another; each rank computes its own, so that nobody computes those of all."""

    whole: Whole
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    size_bytes: int
    identity: bytes

    @property
    def item(self) -> Item:
        """As it is called in a data file."""
        whole, name = self.whole, self.whole.key
        if whole.sharded:
            name += "@" + ",".join([f"{at}+{length}" for at, length in zip(self.offsets, self.shape, strict=True)])
        return Item(name, whole.dtype, whole.item_bytes, self.shape, self.size_bytes)


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
    starts: Mapping[int, int]
    """By rank, the number of its first leaf."""

    @classmethod
    def of(cls, flats: Mapping[int, Flat]) -> "Cargo":
        leaves = tuple(leaf for flat in flats.values() for leaf in flat.leaves)
        places = tuple((rank, index) for rank, flat in flats.items() for index in range(len(flat.leaves)))
        counts = itertools.accumulate((len(flat.leaves) for flat in flats.values()), initial=0)
        return cls(tuple(flats), tuple(flats.values()), leaves, places, dict(zip(flats, counts, strict=False)))

    def shares(self, digests: Mapping[int, Digest]) -> dict[int, Share]:
        """By rank. `digests`: of leaves whose content may be elsewhere, too."""
        found: dict[int, Share] = {}
        wholes = _Wholes()
        for rank, flat in zip(self.ranks, self.flats, strict=True):
            numbered = enumerate(flat.leaves, self.starts[rank])
            found[rank] = Share(flat.skeleton, tuple([wholes.describe(leaf, digests.get(at)) for at, leaf in numbered]))
        return found


class _Wholes:
    """One object, and one half of an identity, for all pieces of a tensor."""

    def __init__(self) -> None:
        self._known: dict[Whole, tuple[Whole, bytes]] = {}

    def describe(self, leaf: Leaf, digest: Digest | None) -> Described:
        """`digest` None: of a sharded tensor, or where nobody else could have the same."""
        whole = Whole(leaf.key, leaf.origin, leaf.dtype, leaf.item_bytes, leaf.global_shape, leaf.sharded)
        known = self._known.get(whole)
        if known is None:
            known = self._known[whole] = (
                whole,
                xxhash.xxh3_128_digest(repr(tuple(whole)).encode("utf-8", "surrogatepass")),
            )
        whole, named = known
        if leaf.sharded:
            what = b"%a%a" % (leaf.offsets, leaf.shape)
        else:
            what = digest.content.encode() if digest is not None else b""
        return Described(whole, leaf.offsets, leaf.shape, leaf.size_bytes, xxhash.xxh3_128_digest(named + what))


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What the ranks of one machine stored. `Blob.file` counts in `files`; `seconds`: when a rank's bytes were written."""

    files: tuple[StoredFile, ...]
    blobs: Mapping[Place, Blob]
    reused: frozenset[Place]
    seconds: Mapping[int, float]


# ---- messages --------------------------------------------------------------------------------------------------------


def encode_shares(shares: Mapping[int, Share]) -> dict[str, object]:
    """What is the same for many tensors once, and the rest in columns: a quarter of the bytes of a row of all for each."""
    wholes: dict[Whole, int] = {}
    tensors = [one for share in shares.values() for one in share.tensors]
    return {
        "ranks": [[rank, share.skeleton, len(share.tensors)] for rank, share in shares.items()],
        "pieces": [[wholes.setdefault(one.whole, len(wholes)), one.offsets, one.shape] for one in tensors],
        "wholes": list(wholes),
        "identities": b"".join([one.identity for one in tensors]).hex(),
    }


def decode_shares(body: Any) -> dict[int, Share]:
    wholes = [_whole(*row) for row in body["wholes"]]
    identities = bytes.fromhex(body["identities"])
    tensors = [
        _described(wholes[number], tuple(offsets), tuple(shape), identities[at : at + IDENTITY_BYTES])
        for at, (number, offsets, shape) in zip(range(0, len(identities), IDENTITY_BYTES), body["pieces"], strict=True)
    ]
    shares: dict[int, Share] = {}
    start = 0
    for rank, skeleton, count in body["ranks"]:
        shares[rank] = Share(skeleton, tuple(tensors[start : start + count]))
        start += count
    if start != len(tensors):
        raise ValueError(f"{len(tensors)} tensors, of which ranks have {start}")
    return shares


def _whole(key: str, origin: Origin, dtype: str, item_bytes: int, global_shape: Sequence[int], sharded: bool) -> Whole:
    return Whole(key, origin, dtype, item_bytes, tuple(global_shape), sharded)


def _described(whole: Whole, offsets: tuple[int, ...], shape: tuple[int, ...], identity: bytes) -> Described:
    return Described(whole, offsets, shape, whole.item_bytes * math.prod(shape), identity)


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
