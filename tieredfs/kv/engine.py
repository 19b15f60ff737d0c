"""The contract of a key-value engine.

Keys and values are bytes; keys are ordered as `bytes` compare. Everything happens in transactions, which are
serializable: the outcome is that of some order of all committed transactions. The shipped conformance suite
(`tieredfs.testing.engine_suite`) is the executable form of this page.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class Reader(Protocol):
    """One consistent snapshot. Not for use after its function returned, nor by another thread."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value per key, in the order of `keys`."""
        ...

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, in key order (descending if `reverse`), at most `limit`."""
        ...


class Writer(Reader, Protocol):
    """A transaction that may write; it reads its own writes."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None:
        """No error when the key is absent."""
        ...


@runtime_checkable
class Stamped(Protocol):
    """An engine that can tell, in less than a microsecond, whether anybody committed."""

    def stamp(self) -> bytes:
        """Two calls that return the same bytes: between them no transaction of anybody became visible. After a commit
        it is different from all that were before."""
        ...

    def is_next(self, before: bytes, after: bytes) -> bool:
        """Whether one commit, and no more, lies between the two. False may be said of stamps for which it is so."""
        ...


class Engine(Protocol):
    """Safe from any thread, and several processes may use the same database through engines of their own."""

    def read(self, function: Callable[[Reader], T]) -> T:
        """Run `function` on a snapshot. It may run more than once, so it must have no other effect."""
        ...

    def write(self, function: Callable[[Writer], T]) -> T:
        """Run `function` and commit what it wrote, atomically; if it raises, nothing is written and the error passes.

        `function` may run more than once. Committed means visible to everybody and safe from the death of this process;
        it is safe from the death of the machine after the next `sync`. Raises ConflictError when
        `TRANSACTION_RETRIES_MAX` or `LOCK_WAIT_S` is exhausted; then nothing was written.
        """
        ...

    def sync(self) -> None:
        """Returns when everything committed before the call survives a power cut."""
        ...

    def close(self) -> None: ...
