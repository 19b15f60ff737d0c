"""What each process of a save does with its own tensors, whether it gathers its machine or is gathered: look which are as they
were, write the others where it is told, say what it wrote."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tieredfs.host import Host, crash
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.hostfiles import Reference, Spot
from tieredfs_client.checkpoint.layout import Blob, StoredFile
from tieredfs_client.checkpoint.pack import PackedLeaf, PackTarget
from tieredfs_client.checkpoint.packing import Compression, Pace
from tieredfs_client.checkpoint.shares import Cargo, Place, Share
from tieredfs_client.checkpoint.write import Earlier, PartWriter, Target, identity

Chosen = Mapping[int, Collection[int] | None]
"""Which of its tensors each rank stores; None: all."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where tensors are stored now, and when each rank's were."""

    blobs: dict[Place, Blob]
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class Looked:
    """Of tensors that are to be stored: those that an earlier checkpoint has, and those that are to be packed if they must be
    written, after all."""

    same: dict[Place, Reference]
    packed: frozenset[Place]

    def joined(self, other: "Looked") -> "Looked":
        return Looked(self.same | other.same, self.packed | other.packed)


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
        self._numbers = {place: number for number, place in enumerate(cargo.places)}
        self._digests: dict[int, Digest] = {}
        self._same: dict[int, Blob] = {}
        self._packed: frozenset[int] = frozenset()
        self.cargo = cargo

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
        numbers = [
            number
            for number, (rank, index) in enumerate(self.cargo.places)
            if rank in chosen and _has(chosen[rank], index)
        ]
        self._same = self._writer.unchanged(self.cargo.leaves, numbers, self._digests, self._earlier)
        if self._compression is not None:
            self._packed = frozenset(self._writer.worth_packing(self.cargo.leaves, numbers, self._compression, pace))
        return Looked(self._references(), frozenset(self.cargo.places[number] for number in self._packed))

    def _references(self) -> dict[Place, Reference]:
        if self._earlier is None:
            return {}
        base, files = self._earlier.path + b"/", self._earlier.files
        return {
            self.cargo.places[number]: Reference(
                base + files[blob.file].name.encode(), blob.offset, blob.stored_bytes if blob.packed else None
            )
            for number, blob in self._same.items()
        }

    def store(self, spots: Mapping[Place, Spot], descriptors: Mapping[int, int]) -> Stored:
        """Write what lies in a file that has a descriptor; the rest is there already. Raises NoSpaceError, UnavailableError."""
        targets, packed = self._targets(spots, descriptors)
        level = self._compression.level if self._compression is not None else None
        written = self._writer.write(self.cargo.leaves, targets, self._digests, packed, level)
        crash.here("checkpoint.part-written")
        seconds = dict.fromkeys(self.cargo.ranks, 0.0)
        blobs: dict[Place, Blob] = {}
        for place, spot in spots.items():
            number = self._numbers[place]
            blobs[place] = self._blob(number, spot, written.digests.get(number), written.packed.get(number))
            after_s = written.ended_s.get(number, self._started_s) - self._started_s
            seconds[place[0]] = max(seconds[place[0]], after_s)
        return Stored(blobs, seconds)

    def _targets(
        self, spots: Mapping[Place, Spot], descriptors: Mapping[int, int]
    ) -> tuple[list[Target], list[PackTarget]]:
        """In the order of the files; packed ones in that of their places, in which their files are laid out."""
        targets, packed = [], []
        for place, spot in sorted(spots.items(), key=lambda one: one[0]):
            number = self._numbers[place]
            if spot.file in descriptors and number in self._packed:
                packed.append(PackTarget(number, descriptors[spot.file], spot.offset))
            elif spot.file in descriptors:
                targets.append(Target(number, descriptors[spot.file], spot.offset))
        targets.sort(key=lambda target: (target.descriptor, target.offset))
        packed.sort(key=lambda target: target.descriptor)
        return targets, packed

    def _blob(self, number: int, spot: Spot, written: Digest | None, packed: PackedLeaf | None) -> Blob:
        size = self.cargo.leaves[number].size_bytes
        if packed is not None:
            digest = packed.digest
            return Blob(spot.file, packed.offset, size, digest.content, digest.probe, digest.crcs, packed=packed.packed)
        if written is not None:
            return Blob(spot.file, spot.offset, size, written.content, written.probe, written.crcs)
        return self._same[number].moved(spot.file, spot.offset)

    def remembered(self, path: bytes, files: Sequence[StoredFile], stored: Stored) -> Earlier:
        """What a later save of this process may refer to, in the checkpoint at `path`."""
        blobs = {identity(self.cargo.leaves[self._numbers[place]]): blob for place, blob in stored.blobs.items()}
        return Earlier(path, tuple(files), blobs)


def _has(chosen: Collection[int] | None, index: int) -> bool:
    return chosen is None or index in chosen
