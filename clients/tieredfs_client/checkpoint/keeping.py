"""What a run keeps and what is said of it: after a commit, on demand, and for the command line."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import BusyError, ConflictError, InvalidRequestError, NotFoundError, TieredError
from tieredfs.model import Progress
from tieredfs_client.checkpoint.catalog import LOOKS_MAX, Catalog
from tieredfs_client.checkpoint.layout import Manifest, RankRecord, StoredFile, StoredTensor
from tieredfs_client.checkpoint.load import Loader, unwatched
from tieredfs_client.checkpoint.names import CheckpointName
from tieredfs_client.checkpoint.retention import Retention, to_delete

_log: Final = logging.getLogger("tieredfs.checkpoint")


@dataclass(frozen=True, slots=True)
class Summary:
    """A checkpoint at a glance. `problem`: its manifest cannot be read; then the rest is empty."""

    step: int
    name: str
    created_ns: int
    size_bytes: int
    stored_bytes: int
    """What its tensors take in the files: less than their size where they are compressed."""
    new_bytes: int
    """What was put into files for it; the rest are blocks of earlier checkpoints."""
    reused_ratio: float
    durability: str
    """`stored`: every file is in the store at its redundancy; else `staged`."""
    world_size: int
    duration_s: float
    slowest_rank: int
    tags: tuple[str, ...]
    metrics: dict[str, float]
    problem: str | None


class Keeper:
    """Over a catalog. Safe from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._manifests: dict[CheckpointName, dict[str, float]] = {}

    # ---- deleting ---------------------------------------------------------------------------------------------------

    def after_commit(self, committed: CheckpointName, retention: Retention) -> None:
        """What follows a commit: `latest`, the generation that was replaced, what is not kept. The checkpoint is safe, so
        trouble here is a warning, and the next commit or prune does it."""
        try:
            self._catalog.point_latest()
            for found in self._catalog.generations():
                if found.name.step == committed.step and found.name < committed:
                    self._catalog.delete(found.name)
            self.prune(retention)
        except TieredError as error:
            _log.warning("step %d is saved, but tidying up after it failed: %s", committed.step, error)

    def prune(self, retention: Retention) -> list[CheckpointName]:
        """Delete what no rule keeps and nobody reads, beside the newest, which stays."""
        found = {one.name.step: one.name for one in self._catalog.checkpoints()}
        tagged = {name.step for name in self._catalog.tags().values()}
        metrics = {step: self._metrics(name) for step, name in found.items()} if retention.keep_best else {}
        deleted = []
        for step in to_delete(retention, list(found), tagged, metrics):
            try:
                if self._catalog.delete(found[step], spare_tagged=True, staying=found[max(found)]):
                    deleted.append(found[step])
            except (NotFoundError, ConflictError):
                continue  # somebody else was faster
        self._catalog.sweep()
        return deleted

    def _metrics(self, name: CheckpointName) -> dict[str, float]:
        if name not in self._manifests:
            try:
                self._manifests[name] = dict(self._catalog.manifest(name).metrics)
            except TieredError:
                return {}
        return self._manifests[name]

    def delete(self, which: int | str, *, force: bool = False) -> CheckpointName:
        """Raises NotFoundError, BusyError, InvalidRequestError."""
        name = self._catalog.resolve(which)
        for _ in range(LOOKS_MAX):
            with contextlib.suppress(ConflictError):  # the one that was to stay has gone meanwhile
                return self._delete_beside_another(name, force=force)
        raise BusyError(f"step {name.step}: others delete checkpoints of this run at the same time")

    def _delete_beside_another(self, name: CheckpointName, *, force: bool) -> CheckpointName:
        """Raises ConflictError where the last other checkpoint is deleted at the same time, and as `delete` does."""
        tags = [tag for tag, target in self._catalog.tags().items() if target.step == name.step]
        if tags and not force:
            raise InvalidRequestError(f"step {name.step} has the tag {tags[0]!r}; remove it first, or force")
        others = [found.name for found in self._catalog.checkpoints() if found.name.step != name.step]
        if not others and not force:
            raise InvalidRequestError(
                f"step {name.step} is the last checkpoint of this run; force to delete it all the same"
            )
        generations = [found.name for found in self._catalog.generations() if found.name.step == name.step]
        staying = None if force else others[-1]
        for generation in generations:  # the oldest first: until the last one is gone, the step is what it was
            if not self._catalog.delete(generation, spare_tagged=not force, staying=staying):
                raise BusyError(f"step {name.step} is being read, or was just tagged")
        for tag in tags:
            self._catalog.remove_tag(tag)
        self._catalog.point_latest()
        return name

    # ---- looking ----------------------------------------------------------------------------------------------------

    def summaries(self) -> list[Summary]:
        tags = self._catalog.tags()
        return [self._summary(found.name, found.attributes.ctime_ns, tags) for found in self._catalog.checkpoints()]

    def summary(self, name: CheckpointName) -> Summary:
        """Of one. Raises NotFoundError."""
        changed_ns = self._catalog.volume.stat(self._catalog.paths.checkpoint(name)).ctime_ns
        return self._summary(name, changed_ns, self._catalog.tags())

    def _summary(self, name: CheckpointName, changed_ns: int, tags: dict[str, CheckpointName]) -> Summary:
        own_tags = tuple(tag for tag, target in tags.items() if target.step == name.step)
        try:
            manifest = self._catalog.manifest(name)
        except TieredError as error:
            return Summary(name.step, str(name), changed_ns, 0, 0, 0, 0.0, "?", 0, 0.0, 0, own_tags, {}, str(error))
        size = manifest.size_bytes
        slowest = max(manifest.ranks, key=lambda record: record.seconds)
        return Summary(
            manifest.step,
            str(name),
            manifest.created_ns,
            size,
            manifest.stored_bytes,
            manifest.new_bytes,
            1 - manifest.written_bytes / size if size else 0.0,
            self._durability(name, manifest),
            manifest.world_size,
            manifest.seconds,
            slowest.rank,
            own_tags,
            dict(manifest.metrics),
            None,
        )

    def _durability(self, name: CheckpointName, manifest: Manifest) -> str:
        directory = self._catalog.paths.checkpoint(name) + b"/"
        try:
            stored = all(self._catalog.volume.is_stored(directory + file.name.encode()) for file in manifest.files)
        except NotFoundError:
            return "incomplete"
        return "stored" if stored else "staged"

    def verify(self, which: int | str, progress: Progress = unwatched) -> list[str]:
        """Every byte of a checkpoint against its checksums; what is wrong."""
        with self._catalog.leased(which) as name:
            try:
                manifest = self._catalog.manifest(name)
                with Loader(self._catalog, name, manifest, progress=progress) as loader:
                    return list(loader.check())
            except TieredError as error:
                return [str(error)]


# ---- for people ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorLine:
    """A tensor as `show` prints it."""

    key: str
    dtype: str
    shape: str
    size_bytes: int
    stored_ratio: float
    """Of its size, what it takes in the files; 1: not compressed."""
    shard_count: int


@dataclass(frozen=True, slots=True)
class Details:
    """One checkpoint, all of it but the bytes."""

    summary: Summary
    metadata: dict[str, object]
    files: tuple[StoredFile, ...]
    ranks: tuple[RankRecord, ...]
    tensors: tuple[TensorLine, ...]


def described(catalog: Catalog, which: int | str) -> Details:
    """Raises NotFoundError, CorruptError, NewerFormatError."""
    with catalog.leased(which) as name:
        manifest = catalog.manifest(name)
        summary = Keeper(catalog).summary(name)
    tensors = tuple(
        TensorLine(
            one.key, one.dtype, str(list(one.shape)), one.size_bytes, _stored_ratio(manifest, one), len(one.shards)
        )
        for one in manifest.tensors
    )
    return Details(summary, dict(manifest.metadata), manifest.files, manifest.ranks, tensors)


def _stored_ratio(manifest: Manifest, tensor: StoredTensor) -> float:
    blobs = [manifest.blobs[shard.blob] for shard in tensor.shards]
    size = sum(blob.size_bytes for blob in blobs)
    return sum(blob.stored_bytes for blob in blobs) / size if size else 1.0


@dataclass(frozen=True, slots=True)
class Difference:
    """`what`: added, removed, dtype, shape, content, or resharded (then only reading both would tell)."""

    key: str
    what: str
    size_bytes: int


def differences(catalog: Catalog, first: int | str, second: int | str) -> list[Difference]:
    """By content hash, in the order of keys. Tensors that are equal are left out."""
    earlier, later = (_by_key(catalog.manifest(catalog.resolve(which))) for which in (first, second))
    found = []
    for key in sorted(earlier.keys() | later.keys()):
        sides = earlier.get(key, []), later.get(key, [])
        what = _difference(*sides)
        if what is not None:
            found.append(Difference(key, what, sum(one.tensor.size_bytes for one in sides[1] or sides[0])))
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor with the contents of its pieces."""

    tensor: StoredTensor
    pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    contents: tuple[str, ...]


def _by_key(manifest: Manifest) -> dict[str, list[_Stored]]:
    found: dict[str, list[_Stored]] = {}
    for tensor in manifest.tensors:
        shards = sorted(tensor.shards, key=lambda shard: (shard.offsets, shard.shape))
        pieces = tuple((shard.offsets, shard.shape) for shard in shards)
        contents = tuple(manifest.blobs[shard.blob].content for shard in shards)
        found.setdefault(tensor.key, []).append(_Stored(tensor, pieces, contents))
    return found


def _difference(earlier: list[_Stored], later: list[_Stored]) -> str | None:
    if not earlier or not later:
        return "removed" if earlier else "added"
    looks: tuple[tuple[str, Callable[[_Stored], object]], ...] = (
        ("dtype", lambda one: one.tensor.dtype),
        ("shape", lambda one: one.tensor.shape),
        ("resharded", lambda one: one.pieces),
        ("content", lambda one: one.contents),
    )
    for what, look in looks:
        if [look(one) for one in earlier] != [look(one) for one in later]:
            return what
    return None
