"""A save by all ranks: one part per rank, one manifest, one rename.

Nothing is visible before the rename of the attempt's `data` directory to the checkpoint's name, and everything is durable
before it: files at the durability that was asked for, the manifest last. The rename refuses a name that is taken, so of two
attempts at one generation of a step one is told. What this attempt leaves when it dies is below `.attempts`, where
nobody looks but the next save, which removes it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tieredfs.errors import (
    ConflictError,
    CorruptError,
    NotDirectoryError,
    NotFoundError,
    RequestError,
    TieredError,
)
from tieredfs.host import crash
from tieredfs.model import Durability
from tieredfs_client.checkpoint.attempt import ATTEMPT_XATTR, Attempt
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.checksums import Digest
from tieredfs_client.checkpoint.documents import write_document
from tieredfs_client.checkpoint.layout import (
    MANIFEST_NAME,
    Blob,
    Manifest,
    RankRecord,
    StoredFile,
    StoredShard,
    StoredTensor,
    decode_blob,
    encode_blob,
    encode_manifest,
    read_checked,
)
from tieredfs_client.checkpoint.names import CheckpointName, parse_checkpoint
from tieredfs_client.checkpoint.plan import Offer, assign_writers
from tieredfs_client.checkpoint.tree import Flat, Leaf, renumbered
from tieredfs_client.checkpoint.write import Earlier, PartWriter, WrittenPart


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. Of this rank: `written_bytes`, `reused_bytes`, `seconds`; the rest of all."""

    step: int
    checkpoint: CheckpointName
    written_bytes: int
    reused_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Extra:
    """What goes into the manifest beside the state; rank 0's counts."""

    metadata: Mapping[str, object]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor of one rank as the others need to know it: `content` is None where it is known only once it is written."""

    key: str
    origin: Any
    dtype: str
    item_bytes: int
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    sharded: bool
    content: str | None

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for what needs to be stored once: the same piece of a sharded tensor, the same content of another."""
        kind = (self.key, self.origin, self.dtype, self.global_shape)
        return (*kind, self.offsets, self.shape) if self.sharded else (*kind, self.content)

    @property
    def size_bytes(self) -> int:
        size = self.item_bytes
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank has: its tree and its tensors; and, once stored, its part."""

    skeleton: Any
    tensors: tuple[Described, ...]


def describe(leaf: Leaf, digest: Digest | None) -> Described:
    content = digest.content if digest is not None else None
    sizes = (leaf.global_shape, leaf.offsets, leaf.shape)
    return Described(leaf.key, leaf.origin, leaf.dtype, leaf.item_bytes, *sizes, leaf.sharded, content)


# ---- one save --------------------------------------------------------------------------------------------------------


class Save:
    """One attempt, as one rank carries it out. Run once, or only told why not."""

    def __init__(
        self,
        catalog: Catalog,
        attempt: Attempt,
        writer: PartWriter,
        *,
        extra: Extra,
        durability: Durability | None,
        guard: Callable[[], None],
    ) -> None:
        """`guard`: raises when this process may not commit any more; asked of rank 0, last of all."""
        self._guard = guard
        self._catalog = catalog
        self._attempt = attempt
        self._writer = writer
        self._extra = extra
        self._earlier: Earlier | None = None
        self._told = False
        self._durability = durability
        self._started_s = catalog.host.clock.monotonic_s()

    def run(self, flat: Flat, earlier: Earlier | None) -> tuple[Saved, WrittenPart]:
        """The whole of it. A failure is told to the other ranks, and raised."""
        self._earlier = earlier
        try:
            if self._attempt.group.world_size == 1:
                return self._run_alone(flat)
            return self._run_with_others(flat)
        except BaseException as error:
            self.tell(error)
            if self._attempt.group.world_size == 1:
                self._remove_attempt()  # what was stored of it is room that the next one may need
            raise

    def tell(self, error: BaseException) -> None:
        """Let the other ranks know that there will be no checkpoint; what cannot be told they find out at the deadline."""
        if self._attempt.group.world_size > 1 and not self._told:
            self._told = True
            with contextlib.suppress(TieredError, OSError):
                self._attempt.post_failure(error)

    def _run_alone(self, flat: Flat) -> tuple[Saved, WrittenPart]:
        self._clear_stale(own=True)
        part = self._write(flat, range(len(flat.leaves)), {})
        name = self._next_name()
        share = Share(flat.skeleton, tuple(describe(leaf, None) for leaf in flat.leaves))
        self._commit(name, [share], [part], [self._elapsed_s()])
        self._remove_attempt()
        return self._saved(name, part), part

    def _run_with_others(self, flat: Flat) -> tuple[Saved, WrittenPart]:
        replicated = [index for index, leaf in enumerate(flat.leaves) if not leaf.sharded]
        digests = self._writer.digests(flat.leaves, replicated)
        share = Share(flat.skeleton, tuple(describe(leaf, digests.get(at)) for at, leaf in enumerate(flat.leaves)))
        if self._attempt.group.rank == 0:
            return self._coordinate(flat, share, digests)
        crash.here("checkpoint.rank-arrived")
        self._attempt.post("intent", encode_share(share))
        plan = self._attempt.wait_for_plan()
        name = parse_checkpoint(plan["checkpoint"].encode())
        if name is None:
            raise CorruptError(f"the plan of {self._attempt.name} names no checkpoint")
        chosen = plan["write"].get(str(self._attempt.group.rank), range(len(flat.leaves)))
        part = self._write(flat, chosen, digests)
        self._attempt.post("part", {"part": encode_part(part), "seconds": self._elapsed_s()})
        crash.here("checkpoint.rank-stored")
        self._attempt.wait_for_outcome(name)
        return self._saved(name, part), part

    def _coordinate(self, flat: Flat, own: Share, digests: Mapping[int, Digest]) -> tuple[Saved, WrittenPart]:
        self._clear_stale(own=False)
        crash.here("checkpoint.begun")
        told = self._attempt.gather("intent")
        self._clear_stale(own=True)
        shares = [own, *(read_checked(partial(decode_share, body), "an intent") for body in told[1:])]
        offers = [[Offer(one.identity, one.size_bytes) for one in share.tensors] for share in shares]
        chosen = assign_writers(offers)
        name = self._next_name()
        crash.here("checkpoint.gathered")
        shares_of_writers = {
            str(rank): indexes for rank, indexes in enumerate(chosen) if len(indexes) != len(shares[rank].tensors)
        }
        self._attempt.post("plan", {"checkpoint": str(name), "write": shares_of_writers})
        crash.here("checkpoint.planned")
        part = self._write(flat, chosen[0], digests)
        own_seconds = self._elapsed_s()
        bodies = self._attempt.gather("part")[1:]
        parts = [part, *(read_checked(partial(decode_part, body), "a part") for body in bodies)]
        self._commit(name, shares, parts, [own_seconds, *(body["seconds"] for body in bodies)])
        self._told = True
        with contextlib.suppress(TieredError, OSError):  # it is committed; the others see that, too, at its name
            self._attempt.post("outcome", {"committed": str(name)})
        return self._saved(name, part), part

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _write(self, flat: Flat, chosen: Sequence[int], digests: Mapping[int, Digest]) -> WrittenPart:
        attempt = self._attempt
        return self._writer.write(
            attempt.directory, attempt.group.rank, flat.leaves, chosen, known=digests, earlier=self._earlier
        )

    def _clear_stale(self, *, own: bool) -> None:
        """Remove attempts of other jobs: this process holds the run, so nobody is to finish them. Earlier ones of this job,
        `own`, only once all ranks have arrived here: until then some may still be looking how those ended."""
        current = self._attempt.name
        _, job, sequence = current.split("-")
        for name, _ in list(self._catalog.listed(self._attempt.paths.attempts)):
            parts = name.decode("ascii", "replace").split("-")
            ours = len(parts) == 3 and parts[1] == job
            if not ours or (own and parts[2] < sequence):
                with contextlib.suppress(NotFoundError, NotDirectoryError):
                    self._catalog.discard(self._attempt.paths.attempts + b"/" + name)

    def _remove_attempt(self) -> None:
        """Of a rank alone; trouble with it is the next save's, which removes it, too."""
        with contextlib.suppress(TieredError):
            self._catalog.volume.remove_tree(self._attempt.directory)

    def _next_name(self) -> CheckpointName:
        step = self._attempt.step
        taken = [found.name for found in self._catalog.generations() if found.name.step == step]
        return taken[-1].next_generation() if taken else CheckpointName(step)

    def _check_files(self, parts: Sequence[WrittenPart]) -> None:
        """Every file of every rank is there, as long as its rank said. Who takes a run over takes the directory of an attempt
        away whole, so what is there now is all there, or the rename that follows finds nothing."""
        directory = self._attempt.directory + b"/data/"
        for rank, part in enumerate(parts):
            for file in part.files:
                size = self._catalog.volume.stat(directory + file.name.encode()).size_bytes
                if size != file.size_bytes:
                    raise CorruptError(f"{file.name} of rank {rank} has {size} bytes instead of {file.size_bytes}")

    def _commit(
        self, name: CheckpointName, shares: Sequence[Share], parts: Sequence[WrittenPart], seconds: Sequence[float]
    ) -> None:
        catalog, attempt = self._catalog, self._attempt
        about = (attempt.step, attempt.name, catalog.host.clock.wall_ns(), self._elapsed_s())
        manifest = assemble(about, self._extra, shares, parts, seconds)
        path = attempt.directory + b"/data/" + MANIFEST_NAME.encode()
        crash.here("checkpoint.stored")
        xattrs = {ATTEMPT_XATTR: attempt.name.encode()}
        data = encode_manifest(manifest)
        write_document(catalog.host.files, catalog.volume, path, data, durability=self._durability, xattrs=xattrs)
        crash.here("checkpoint.manifest-written")
        self._guard()
        try:
            self._check_files(parts)
            catalog.volume.rename(attempt.directory + b"/data", catalog.paths.checkpoint(name), replace=False)
        except RequestError as error:
            raise ConflictError(
                f"step {attempt.step} was not saved: another save took over this run ({error})"
            ) from error
        crash.here("checkpoint.committed")

    def _elapsed_s(self) -> float:
        return self._catalog.host.clock.monotonic_s() - self._started_s

    def _saved(self, name: CheckpointName, part: WrittenPart) -> Saved:
        return Saved(self._attempt.step, name, part.written_bytes, part.reused_bytes, self._elapsed_s())


# ---- the manifest from the parts -------------------------------------------------------------------------------------


def assemble(
    about: tuple[int, str, int, float],
    extra: Extra,
    shares: Sequence[Share],
    parts: Sequence[WrittenPart],
    seconds: Sequence[float],
) -> Manifest:
    """`about`: step, attempt, time, seconds. Raises CorruptError where a tensor that a rank has was stored by nobody."""
    files: list[StoredFile] = []
    blobs: list[Blob] = []
    blob_of: dict[tuple[object, ...], int] = {}
    for share, part in zip(shares, parts, strict=True):
        base = len(files)
        files += part.files
        for index, blob in part.blobs.items():
            described = share.tensors[index]
            blob_of[described.identity] = len(blobs)
            blobs.append(Blob(base + blob.file, blob.offset, blob.size_bytes, blob.content, blob.probe, blob.crcs))
    tensors = _Tensors(blob_of)
    trees: list[Any] = []
    known: dict[str, int] = {}
    ranks: list[RankRecord] = []
    for rank, (share, part) in enumerate(zip(shares, parts, strict=True)):
        skeleton = renumbered(share.skeleton, [tensors.number(one, rank) for one in share.tensors])
        tree = known.setdefault(repr(skeleton), len(trees))
        if tree == len(trees):
            trees.append(skeleton)
        ranks.append(RankRecord(rank, tree, part.written_bytes, part.reused_bytes, seconds[rank]))
    step, attempt, created_ns, elapsed_s = about
    return Manifest(
        step,
        attempt,
        len(shares),
        created_ns,
        elapsed_s,
        extra.metadata,
        extra.metrics,
        tuple(trees),
        tensors.finished(),
        tuple(blobs),
        tuple(files),
        tuple(ranks),
    )


class _Tensors:
    """The table of tensors: pieces of one sharded tensor meet here, whatever rank they come from."""

    def __init__(self, blob_of: Mapping[tuple[object, ...], int]) -> None:
        self._blob_of = blob_of
        self._numbers: dict[tuple[object, ...], int] = {}
        self._first: list[Described] = []
        self._shards: list[dict[tuple[object, ...], StoredShard]] = []

    def number(self, one: Described, rank: int) -> int:
        whole = (one.key, one.origin, one.dtype, one.global_shape) if one.sharded else one.identity
        number = self._numbers.setdefault((one.sharded, *whole), len(self._first))
        if number == len(self._first):
            self._first.append(one)
            self._shards.append({})
        if one.identity not in self._blob_of:
            raise CorruptError(f"{one.key} of rank {rank} was stored by no rank")
        shard = StoredShard(one.offsets, one.shape, self._blob_of[one.identity])
        self._shards[number].setdefault((one.offsets, one.shape), shard)
        return number

    def finished(self) -> tuple[StoredTensor, ...]:
        return tuple(
            StoredTensor(
                one.key, one.origin, one.dtype, one.item_bytes, one.global_shape, one.sharded, tuple(shards.values())
            )
            for one, shards in zip(self._first, self._shards, strict=True)
        )


# ---- messages --------------------------------------------------------------------------------------------------------


def encode_share(share: Share) -> dict[str, object]:
    rows = [
        [
            one.key,
            one.origin,
            one.dtype,
            one.item_bytes,
            one.global_shape,
            one.offsets,
            one.shape,
            one.sharded,
            one.content,
        ]
        for one in share.tensors
    ]
    return {"skeleton": share.skeleton, "tensors": rows}


def decode_share(body: Any) -> Share:
    tensors = tuple(
        Described(key, origin, dtype, item, tuple(whole), tuple(offsets), tuple(shape), sharded, content)
        for key, origin, dtype, item, whole, offsets, shape, sharded, content in body["tensors"]
    )
    return Share(body["skeleton"], tensors)


def encode_part(part: WrittenPart) -> dict[str, object]:
    return {
        "files": [[file.name, file.size_bytes, file.reused] for file in part.files],
        "blobs": [[index, encode_blob(blob)] for index, blob in part.blobs.items()],
        "bytes": [part.written_bytes, part.reused_bytes],
    }


def decode_part(body: Any) -> WrittenPart:
    """Of the body of a `part` message."""
    part = body["part"]
    files = tuple(StoredFile(name, size, reused) for name, size, reused in part["files"])
    return WrittenPart(files, {index: decode_blob(blob) for index, blob in part["blobs"]}, *part["bytes"])


def earlier_of(catalog: Catalog, name: CheckpointName, manifest: Manifest) -> Earlier:
    """What a later save may refer to."""
    blobs: dict[tuple[object, ...], Blob] = {
        (tensor.key, tensor.dtype, tensor.shape, shard.offsets, shard.shape): manifest.blobs[shard.blob]
        for tensor in manifest.tensors
        for shard in tensor.shards
    }
    return Earlier(catalog.paths.checkpoint(name), manifest.files, blobs)
