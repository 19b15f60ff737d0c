"""What each process of a save does with its own tensors, whether it gathers its machine or is gathered: look which are as they
were, write the others where it is told, say what it wrote."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tieredfs.host import Host, crash
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.hostfiles import Spot
from tieredfs_client.checkpoint.layout import Blob, StoredFile
from tieredfs_client.checkpoint.shares import Cargo, Place, Share
from tieredfs_client.checkpoint.write import Earlier, PartWriter, Target, identity

Chosen = Mapping[int, Collection[int] | None]
"""Which of its tensors each rank stores; None: all."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where tensors are stored now, and when each rank's were."""

    blobs: dict[Place, Blob]
    seconds: dict[int, float]


class ProcessPart:
    """The tensors of one process in one save. One thread."""

    def __init__(self, host: Host, writer: PartWriter, cargo: Cargo, earlier: Earlier | None) -> None:
        self._clock = host.clock
        self._writer = writer
        self._earlier = earlier
        self._started_s = host.clock.monotonic_s()
        self._numbers = {place: number for number, place in enumerate(cargo.places)}
        self._digests: dict[int, Digest] = {}
        self._same: dict[int, Blob] = {}
        self.cargo = cargo

    def shares(self, *, alone: bool) -> dict[int, Share]:
        """What its ranks have. Unless `alone`, what others may have, too, is hashed for it."""
        if not alone:
            wanted = [number for number, leaf in enumerate(self.cargo.leaves) if not leaf.sharded]
            self._digests = self._writer.digests(self.cargo.leaves, wanted)
        return self.cargo.shares(self._digests)

    def unchanged(self, chosen: Chosen) -> dict[Place, tuple[bytes, int]]:
        """Of the chosen tensors those that the earlier checkpoint has: path and offset there."""
        numbers = [
            number
            for number, (rank, index) in enumerate(self.cargo.places)
            if rank in chosen and _has(chosen[rank], index)
        ]
        self._same = self._writer.unchanged(self.cargo.leaves, numbers, self._digests, self._earlier)
        if self._earlier is None:
            return {}
        base, files = self._earlier.path + b"/", self._earlier.files
        return {
            self.cargo.places[number]: (base + files[blob.file].name.encode(), blob.offset)
            for number, blob in self._same.items()
        }

    def store(self, spots: Mapping[Place, Spot], descriptors: Mapping[int, int]) -> Stored:
        """Write what lies in a file that has a descriptor; the rest is there already. Raises NoSpaceError, UnavailableError."""
        targets = [
            Target(self._numbers[place], descriptors[spot.file], spot.offset)
            for place, spot in spots.items()
            if spot.file in descriptors
        ]
        targets.sort(key=lambda target: (target.descriptor, target.offset))
        digests, ended_s = self._writer.write(self.cargo.leaves, targets, self._digests)
        crash.here("checkpoint.part-written")
        seconds = dict.fromkeys(self.cargo.ranks, 0.0)
        blobs: dict[Place, Blob] = {}
        for place, spot in spots.items():
            number = self._numbers[place]
            blobs[place] = self._blob(number, spot, digests.get(number))
            after_s = ended_s.get(number, self._started_s) - self._started_s
            seconds[place[0]] = max(seconds[place[0]], after_s)
        return Stored(blobs, seconds)

    def _blob(self, number: int, spot: Spot, written: Digest | None) -> Blob:
        size = self.cargo.leaves[number].size_bytes
        if written is not None:
            return Blob(spot.file, spot.offset, size, written.content, written.probe, written.crcs)
        same = self._same[number]
        return Blob(spot.file, spot.offset, size, same.content, same.probe, same.crcs)

    def remembered(self, path: bytes, files: Sequence[StoredFile], stored: Stored) -> Earlier:
        """What a later save of this process may refer to, in the checkpoint at `path`."""
        blobs = {identity(self.cargo.leaves[self._numbers[place]]): blob for place, blob in stored.blobs.items()}
        return Earlier(path, tuple(files), blobs)


def _has(chosen: Collection[int] | None, index: int) -> bool:
    return chosen is None or index in chosen
