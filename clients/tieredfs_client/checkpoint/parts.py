"""What each process of a save does with its own tensors, whether it gathers its machine or is gathered: look which are as they
were, write the others where it is told, say what it wrote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tieredfs.host import Host, crash
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import Spot
from tieredfs_client.checkpoint.layout import Blob, StoredFile
from tieredfs_client.checkpoint.shares import Cargo, Place, Share
from tieredfs_client.checkpoint.write import TARGET_ORDER, Earlier, PartWriter, Target, identity

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


class ProcessPart:
    """The tensors of one process in one save. One thread."""

    def __init__(self, host: Host, writer: PartWriter, cargo: Cargo, earlier: Earlier | None) -> None:
        self._clock = host.clock
        self._writer = writer
        self._earlier = earlier
        self._started_s = host.clock.monotonic_s()
        self._digests: dict[int, Digest] = {}
        self._chosen: list[int] = []
        """Leaves that are to be stored, by number, in order."""
        self._same: dict[int, Blob] = {}
        self.cargo = cargo

    @collector_paused()
    def shares(self, *, alone: bool) -> dict[int, Share]:
        """What its ranks have. Unless `alone`, what others may have, too, is hashed for it."""
        if not alone:
            wanted = [number for number, leaf in enumerate(self.cargo.leaves) if not leaf.sharded]
            self._digests = self._writer.digests(self.cargo.leaves, wanted)
        return self.cargo.shares(self._digests)

    def unchanged(self, chosen: Chosen) -> dict[Place, tuple[bytes, int]]:
        """Of the chosen tensors those that the earlier checkpoint has: path and offset there."""
        starts = self.cargo.starts
        self._chosen = [starts[rank] + index for rank in self.cargo.ranks for index in chosen.get(rank, ())]
        self._same = self._writer.unchanged(self.cargo.leaves, self._chosen, self._digests, self._earlier)
        if self._earlier is None:
            return {}
        base, files = self._earlier.path + b"/", self._earlier.files
        return {
            self.cargo.places[number]: (base + files[blob.file].name.encode(), blob.offset)
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
        targets.sort(key=TARGET_ORDER)
        digests, ended_s = self._writer.write(self.cargo.leaves, targets, self._digests)
        crash.here("checkpoint.part-written")
        seconds = dict.fromkeys(self.cargo.ranks, 0.0)
        blobs: list[Blob] = []
        for number, spot in zip(self._chosen, spots, strict=True):
            blobs.append(self._blob(number, spot, digests.get(number)))
            rank = self.cargo.places[number][0]
            seconds[rank] = max(seconds[rank], ended_s.get(number, self._started_s) - self._started_s)
        return Stored(blobs, seconds)

    def _blob(self, number: int, spot: Spot, written: Digest | None) -> Blob:
        size = self.cargo.leaves[number].size_bytes
        if written is not None:
            return Blob(spot.file, spot.offset, size, written.content, written.probe, written.crcs)
        same = self._same[number]
        return Blob(spot.file, spot.offset, size, same.content, same.probe, same.crcs)

    def remembered(self, path: bytes, files: Sequence[StoredFile], stored: Stored) -> Earlier:
        """What a later save of this process may refer to, in the checkpoint at `path`."""
        leaves = self.cargo.leaves
        blobs = {identity(leaves[number]): blob for number, blob in zip(self._chosen, stored.blobs, strict=True)}
        return Earlier(path, tuple(files), blobs)
