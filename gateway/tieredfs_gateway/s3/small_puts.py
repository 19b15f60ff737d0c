"""Small uploads, carried out together: what waits for the disk waits once for all of them.

While one group is on its way to the disk, the next one gathers. A group is worked on by one thread, so that nobody fights for the
interpreter. All bodies of a group are one write and one sync (`FileSystemContract.stage_group`); then the objects get
their names in one transaction, and one sync of the log makes them durable. Each upload succeeds or fails by itself, but
for a disk that fails: one that
the transaction refused (somebody was faster, or a directory is missing), or that takes more than one step, is stored alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from tieredfs.model import Attributes
from tieredfs.volume.contract import FileSystemContract, Naming, Writing
from tieredfs_gateway.s3.chunked import Decoder
from tieredfs_gateway.s3.http import Response
from tieredfs_gateway.s3.ingest import Expected, Ingest, Received
from tieredfs_gateway.s3.store import Committed

T = TypeVar("T")

GROUP_MAX: Final = 64
SYNCS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class SmallPut:
    """An upload whose body is here. `expect` says what the body must be, `store` gives the file its name. `plan`, if there is one,
    says what name that would be (None: it is not that simple), and `answer` what to answer when it has it. They are called in this
    order, in one thread."""

    pieces: Sequence[bytes]
    expect: Callable[[], Expected]
    decoder: Callable[[], Decoder | None]
    store: Callable[[Writing, Received], Response]
    plan: Callable[[Received], Naming | None] | None = None
    answer: Callable[[Received, Committed], Response] | None = None


Outcome = Response | BaseException
_Waiting = tuple[SmallPut, "asyncio.Future[Response]"]


class SmallPuts:
    """For one event loop. `executor` syncs files."""

    def __init__(self, volume: FileSystemContract, executor: Executor) -> None:
        self._volume = volume
        self._executor = executor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="s3-small")
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None

    async def store(self, put: SmallPut) -> Response:
        """Raises what its own upload raised. Not cancelled with its client: what is begun is ended."""
        done: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting.append((put, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                outcomes = await loop.run_in_executor(self._thread, self._carry_out, [put for put, _ in group])
                for (_, done), outcome in zip(group, outcomes, strict=True):
                    _tell(done, outcome)
        finally:
            self._running = None

    def close(self) -> None:
        self._thread.shutdown()

    # ---- in the thread ----------------------------------------------------------------------------------------------

    def _carry_out(self, group: Sequence[SmallPut]) -> list[Outcome]:
        taken = [_outcome(_take, put) for put in group]
        self._stage([each for each in taken if isinstance(each, _Taken)])
        ready = [each if isinstance(each, BaseException) else _outcome(_planned, each) for each in taken]
        named = self._name_together([each for each in ready if not isinstance(each, BaseException)])
        outcomes = [each if isinstance(each, BaseException) else named[id(each)] for each in ready]
        synced = _outcome(self._volume.sync_names)
        return outcomes if synced is None else [_worse(outcome, synced) for outcome in outcomes]

    def _name_together(self, ready: "Sequence[_Taken]") -> dict[int, Outcome]:
        """By identity of the taken."""
        group = [(each, each.naming) for each in ready if each.naming is not None]
        committed = _outcome(self._volume.commit_group, [(each.writing, naming) for each, naming in group])
        if isinstance(committed, BaseException):
            for each in ready:
                _outcome(each.writing.discard)
            return {id(each): committed for each in ready}
        shown = {id(each): found for (each, _), found in zip(group, committed, strict=True)}
        return {id(each): _outcome(_finish, each, shown.get(id(each))) for each in ready}

    def _stage(self, group: "Sequence[_Taken]") -> None:
        """All at once. Where that does not make them durable, a few threads share what is left to do."""
        if not group:
            return
        staged = _outcome(self._volume.stage_group, [each.content for each in group])
        several = [staged] * len(group) if isinstance(staged, BaseException) else staged
        for each, writing in zip(group, several, strict=True):
            if isinstance(writing, BaseException):
                each.failure = writing
            else:
                each.staged = writing
        left = [each for each in group if each.staged is not None and not each.staged.durable]
        lanes = [left[first::SYNCS_AT_ONCE] for first in range(min(SYNCS_AT_ONCE, len(left)))]
        others = [self._executor.submit(_sync_each, lane) for lane in lanes[1:]]
        for lane in lanes[:1]:
            _sync_each(lane)
        for other in others:
            other.result()


def _outcome(function: Callable[..., T], *arguments: object) -> T | BaseException:
    """What it returned or raised: one upload's failure is not the others'."""
    try:
        return function(*arguments)
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        return error


@dataclass(slots=True)
class _Taken:
    """An upload whose body was right. `staged`: its file, or `failure`: why there is none, or why it is not durable. `naming` None:
    it is stored alone."""

    put: SmallPut
    content: bytes | memoryview
    received: Received
    staged: Writing | None = None
    failure: BaseException | None = None
    naming: Naming | None = None

    @property
    def writing(self) -> Writing:
        assert self.staged is not None
        return self.staged


def _take(put: SmallPut) -> _Taken:
    """Raises S3Error."""
    ingest = Ingest(put.expect(), put.decoder())
    content: list[memoryview] = []
    views = ingest.take(put.pieces, lambda views, _: content.extend(views))
    ingest.take_md5(views)
    return _Taken(put, content[0] if len(content) == 1 else b"".join(content), ingest.finish())


def _sync_each(group: Sequence[_Taken]) -> None:
    for each in group:
        each.failure = _outcome(each.writing.make_durable)


def _planned(taken: _Taken) -> _Taken:
    if taken.failure is not None:
        if taken.staged is not None:
            taken.staged.discard()
        raise taken.failure
    try:
        taken.naming = taken.put.plan(taken.received) if taken.put.plan else None
    except BaseException:
        taken.writing.discard()
        raise
    return taken


def _finish(taken: _Taken, shown: Attributes | Exception | None) -> Response:
    with taken.writing:
        if isinstance(shown, Attributes):
            assert taken.put.answer is not None, "it comes with a plan"
            return taken.put.answer(taken.received, Committed(shown, None))
        return taken.put.store(taken.writing, taken.received)


def _worse(outcome: Outcome, failure: BaseException) -> Outcome:
    return outcome if isinstance(outcome, BaseException) else failure


def _tell(done: "asyncio.Future[Response]", outcome: Outcome) -> None:
    if done.done():  # its client went
        return
    if isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
