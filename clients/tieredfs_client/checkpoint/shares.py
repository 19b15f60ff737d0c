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
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import xxhash

from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.layout import Item, Outline, StoredFile, entry_room
from tieredfs_client.checkpoint.memory import Origin
from tieredfs_client.checkpoint.plan import Box
from tieredfs_client.checkpoint.tree import Flat, Form, Leaf, Whole

IDENTITY_BYTES: Final = 16
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
    forms: list[Form]
    """Of the leaves."""

    @classmethod
    def of(cls, flats: Mapping[int, Flat]) -> "Cargo":
        leaves = tuple(itertools.chain.from_iterable([flat.leaves for flat in flats.values()]))
        forms = list(itertools.chain.from_iterable([flat.forms for flat in flats.values()]))
        return cls(tuple(flats), tuple(flats.values()), leaves, forms)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of each rank, the numbers of its first tensor, and of that behind its last."""
        return list(itertools.pairwise(itertools.accumulate([len(flat.leaves) for flat in self.flats], initial=0)))

    def share(self, digests: Mapping[int, Digest], last: "LastShare | None" = None) -> Share:
        """`digests`: of leaves whose content may be elsewhere, too; those of sharded ones are not asked for. `last`: where the
        layout is that of the last share, its columns are, too, the very objects, but for identities that follow from content."""
        found = last.found if last is not None else None
        if found is None or self._layout != found[0]:
            found = self._layout, self._share()
        if last is not None:
            last.found = found
        if not digests:
            return found[1]
        return self._identified(found[1], digests)

    @property
    def _layout(self) -> tuple[object, ...]:
        return self.ranks, [len(flat.leaves) for flat in self.flats], self.forms

    def _identified(self, share: Share, digests: Mapping[int, Digest]) -> Share:
        """`share` has the identities of what has no content."""
        identities = list(share.identities)
        for number, digest in digests.items():
            identities[number] = xxhash.xxh3_128_digest(identities[number] + digest.content.encode())
        return replace(share, identities=identities)

    def _share(self) -> Share:
        known: dict[tuple[object, ...], int] = {}
        wholes: list[Whole] = []
        named: list[bytes] = []
        kinds, identities = [], []
        for leaf in self.leaves:
            kind = known.setdefault(leaf[:6], len(wholes))
            if kind == len(wholes):
                wholes.append(leaf.whole)
                named.append(xxhash.xxh3_128_digest(repr(leaf[:6]).encode("utf-8", "surrogatepass")))
            what = b"%a%a" % leaf[6:8] if leaf.sharded else b""
            kinds.append(kind)
            identities.append(xxhash.xxh3_128_digest(named[kind] + what))
        boxes, sizes = [leaf[6:8] for leaf in self.leaves], [leaf.size_bytes for leaf in self.leaves]
        counts = [len(flat.leaves) for flat in self.flats]
        return Share(self.ranks, counts, wholes, kinds, boxes, sizes, identities)


@dataclass(slots=True)
class LastShare:
    """What a process had in its last save: layout and share."""

    found: tuple[tuple[object, ...], Share] | None = None


class Task(NamedTuple):
    """What the plan says to one process."""

    chosen: Sequence[int]
    """Which of its tensors it stores, rising. All that is said of these later is in this order."""
    numbers: Sequence[int]
    """What each of its tensors is called in the manifest, stored by it or not."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one process stored: the chosen tensors, in order, as rows of the manifest (`layout.blob_rows`), which each process
    makes of its own; `Blob.file` counts in its machine's files. By rank: which of `trees` (JSON, tensors called as in the
    manifest) it has, and what else the manifest says of it (`layout.rank_text`)."""

    blobs: str
    blob_count: int
    packed: bool
    """Whether any of the tensors is."""
    trees: Sequence[str]
    tree_numbers: Sequence[int]
    ranks: Sequence[str]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What one machine stored, its processes by their leads."""

    files: tuple[StoredFile, ...]
    reports: Mapping[int, Report]


# ---- messages --------------------------------------------------------------------------------------------------------


def column(code: str, numbers: Iterable[float]) -> str:
    """Numbers as hex of an array, which takes a tenth of the time of JSON's."""
    return array(code, numbers).tobytes().hex()


def numbers(code: str, text: str) -> "array[Any]":
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
        "kinds": column("I", share.kinds),
        "boxes": column("q", [number for box in sharded for row in box for number in _padded(row, depth)]),
        "sizes": column("Q", share.sizes),
        "identities": b"".join(share.identities).hex(),
    }


def _depth(wholes: Sequence[Whole]) -> int:
    """Of the rows of a column of boxes."""
    return max([len(one.global_shape) for one in wholes if one.sharded], default=1) or 1


def _padded(row: tuple[int, ...], depth: int) -> tuple[int, ...]:
    return row if len(row) == depth else row + (0,) * (depth - len(row))


def decode_share(body: Any) -> Share:
    wholes = [_whole(*row) for row in body["wholes"]]
    kinds = numbers("I", body["kinds"])
    rows = zip(*[iter(numbers("q", body["boxes"]))] * _depth(wholes), strict=True)
    boxes = _boxes(wholes, kinds, list(zip(rows, rows, strict=True)))
    identities = _identities(body["identities"])
    ranks, counts, sizes = tuple(body["ranks"]), body["counts"], numbers("Q", body["sizes"])
    if not ranks or len(ranks) != len(counts) or not sum(counts) == len(boxes) == len(identities) == len(sizes):
        raise ValueError("columns of different lengths")
    return Share(ranks, counts, wholes, kinds, boxes, sizes, identities)


def identified(share: Share, text: str) -> Share:
    """Another share of the same layout, with identities as they come in a message."""
    identities = _identities(text)
    if len(identities) != len(share.kinds):
        raise ValueError("columns of different lengths")
    return share if identities == share.identities else replace(share, identities=identities)


def _identities(text: str) -> list[bytes]:
    joined = bytes.fromhex(text)
    return [joined[at : at + IDENTITY_BYTES] for at in range(0, len(joined), IDENTITY_BYTES)]


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
    return {
        "blobs": report.blobs,
        "blob_count": report.blob_count,
        "packed": report.packed,
        "trees": report.trees,
        "tree_numbers": column("I", report.tree_numbers),
        "ranks": report.ranks,
    }


def decode_report(body: Any) -> Report:
    return Report(
        body["blobs"],
        body["blob_count"],
        body["packed"],
        body["trees"],
        numbers("I", body["tree_numbers"]),
        body["ranks"],
    )


def encode_part(part: StoredPart) -> dict[str, object]:
    return {
        "files": [[file.name, file.size_bytes, file.reused] for file in part.files],
        "reports": [[lead, encode_report(report)] for lead, report in part.reports.items()],
    }


def decode_part(body: Any) -> StoredPart:
    files = tuple(StoredFile(name, size, reused) for name, size, reused in body["files"])
    return StoredPart(files, {lead: decode_report(report) for lead, report in body["reports"]})
