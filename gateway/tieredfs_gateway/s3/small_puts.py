"""Small uploads, carried out together: what waits for the disk waits once for all of them.

While one group is on its way to the disk, the next one gathers. A group is worked on by one thread, file by file, so that
nobody fights for the interpreter; only the syncs of the files run beside each other. Then every object gets its name in a
transaction of its own, and one sync of the log makes all the names durable. Each upload succeeds or fails by itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from tieredfs.volume.contract import FileSystemContract, Writing
from tieredfs_gateway.s3.chunked import Decoder
from tieredfs_gateway.s3.http import Response
from tieredfs_gateway.s3.ingest import Expected, Ingest, Received, write_all

T = TypeVar("T")

GROUP_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class SmallPut:
    """An upload whose body is here. `expect` says what the body must be, `store` gives the file its name."""

    pieces: Sequence[bytes]
    expect: Callable[[], Expected]
    decoder: Callable[[], Decoder | None]
    store: Callable[[Writing, Received], Response]


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
        syncs = [None if isinstance(found, BaseException) else self._sync(found[0]) for found in written]
        outcomes: list[Outcome] = []
        for put, found, sync in zip(group, written, syncs, strict=True):
            if isinstance(found, BaseException) or sync is None:
                assert isinstance(found, BaseException)
                outcomes.append(found)
            else:
                outcomes.append(_outcome(_name, put, *found, sync))
        synced = _outcome(self._volume.sync_names)
        return outcomes if synced is None else [_worse(outcome, synced) for outcome in outcomes]

    def _write(self, put: SmallPut) -> tuple[Writing, Received]:
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
        return writing, received

    def _sync(self, writing: Writing) -> Callable[[], None]:
        """Begin; what comes back waits for the end."""
        return self._executor.submit(writing.make_durable).result


def _outcome(function: Callable[..., T], *arguments: object) -> T | BaseException:
    """What it returned or raised: one upload's failure is not the others'."""
    try:
        return function(*arguments)
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        return error


def _name(put: SmallPut, writing: Writing, received: Received, sync: Callable[[], None]) -> Response:
    with writing:
        sync()
        return put.store(writing, received)


def _worse(outcome: Outcome, failure: BaseException) -> Outcome:
    return outcome if isinstance(outcome, BaseException) else failure


def _tell(done: "asyncio.Future[Response]", outcome: Outcome) -> None:
    if done.done():  # its client went
        return
    if isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
