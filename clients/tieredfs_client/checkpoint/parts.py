"""What each process of a save does with its own tensors, whether it gathers its machine or is gathered: look which are as they
were, write the others where it is told, say what it wrote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tieredfs.host import Host, crash
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import Reference, Spot
from tieredfs_client.checkpoint.layout import Blob, StoredFile
from tieredfs_client.checkpoint.pack import PackTarget
from tieredfs_client.checkpoint.packing import Compression, Pace
from tieredfs_client.checkpoint.shares import Cargo, Place, Share
from tieredfs_client.checkpoint.write import TARGET_ORDER, Earlier, PartWriter, Target, Written, identity

Chosen = Mapping[int, Sequence[int]]
"""Which of its tensors each rank stores, rising. All that is said of them later is in the order of this: ranks, then tensors."""


def places_of(chosen: Chosen, ranks: Iterable[int]) -> list[Place]:
    """What some of the ranks store, in order."""
    return [(rank, index) for rank in ranks for index in chosen.get(rank, ())]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the chosen tensors are stored now, in order, and when each rank's were."""

    blobs: list[Blob]
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class Looked:
    """Of tensors that are to be stored: those that an earlier checkpoint has, and those that are to be packed if they must be
    written, after all."""

    same: dict[Place, Reference]
    packed: set[Place]

    def add(self, other: "Looked") -> None:
        """What another process has found."""
        self.same.update(other.same)
        self.packed.update(other.packed)


class ProcessPart:
    """The tensors of one process in one save. One thread."""

    def __init__(
        self,
        host: Host,
        writer: PartWriter,
        cargo: Cargo,
        earlier: Earlier | None,
        compression: Compression | None = None,
    ) -> None:
        self._clock = host.clock
        self._writer = writer
        self._earlier = earlier
        self._compression = compression
        self._started_s = host.clock.monotonic_s()
        self._digests: dict[int, Digest] = {}
        self._chosen: list[int] = []
        """Leaves that are to be stored, by number, in order."""
        self._same: dict[int, Blob] = {}
        self._packed: frozenset[int] = frozenset()
        self.cargo = cargo

    @collector_paused()
    def shares(self, *, alone: bool) -> dict[int, Share]:
        """What its ranks have. Unless `alone`, what others may have, too, is hashed for it."""
        if not alone:
            wanted = [number for number, leaf in enumerate(self.cargo.leaves) if not leaf.sharded]
            self._digests = self._writer.digests(self.cargo.leaves, wanted)
        return self.cargo.shares(self._digests)

    @property
    def pace(self) -> Pace | None:
        """What is known here of how fast a checkpoint's files are."""
        return self._writer.pace

    def observe(self, size_bytes: int, seconds: float) -> None:
        self._writer.observe(size_bytes, seconds)

    def look(self, chosen: Chosen, pace: Pace | None) -> Looked:
        """What of the chosen tensors need not be written, and what is to be packed where it is."""
        leaves, starts = self.cargo.leaves, self.cargo.starts
        self._chosen = [starts[rank] + index for rank in self.cargo.ranks for index in chosen.get(rank, ())]
        self._same = self._writer.unchanged(leaves, self._chosen, self._digests, self._earlier)
        if self._compression is not None:
            self._packed = frozenset(self._writer.worth_packing(leaves, self._chosen, self._compression, pace))
        return Looked(self._references(), {self.cargo.places[number] for number in self._packed})

    def _references(self) -> dict[Place, Reference]:
        if self._earlier is None:
            return {}
        base, files = self._earlier.path + b"/", self._earlier.files
        return {
            self.cargo.places[number]: Reference(
                base + files[blob.file].name.encode(), blob.offset, None if blob.packed is None else blob.stored_bytes
            )
            for number, blob in self._same.items()
        }

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
        seconds = dict.fromkeys(self.cargo.ranks, 0.0)
        blobs: list[Blob] = []
        for number, spot in zip(self._chosen, spots, strict=True):
            blobs.append(self._blob(number, spot, written))
            rank = self.cargo.places[number][0]
            seconds[rank] = max(seconds[rank], written.ended_s.get(number, self._started_s) - self._started_s)
        return Stored(blobs, seconds)

    def _blob(self, number: int, spot: Spot, written: Written) -> Blob:
        size = self.cargo.leaves[number].size_bytes
        digest = written.digests.get(number)
        if digest is not None:
            return Blob(spot.file, spot.offset, size, digest.content, digest.probe, digest.crcs)
        leaf = written.packed.get(number)
        if leaf is not None:
            digest = leaf.digest
            return Blob(spot.file, leaf.offset, size, digest.content, digest.probe, digest.crcs, leaf.packed)
        same = self._same[number]
        return Blob(spot.file, spot.offset, size, same.content, same.probe, same.crcs, same.packed)

    def remembered(self, path: bytes, files: Sequence[StoredFile], stored: Stored) -> Earlier:
        """What a later save of this process may refer to, in the checkpoint at `path`."""
        leaves = self.cargo.leaves
        blobs = {identity(leaves[number]): blob for number, blob in zip(self._chosen, stored.blobs, strict=True)}
        return Earlier(path, tuple(files), blobs)
