"""`CheckpointManager`: what a training script holds. One per rank, for one run.

Saves are collective: every rank calls the same saves in the same order; one save at a time is under way. A failed background
save is raised by `result()` of its `Pending`, or, if nobody asked, by the next call. Loading is for each rank alone.
Not for use in a child after fork. `save`, `save_async` and `close` from one thread at a time; the rest from any.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, Literal, Self

from tieredfs.config import parse_durability
from tieredfs.errors import (
    BusyError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    TieredError,
    TooLargeError,
    UnstorableError,
)
from tieredfs.host import Host, local_host
from tieredfs.model import Durability, Progress
from tieredfs.volume.contract import FileSystemContract
from tieredfs.volume.filesystem import FileSystem
from tieredfs_client.checkpoint.assemble import Extra
from tieredfs_client.checkpoint.attempt import Attempt
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.codec import check_installed
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.documents import shown
from tieredfs_client.checkpoint.group import detect_group
from tieredfs_client.checkpoint.keeping import Keeper, Summary
from tieredfs_client.checkpoint.load import Loaded, Loader
from tieredfs_client.checkpoint.names import RunPaths, check_step
from tieredfs_client.checkpoint.neighbours import this_place
from tieredfs_client.checkpoint.ownership import Ownership
from tieredfs_client.checkpoint.packing import Compression, parse_compression
from tieredfs_client.checkpoint.remembered import Remembered
from tieredfs_client.checkpoint.retention import KeepBest, Retention
from tieredfs_client.checkpoint.save import Save, Saved, earlier_of
from tieredfs_client.checkpoint.shares import Cargo
from tieredfs_client.checkpoint.staging import STAGING_BYTES_DEFAULT, StagingBuffer
from tieredfs_client.checkpoint.tree import Flat, Forms, PerRank, flatten
from tieredfs_client.checkpoint.write import Earlier, PartWriter

DEADLINE_S: Final = 600.0
FORMS_MAX: Final = 1 << 16
"""Of tensors that were met in states; a program whose shapes change all the time must not fill its memory with them."""
_log: Final = logging.getLogger("tieredfs.checkpoint")


class Pending:
    """A background save."""

    def __init__(self, step: int, future: "Future[Saved]") -> None:
        self.step = step
        self._future = future
        self._asked = False

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> Saved:
        """When the checkpoint is committed. Raises what the save raised, DeadlineError."""
        try:
            saved = self._future.result(timeout_s)
        except FutureTimeoutError:
            raise DeadlineError(f"step {self.step} is not saved after {timeout_s:g} s; it is still under way") from None
        except BaseException:
            self._asked = True
            raise
        return saved

    def raise_unasked(self) -> None:
        """The failure of a finished save that nobody has asked for."""
        if self._future.done() and not self._asked:
            self.result()


class CheckpointManager:
    """Saves to and loads from the run `run` (a directory) of a volume, named by its URL or given as a `FileSystem`.

    `durability`: what a commit waits for, `ssd` or `store` (None: as the volume says). `keep_last`, `keep_every`, `keep_best`: see
    `Retention`. `deadline_s`: how long ranks wait for one another. `rank`, `world_size`, `job`: see `detect_group`.
    `ranks`: several that this process carries instead of one; it then saves a `PerRank`. `place`: ranks with the same one write
    together through one of them (None: those of one machine). `staging_bytes`: the most memory that `save_async` copies
    into; `when_full`: whether it then waits or raises. `reuse`: unchanged tensors refer to the blocks of the last checkpoint.

    `progress`: told of the bytes that this process writes, as `tieredfs.model.Progress` says.

    `compression`, lossless: `none`; `auto`, only tensors of which a sample says that the save ends sooner by it; `zstd`, all that
    shrink, as fast as it can be done; `zstd:1` to `zstd:19`, smaller and much slower. A save can ask for another. Each process
    decides for its own tensors; a load needs to know nothing of it. Needs numpy and zstandard (NotSupportedError).
    """

    def __init__(
        self,
        volume: str | FileSystemContract,
        run: str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: KeepBest | None = None,
        durability: Durability | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        ranks: Sequence[int] | None = None,
        job: str | None = None,
        place: str | None = None,
        deadline_s: float = DEADLINE_S,
        staging_bytes: int = STAGING_BYTES_DEFAULT,
        when_full: Literal["wait", "raise"] = "wait",
        reuse: bool = True,
        compression: str = "none",
        host: Host | None = None,
        progress: Progress | None = None,
    ) -> None:
        if when_full not in ("wait", "raise"):
            raise InvalidRequestError(
                f"when the staging buffer is full, a save can `wait` or `raise`, not {when_full!r}"
            )
        if deadline_s <= 0 or staging_bytes < 0:
            raise InvalidRequestError("deadline_s is above 0, staging_bytes at least 0")
        paths = RunPaths.of(run)
        self._retention = Retention(keep_last, keep_every, keep_best)
        self._durability = parse_durability(durability) if isinstance(durability, str) else durability
        self._deadline_s = deadline_s
        self._when_full = when_full
        self._reuse = reuse
        self._compression = _compression(compression)
        self._host = host or local_host()
        where = place or this_place(self._host.name)
        self.group = detect_group(rank, world_size, job, ranks=ranks, place=where)
        self._owned = FileSystem.at(volume, purpose=f"checkpoints of {run}") if isinstance(volume, str) else None
        self._volume: FileSystemContract = volume if not isinstance(volume, str) else self._opened()
        self._removals = ThreadPoolExecutor(1, "tieredfs-ckpt-remove")
        self.catalog = Catalog(self._volume, self._host, paths, self._remove_later)
        self._keeper = Keeper(self.catalog)
        self._ownership = Ownership(self._volume, self._host, paths, self.group.job)
        self._writer = PartWriter(self._host, progress)
        self._staging = StagingBuffer(staging_bytes)
        self._background = ThreadPoolExecutor(1, "tieredfs-ckpt-save")
        self._pending: Pending | None = None
        self._sequence = 0
        self._earlier: Earlier | None = None
        self._forms: Forms = {}
        self._remembered = Remembered()
        self._looked_for_earlier = False

    def _opened(self) -> FileSystem:
        assert self._owned is not None
        return self._owned

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        state: object,
        *,
        metadata: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        compression: str | None = None,
    ) -> Saved:
        """Returns when the checkpoint of all ranks is committed. A step that was saved before is replaced. `compression`: None,
        as the manager says.

        Raises UnstorableError, RankMissingError, RankFailedError, BusyError (another job saves into this run), and what storing
        raises; then there is no new checkpoint, and the last one is as it was.
        """
        save = self._begin(step, metadata, metrics, compression)
        try:
            self._wait_for_background()
            flats = self._flatten(state)
        except BaseException as error:
            save.tell(error)
            raise
        return self._carry_out(save, flats)

    def save_async(
        self,
        step: int,
        state: object,
        *,
        metadata: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        compression: str | None = None,
    ) -> Pending:
        """Returns when `state` may be changed again; what is saved are its values of now.

        While an earlier save is under way, or when the state is larger than the staging buffer: `when_full="wait"` waits for
        it, and saves before it returns; `"raise"` raises BusyError, or TooLargeError.
        """
        save = self._begin(step, metadata, metrics, compression)
        try:
            self._check_free()
            self._wait_for_background()
            flats = self._flatten(state)
            self._check_fits(flats)
            staged = self._staging.stage(flats) if self._staging.fits(flats) else None
        except BaseException as error:
            save.tell(error)
            raise
        if staged is None:
            return _finished(step, self._carry_out(save, flats))
        self._pending = Pending(step, self._background.submit(self._carry_out, save, staged))
        return self._pending

    def _check_free(self) -> None:
        if self._when_full == "raise" and self._pending is not None and not self._pending.done():
            raise BusyError(f"step {self._pending.step} is still being saved")

    @collector_paused()
    def _flatten(self, state: object) -> dict[int, Flat]:
        """By rank. Raises UnstorableError, InvalidRequestError."""
        if not isinstance(state, PerRank):
            if len(self.group.ranks) > 1:
                raise InvalidRequestError(f"this process carries {len(self.group.ranks)} ranks: save a PerRank of them")
            return {self.group.rank: flatten(state, self._forms)}
        if sorted(state.trees) != list(self.group.ranks):
            raise InvalidRequestError(f"not the ranks that this process carries ({self.group.ranks[0]} and on)")
        return {rank: flatten(state.trees[rank], self._forms) for rank in self.group.ranks}

    def _check_fits(self, flats: Mapping[int, Flat]) -> None:
        if self._when_full == "raise" and not self._staging.fits(flats):
            limit = self._staging.limit_bytes
            raise TooLargeError(f"the state is larger than the staging buffer of {limit} bytes")

    def wait(self) -> None:
        """Until no save is under way. Raises the failure of one that nobody has asked for."""
        self._wait_for_background()

    def _wait_for_background(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            limit_s = 4 * self._deadline_s
            try:
                if not pending.done():
                    pending.result(limit_s)
            except DeadlineError:
                self._pending = pending
                raise
            pending.raise_unasked()

    def _begin(
        self,
        step: int,
        metadata: Mapping[str, object] | None,
        metrics: Mapping[str, float] | None,
        compression: str | None,
    ) -> Save:
        """The next collective save; the number counts on every rank, whatever becomes of it."""
        self._sequence += 1
        attempt = Attempt(
            self._volume, self._host, self.catalog.paths, self.group, check_step(step), self._sequence, self._deadline_s
        )
        packing = self._compression if compression is None else _compression(compression)
        extra, problem = _extra(metadata or {}, metrics or {})
        save = Save(
            self.catalog,
            attempt,
            self._writer,
            extra=extra,
            durability=self._durability,
            compression=packing,
            guard=self._ownership.hold,
            remembered=self._remembered,
        )
        if problem is not None:
            save.tell(problem)
            raise problem
        return save

    def _carry_out(self, save: Save, flats: Mapping[int, Flat]) -> Saved:
        try:
            if self.group.rank == 0:
                self._ownership.hold()
            earlier = self._find_earlier() if self._reuse else None
        except BaseException as error:
            save.tell(error)
            raise
        try:
            saved, self._earlier = save.run(Cargo.of(flats), earlier)
        finally:
            if len(self._forms) > FORMS_MAX:
                self._forms = {}
        if self.group.rank == 0:
            self._keeper.after_commit(saved.checkpoint, self._retention)
        return saved

    def _find_earlier(self) -> Earlier | None:
        """The last save of this process; at first, the newest checkpoint that is there."""
        if not self._looked_for_earlier:
            self._looked_for_earlier = True
            with contextlib.suppress(TieredError):
                name = self.catalog.resolve("latest")
                self._earlier = earlier_of(self.catalog, name, self.catalog.manifest(name))
        return self._earlier

    # ---- loading ----------------------------------------------------------------------------------------------------

    def load(
        self,
        which: int | str = "latest",
        *,
        into: Any = None,
        only: Sequence[str] | None = None,
        strict: bool = True,
        verify: bool = True,
    ) -> Any:
        """The state of a step, a tag or `latest`. `into`: see `read`."""
        return self.read(which, into=into, only=only, strict=strict, verify=verify).state

    def read(
        self,
        which: int | str = "latest",
        *,
        into: Any = None,
        only: Sequence[str] | None = None,
        strict: bool = True,
        verify: bool = True,
    ) -> Loaded:
        """A checkpoint with its step, metadata and metrics.

        With `into`, its tensors are filled in place, whatever sharding they have (DTensor, `Shard`), and its numbers and
        strings are replaced; a `None` in it takes whatever was saved there. Without, new tensors are made, sharded ones
        whole. `only`: patterns (`model.*`) of keys. With `strict` everything must fit exactly (StateMismatchError, before anything
        is changed); without, what fits is loaded and the rest is in `skipped`. Raises NotFoundError, CorruptError,
        NewerFormatError, DataLossError.
        """
        with self.catalog.leased(which) as name:
            manifest = self.catalog.manifest(name)
            with Loader(self.catalog, name, manifest, verify=verify) as loader:
                rank = self.group.rank
                skipped: tuple[str, ...] = ()
                if into is None:
                    state = loader.new(rank, only)
                else:
                    state, skipped = loader.into(rank, into, strict=strict, only=only)
        return Loaded(state, manifest.step, dict(manifest.metadata), dict(manifest.metrics), skipped)

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Summary]:
        """What is there, in order of the steps."""
        return self._keeper.summaries()

    def verify(self, which: int | str = "latest") -> list[str]:
        """Read every byte and verify it; what is wrong, one line each."""
        return self._keeper.verify(which)

    def tag(self, tag: str, which: int | str = "latest") -> None:
        """Give a checkpoint a name; it is kept until the tag is taken away."""
        self.catalog.set_tag(tag, which)

    def untag(self, tag: str) -> None:
        self.catalog.remove_tag(tag)

    def delete(self, which: int | str, *, force: bool = False) -> None:
        """Raises BusyError while it is read, InvalidRequestError when it is tagged or the last one, unless forced."""
        self._keeper.delete(which, force=force)

    def _remove_later(self, path: bytes) -> None:
        """Nobody waits for the removal of what nobody sees any more: the file system takes 0.3 s for 1 GiB."""
        self._removals.submit(self._remove, path)

    def _remove(self, path: bytes) -> None:
        try:
            self._volume.remove_tree(path)
        except NotFoundError:
            return  # somebody else removes it, too
        except (TieredError, OSError) as error:
            _log.warning("%s is left to the next prune: %s", shown(path), error)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Waits for the save under way. Raises its failure if nobody has asked for it."""
        try:
            self._wait_for_background()
        finally:
            self._background.shutdown()
            self._removals.shutdown()
            self._writer.close()
            self._staging.close()
            with contextlib.suppress(TieredError):
                self._ownership.release()
            if self._owned is not None:
                self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(TieredError, OSError):  # the first failure is the one to tell
            self.close()


def _extra(metadata: Mapping[str, object], metrics: Mapping[str, float]) -> tuple[Extra, UnstorableError | None]:
    """As they are now, whatever becomes of the caller's; or what is wrong with them, for the other ranks to hear, too."""
    try:
        kept = json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        return Extra({}, {}), UnstorableError(f"metadata must be what JSON can say: {error}")
    try:
        return Extra(kept, {str(name): float(value) for name, value in dict(metrics).items()}), None
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor of several elements
        return Extra({}, {}), UnstorableError(f"metrics must be numbers by their names: {error}")


def _compression(text: str) -> Compression | None:
    """Raises InvalidRequestError, NotSupportedError."""
    compression = parse_compression(text)
    if compression is not None:
        check_installed()
    return compression


def _finished(step: int, saved: Saved) -> Pending:
    """A save that was done before its caller went on."""
    future: Future[Saved] = Future()
    future.set_result(saved)
    return Pending(step, future)
