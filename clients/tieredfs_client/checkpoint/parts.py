"""What each process of a save does with its own tensors, whether it gathers its machine or is gathered: look which are as they
were, write the others where it is told, say what it wrote."""

import json
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tieredfs.host import Host, crash
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import Reference, Spot
from tieredfs_client.checkpoint.layout import Blob, StoredFile, blob_rows, rank_text
from tieredfs_client.checkpoint.pack import PackTarget
from tieredfs_client.checkpoint.packing import Compression, Pace
from tieredfs_client.checkpoint.remembered import Remembered
from tieredfs_client.checkpoint.shares import Cargo, Report, Share
from tieredfs_client.checkpoint.tree import renumbered
from tieredfs_client.checkpoint.write import TARGET_ORDER, Earlier, PartWriter, Target, Written

_compact: Final = json.JSONEncoder(separators=(",", ":")).encode


def _plainly(value: Any) -> bytes:
    """What it is, `True` and 1 apart: 0.5 us for a small tree, whose JSON takes 2.6. By the last version of marshal in which equal
    values look alike, whoever else refers to their parts."""
    return marshal.dumps(value, 2)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the chosen tensors are stored now, in order; how much of each rank's was written, and when; and heads of some
    tensors, by number (`write.Earlier`)."""

    blobs: list[Blob]
    written: Sequence[int]
    """Bytes, rank after rank, as `reused`."""
    reused: Sequence[int]
    seconds: list[float]
    heads: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Looked:
    """Of one process's tensors that are to be stored: those that an earlier checkpoint has, and those that are to be packed if they
    must be written, after all. By their numbers in it."""

    same: Mapping[int, Reference]
    packed: frozenset[int]


@dataclass(frozen=True, slots=True)
class Trees:
    """The different trees of one process's ranks, and which of them each rank has; see `shares.Report`."""

    texts: Sequence[str]
    numbers: Sequence[int]


class ProcessPart:
    """The tensors of one process in one save. One thread."""

    def __init__(
        self,
        host: Host,
        writer: PartWriter,
        cargo: Cargo,
        earlier: Earlier | None,
        compression: Compression | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        self._clock = host.clock
        self._writer = writer
        self._earlier = earlier
        self._compression = compression
        self.kept = remembered if remembered is not None else Remembered()
        self._started_s = host.clock.monotonic_s()
        self._digests: dict[int, Digest] = {}
        self._chosen: Sequence[int] = ()
        """Leaves that are to be stored, by number, in order."""
        self._same: dict[int, Blob] = {}
        self._packed: frozenset[int] = frozenset()
        self.cargo = cargo

    @collector_paused()
    def share(self, *, alone: bool) -> Share:
        """What its ranks have. Unless `alone`, what others may have, too, is hashed for it."""
        if not alone:
            wanted = [number for number, leaf in enumerate(self.cargo.leaves) if not leaf.sharded]
            self._digests = self._writer.digests(self.cargo.leaves, wanted)
        return self.cargo.share(self._digests, self.kept.share)

    @collector_paused()
    def trees(self, numbers: Sequence[int]) -> Trees:
        """`numbers`: what each of its tensors is called in the manifest."""
        texts = self.kept.trees.texts
        known: dict[str, int] = {}
        found, used = [], {}
        for flat, (start, end) in zip(self.cargo.flats, self.cargo.spans, strict=True):
            own = numbers[start:end]
            key = _plainly((own, flat.skeleton))
            text = texts.get(key)
            if text is None:
                same = own == list(range(len(own)))  # as where all is sharded, in equal trees
                text = _compact(flat.skeleton if same else renumbered(flat.skeleton, own))
            used[key] = text
            found.append(known.setdefault(text, len(known)))
        self.kept.trees.texts = used
        return Trees(list(known), found)

    @property
    def pace(self) -> Pace | None:
        """What is known here of how fast a checkpoint's files are."""
        return self._writer.pace

    def observe(self, size_bytes: int, seconds: float) -> None:
        self._writer.observe(size_bytes, seconds)

    @collector_paused()
    def look(self, chosen: Sequence[int], pace: Pace | None) -> Looked:
        """What of the chosen tensors need not be written, and what is to be packed where it is."""
        leaves = self.cargo.leaves
        self._chosen = chosen
        self._same = self._writer.unchanged(leaves, chosen, self._digests, self._earlier)
        if self._compression is not None:
            self._packed = frozenset(self._writer.worth_packing(leaves, chosen, self._compression, pace))
        return Looked(self._references(), self._packed)

    def _references(self) -> dict[int, Reference]:
        if self._earlier is None:
            return {}
        base, files = self._earlier.path + b"/", self._earlier.files
        return {
            number: Reference(
                base + files[blob.file].name.encode(), blob.offset, None if blob.packed is None else blob.stored_bytes
            )
            for number, blob in self._same.items()
        }

    @collector_paused()
    def store(self, spots: Sequence[Spot], descriptors: Mapping[int, int]) -> Stored:
        """Write what lies in a file that has a descriptor; the rest is there already. `spots`: of the chosen tensors, in order.
        Raises NoSpaceError, UnavailableError."""
        targets = [
            Target(number, descriptors[file], offset)
            for number, (file, offset) in zip(self._chosen, spots, strict=True)
            if file in descriptors
        ]
        packed: list[PackTarget] = []
        if self._packed:
            packed = [PackTarget(*target) for target in targets if target.leaf in self._packed]
            targets = [target for target in targets if target.leaf not in self._packed]
        targets.sort(key=TARGET_ORDER)  # packed ones are in the order in which their files are laid out
        level = self._compression.level if self._compression is not None else None
        written = self._writer.write(self.cargo.leaves, targets, self._digests, packed, level)
        crash.here("checkpoint.part-written")
        leaves, digests = self.cargo.leaves, written.digests
        both = zip(self._chosen, spots, strict=True)
        if len(digests) == len(self._chosen):  # no call for each
            blobs = [
                tuple.__new__(Blob, (*spot, leaves[number].size_bytes, *digests[number], None)) for number, spot in both
            ]
        else:
            blobs = [self._blob(number, spot, written) for number, spot in both]
        sizes, again = self._sizes(spots, descriptors)
        return Stored(blobs, sizes, again, self._seconds(written), written.heads)

    def _sizes(self, spots: Sequence[Spot], descriptors: Mapping[int, int]) -> tuple[list[int], list[int]]:
        """Bytes of each rank that were written, and that were there already."""
        spans = self.cargo.spans
        if len(self._chosen) == len(self.cargo.forms) and all(spot[0] in descriptors for spot in spots):
            every = [form[-1] for form in self.cargo.forms]
            return [sum(every[start:end]) for start, end in spans], [0] * len(spans)
        sizes, again = [0] * len(self.cargo.leaves), [0] * len(self.cargo.leaves)
        for number, spot in zip(self._chosen, spots, strict=True):
            (sizes if spot[0] in descriptors else again)[number] = self.cargo.forms[number][-1]
        return [sum(sizes[start:end]) for start, end in spans], [sum(again[start:end]) for start, end in spans]

    def _seconds(self, written: Written) -> list[float]:
        """When each rank's bytes were written, from the start on; 0 where there were none."""
        started_s = self._started_s
        ended_s = [0.0] * len(self.cargo.leaves)
        for number, each_s in written.ended_s.items():
            ended_s[number] = each_s - started_s
        return [max(ended_s[start:end], default=0.0) for start, end in self.cargo.spans]

    @staticmethod
    def report(stored: Stored, trees: Trees) -> Report:
        packed = any(blob.packed is not None for blob in stored.blobs)
        rows = blob_rows(stored.blobs)
        ranks = list(map(rank_text, stored.written, stored.reused, stored.seconds))
        return Report(rows, len(stored.blobs), packed, trees.texts, trees.numbers, ranks)

    def _blob(self, number: int, spot: Spot, written: Written) -> Blob:
        size = self.cargo.leaves[number].size_bytes
        digest = written.digests.get(number)
        if digest is not None:
            content, probe, crcs = digest
            return Blob(*spot, size, content, probe, crcs)
        leaf = written.packed.get(number)
        if leaf is not None:
            digest = leaf.digest
            return Blob(spot.file, leaf.offset, size, digest.content, digest.probe, digest.crcs, leaf.packed)
        same = self._same[number]
        return Blob(spot.file, spot.offset, size, same.content, same.probe, same.crcs, same.packed)

    def remembered(self, path: bytes, files: Sequence[StoredFile], stored: Stored) -> Earlier:
        """What a later save of this process may refer to, in the checkpoint at `path`."""
        forms = [self.cargo.forms[number] for number in self._chosen]
        return Earlier(path, tuple(files), forms, stored.blobs, list(map(stored.heads.get, self._chosen)))
