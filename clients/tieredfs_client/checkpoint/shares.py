"""What the processes of a save tell one another: what each has, is to do, and stored. Values and their JSON form; pure.

A *share* is the tensors of one process, those of all of its ranks in one row. A *task* is what the plan says to it, a *report*
what it says in the end. Of what is one per tensor all of these are columns: a step of the interpreter for each tensor in
the process that gathers all, whose work nobody shares, would be most of a save of thousands of ranks.

A process is known by its *lead*, the lowest of its ranks. A *part* is what one machine stored: its files, and the reports of its
processes.
"""

import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import xxhash

from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.layout import PIECE_BYTES, Blob, Item, Outline, Packed, StoredFile, entry_room
from tieredfs_client.checkpoint.memory import Origin
from tieredfs_client.checkpoint.plan import Box
from tieredfs_client.checkpoint.tree import Flat, Leaf, Whole

IDENTITY_BYTES: Final = 16
CONTENT_DIGITS: Final = 32
_SPAN_TEXT: Final = "%d+%d".__mod__


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has. All but `ranks`, `counts` and `wholes` is one per tensor, of rank after rank."""

    ranks: tuple[int, ...]
    counts: Sequence[int]
    """Tensors of each rank."""
    wholes: Sequence[Whole]
    kinds: Sequence[int]
    """Which of `wholes` it is, or is a piece of."""
    boxes: Sequence[Box]
    sizes: Sequence[int]
    identities: Sequence[bytes]
    """Equal for what needs to be stored once, the same piece of a sharded tensor, or the same content of another; each process
    computes its own, so that nobody computes those of all."""

    @property
    def lead(self) -> int:
        return self.ranks[0]

    def items(self, numbers: Iterable[int]) -> list[Item]:
        """As some of its tensors are called in a data file."""
        found = []
        for number in numbers:
            key, _, dtype, item_bytes, _, sharded = self.wholes[self.kinds[number]]
            offsets, shape = self.boxes[number]
            if sharded:
                key += "@" + ",".join(map(_SPAN_TEXT, zip(offsets, shape, strict=True)))
            found.append(Item(key, dtype, item_bytes, shape, self.sizes[number]))
        return found

    def outline(self, numbers: Sequence[int]) -> Outline:
        """What is to be known of some of its tensors to place them in a file."""
        rooms = [
            entry_room(Item(one.key, one.dtype, one.item_bytes, one.global_shape, 0), sharded=one.sharded)
            for one in self.wholes
        ]
        kinds = [self.kinds[number] for number in numbers]
        item_bytes = [one.item_bytes for one in self.wholes]
        sizes = [self.sizes[number] for number in numbers]
        return Outline(sizes, [item_bytes[kind] for kind in kinds], [rooms[kind] for kind in kinds])


@dataclass(frozen=True, slots=True)
class Cargo:
    """What one process has: the trees of the ranks that it carries, and the tensors of all of them in one row."""

    ranks: tuple[int, ...]
    flats: tuple[Flat, ...]
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, flats: Mapping[int, Flat]) -> "Cargo":
        leaves = tuple(itertools.chain.from_iterable([flat.leaves for flat in flats.values()]))
        return cls(tuple(flats), tuple(flats.values()), leaves)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of each rank, the numbers of its first tensor, and of that behind its last."""
        return list(itertools.pairwise(itertools.accumulate([len(flat.leaves) for flat in self.flats], initial=0)))

    def share(self, digests: Mapping[int, Digest]) -> Share:
        """`digests`: of leaves whose content may be elsewhere, too; those of sharded ones are not asked for."""
        known: dict[tuple[object, ...], int] = {}
        wholes: list[Whole] = []
        named: list[bytes] = []
        kinds, identities = [], []
        for number, leaf in enumerate(self.leaves):
            kind = known.setdefault(leaf[:6], len(wholes))
            if kind == len(wholes):
                wholes.append(leaf.whole)
                named.append(xxhash.xxh3_128_digest(repr(leaf[:6]).encode("utf-8", "surrogatepass")))
            if leaf.sharded:
                what = b"%a%a" % leaf[6:8]
            else:
                digest = digests.get(number)
                what = digest.content.encode() if digest is not None else b""
            kinds.append(kind)
            identities.append(xxhash.xxh3_128_digest(named[kind] + what))
        boxes, sizes = [leaf[6:8] for leaf in self.leaves], [leaf.size_bytes for leaf in self.leaves]
        counts = [len(flat.leaves) for flat in self.flats]
        return Share(self.ranks, counts, wholes, kinds, boxes, sizes, identities)


class Task(NamedTuple):
    """What the plan says to one process."""

    chosen: Sequence[int]
    """Which of its tensors it stores, rising. All that is said of these later is in this order."""
    numbers: Sequence[int]
    """What each of its tensors is called in the manifest, stored by it or not."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one process stored: the chosen tensors, in order; `Blob.file` counts in its machine's files. By rank: which of `trees`
    (JSON, tensors called as in the manifest) it has, and when its bytes were written, from the start of the save."""

    blobs: Sequence[Blob]
    trees: Sequence[str]
    tree_numbers: Sequence[int]
    seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What one machine stored, its processes by their leads."""

    files: tuple[StoredFile, ...]
    reports: Mapping[int, Report]


# ---- messages --------------------------------------------------------------------------------------------------------


def _column(code: str, numbers: Iterable[float]) -> str:
    """Numbers as hex of an array, which takes a tenth of the time of JSON's."""
    return array(code, numbers).tobytes().hex()


def _numbers(code: str, text: str) -> "array[Any]":
    found = array(code)
    found.frombytes(bytes.fromhex(text))
    return found


def encode_share(share: Share) -> dict[str, object]:
    """Of tensors that are not sharded, the box follows from the whole."""
    both = zip(share.kinds, share.boxes, strict=True)
    sharded = [box for kind, box in both if share.wholes[kind].sharded]
    depth = _depth(share.wholes)
    return {
        "ranks": share.ranks,
        "counts": share.counts,
        "wholes": share.wholes,
        "kinds": _column("I", share.kinds),
        "boxes": _column("q", [number for box in sharded for row in box for number in _padded(row, depth)]),
        "sizes": _column("Q", share.sizes),
        "identities": b"".join(share.identities).hex(),
    }


def _depth(wholes: Sequence[Whole]) -> int:
    """Of the rows of a column of boxes."""
    return max([len(one.global_shape) for one in wholes if one.sharded], default=1) or 1


def _padded(row: tuple[int, ...], depth: int) -> tuple[int, ...]:
    return row if len(row) == depth else row + (0,) * (depth - len(row))


def decode_share(body: Any) -> Share:
    wholes = [_whole(*row) for row in body["wholes"]]
    kinds = _numbers("I", body["kinds"])
    rows = zip(*[iter(_numbers("q", body["boxes"]))] * _depth(wholes), strict=True)
    boxes = _boxes(wholes, kinds, list(zip(rows, rows, strict=True)))
    joined = bytes.fromhex(body["identities"])
    identities = [joined[at : at + IDENTITY_BYTES] for at in range(0, len(joined), IDENTITY_BYTES)]
    ranks, counts, sizes = tuple(body["ranks"]), body["counts"], _numbers("Q", body["sizes"])
    if not ranks or len(ranks) != len(counts) or not sum(counts) == len(boxes) == len(identities) == len(sizes):
        raise ValueError("columns of different lengths")
    return Share(ranks, counts, wholes, kinds, boxes, sizes, identities)


def _boxes(wholes: Sequence[Whole], kinds: Sequence[int], sharded: Sequence[Box]) -> Sequence[Box]:
    """Those of all tensors, from those of the sharded ones, whose rows are as long as the longest."""
    depth = _depth(wholes)
    if all(one.sharded and len(one.global_shape) == depth for one in wholes):
        return sharded
    if sum(wholes[kind].sharded for kind in kinds) != len(sharded):
        raise ValueError("other boxes than pieces")
    rest = iter(sharded)
    boxes: list[Box] = []
    for kind in kinds:
        shape = wholes[kind].global_shape
        depth = len(shape)
        if wholes[kind].sharded:
            offsets, lengths = next(rest)
            boxes.append((offsets[:depth], lengths[:depth]))
        else:
            boxes.append(((0,) * depth, shape))
    return boxes


def _whole(key: str, origin: Origin, dtype: str, item_bytes: int, global_shape: Sequence[int], sharded: bool) -> Whole:
    return Whole(key, origin, dtype, item_bytes, tuple(global_shape), sharded)


def encode_task(task: Task) -> list[object]:
    """Chosen null: all."""
    return [None if len(task.chosen) == len(task.numbers) else task.chosen, task.numbers]


def decode_task(body: Any) -> Task:
    chosen, numbers = body
    return Task(range(len(numbers)) if chosen is None else chosen, numbers)


def encode_report(report: Report) -> dict[str, object]:
    files, offsets, sizes, contents, probes, crcs, packed = (
        zip(*report.blobs, strict=True) if report.blobs else [()] * 7
    )
    return {
        "files": _column("I", files),
        "offsets": _column("Q", offsets),
        "sizes": _column("Q", sizes),
        "contents": "".join(contents),
        "probes": _column("I", probes),
        "crcs": _column("I", itertools.chain.from_iterable(crcs)),
        "packed": [[number, *how] for number, how in enumerate(packed) if how is not None],
        "trees": report.trees,
        "tree_numbers": report.tree_numbers,
        "seconds": _column("d", report.seconds),
    }


def decode_report(body: Any) -> Report:
    sizes, joined = _numbers("Q", body["sizes"]), body["contents"]
    contents = [joined[at : at + CONTENT_DIGITS] for at in range(0, len(joined), CONTENT_DIGITS)]
    columns = (
        _numbers("I", body["files"]),
        _numbers("Q", body["offsets"]),
        sizes,
        contents,
        _numbers("I", body["probes"]),
    )
    blobs = [Blob(*row) for row in zip(*columns, _crcs(sizes, _numbers("I", body["crcs"])), strict=True)]
    for number, width, ends in body["packed"]:
        blobs[number] = blobs[number]._replace(packed=Packed(width, tuple(ends)))
    return Report(blobs, body["trees"], body["tree_numbers"], _numbers("d", body["seconds"]))


def _crcs(sizes: Sequence[int], crcs: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Of each tensor those of its pieces."""
    if len(crcs) == len(sizes) and all(sizes):
        return zip(crcs)  # one piece each, as of most that there are thousands of
    rest = iter(crcs)
    return [tuple(islice(rest, -(-size // PIECE_BYTES))) for size in sizes]


def encode_part(part: StoredPart) -> dict[str, object]:
    return {
        "files": [[file.name, file.size_bytes, file.reused] for file in part.files],
        "reports": [[lead, encode_report(report)] for lead, report in part.reports.items()],
    }


def decode_part(body: Any) -> StoredPart:
    files = tuple(StoredFile(name, size, reused) for name, size, reused in body["files"])
    return StoredPart(files, {lead: decode_report(report) for lead, report in body["reports"]})
