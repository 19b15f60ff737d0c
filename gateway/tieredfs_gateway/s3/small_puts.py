"""Small uploads, carried out together: what waits for the disk waits once for all of them.

While one group is on its way to the disk, the next one gathers. A group is worked on by one thread, file by file, so that
nobody fights for the interpreter; only the syncs of the files run beside each other, in the kernel. Then the objects get
their names in one transaction, and one sync of the log makes them durable. Each upload succeeds or fails by itself: one that
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
from tieredfs_gateway.s3.ingest import Expected, Ingest, Received, write_all
from tieredfs_gateway.s3.store import Committed

T = TypeVar("T")

GROUP_MAX: Final = 64
SYNCS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class SmallPut:
    """An upload whose body is here. `expect` says what the body must be, `store` gives the file its name. `plan`, if there is one,
    says what name that would be (None: it is not that simple), and `answer` what to answer when it has it."""

    pieces: Sequence[bytes]
    expect: Callable[[], Expected]
    decoder: Callable[[], Decoder | None]
    store: Callable[[Writing, Received], Response]
    plan: Callable[[Received], Naming | None] | None
    answer: Callable[[Received, Committed], Response]


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
        written = [_outcome(self._write, put) for put in group]
        self._sync([each for each in written if isinstance(each, _Written)])
        ready = [each if isinstance(each, BaseException) else _outcome(_planned, each) for each in written]
        named = self._name_together([each for each in ready if not isinstance(each, BaseException)])
        outcomes = [each if isinstance(each, BaseException) else named[id(each)] for each in ready]
        synced = _outcome(self._volume.sync_names)
        return outcomes if synced is None else [_worse(outcome, synced) for outcome in outcomes]

    def _name_together(self, ready: "Sequence[_Written]") -> dict[int, Outcome]:
        """By identity of the written."""
        group = [(each, each.naming) for each in ready if each.naming is not None]
        committed = _outcome(self._volume.commit_group, [(each.writing, naming) for each, naming in group])
        if isinstance(committed, BaseException):
            for each in ready:
                _outcome(each.writing.discard)
            return {id(each): committed for each in ready}
        shown = {id(each): found for (each, _), found in zip(group, committed, strict=True)}
        return {id(each): _outcome(_finish, each, shown.get(id(each))) for each in ready}

    def _write(self, put: SmallPut) -> "_Written":
        ingest = Ingest(put.expect(), put.decoder())
        content: list[memoryview] = []
        views = ingest.take(put.pieces, lambda views, _: content.extend(views))
        ingest.take_md5(views)
        received = ingest.finish()
        writing = self._volume.create_grouped()
        try:
            write_all(writing.descriptor, content, 0)
        except BaseException:
            writing.discard()
            raise
        return _Written(put, writing, received)

    def _sync(self, written: "Sequence[_Written]") -> None:
        """All at once, where this thread can have that (0.9 ms for seven files in a busy endpoint; 1.7 ms by four threads, which
        wait for the interpreter each time). Else a few threads share them: the flushes of the disk run beside each other."""
        failures = self._volume.sync_group([each.writing for each in written])
        for number, failure in failures.items():
            written[number].unsynced = failure
        left = [each for each in written if each.unsynced is None and not each.writing.durable]
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
class _Written:
    """An upload whose bytes are in its file. `unsynced`: why they are not durable. `naming` None: it is stored alone."""

    put: SmallPut
    writing: Writing
    received: Received
    unsynced: BaseException | None = None
    naming: Naming | None = None


def _sync_each(written: Sequence[_Written]) -> None:
    for each in written:
        each.unsynced = _outcome(each.writing.make_durable)


def _planned(written: _Written) -> _Written:
    if written.unsynced is not None:
        written.writing.discard()
        raise written.unsynced
    try:
        written.naming = written.put.plan(written.received) if written.put.plan else None
    except BaseException:
        written.writing.discard()
        raise
    return written


def _finish(written: _Written, shown: Attributes | Exception | None) -> Response:
    with written.writing:
        if isinstance(shown, Attributes):
            return written.put.answer(written.received, Committed(shown, None))
        return written.put.store(written.writing, written.received)


def _worse(outcome: Outcome, failure: BaseException) -> Outcome:
    return outcome if isinstance(outcome, BaseException) else failure


def _tell(done: "asyncio.Future[Response]", outcome: Outcome) -> None:
    if done.done():  # its client went
        return
    if isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
