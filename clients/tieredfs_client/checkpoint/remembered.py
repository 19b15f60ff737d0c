"""What one save leaves for the next one of its manager: what follows from the layout of the trees alone.

A program saves the same layout again and again, with other values in it. What was worked out of it (who writes what and
where, headers of files, the table of tensors) is right for as long as what it was worked out of is the very same: so layouts
that come again are recognised where they come in, by comparing, and from there on by being the same objects. Kept is what
belongs to the last save, and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from tieredfs_client.checkpoint.shares import LastShare

TENSORS_MAX: Final = 1 << 16
"""Of all processes that one gathers; for each of them about a kilobyte is kept there."""
T = TypeVar("T")


class Once(Generic[T]):
    """A result, for as long as it is asked for with the very same objects (numbers: equal ones). One thread at a time."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._made: T | None = None

    def of(self, make: Callable[[], T], *of: object) -> T:
        """`make` depends on `of` alone, none of which is changed by anybody."""
        if self._made is None or len(of) != len(self._of) or not all(map(_is_same, of, self._of)):
            self._made = make()
            self._of = of
        return self._made


def _is_same(one: object, other: object) -> bool:
    return one is other or (type(one) is int and type(other) is int and one == other)


@dataclass(slots=True)
class LastTrees:
    """What trees are in the manifest, by what they are."""

    texts: dict[bytes, str] = field(default_factory=dict)


@dataclass(slots=True)
class Remembered:
    """Of one process: what its own tensors are, and, where it gathers others, what is planned for all."""

    share: LastShare = field(default_factory=LastShare)
    layout_text: Once[str] = field(default_factory=Once)
    spots: tuple[object, Any] | None = None
    """As they were told, and as they are."""
    trees: LastTrees = field(default_factory=LastTrees)
    heard: dict[str, Any] = field(default_factory=dict)
    different: Once[bool] = field(default_factory=Once)
    tasks: Once[Any] = field(default_factory=Once)
    outline: Once[Any] = field(default_factory=Once)
    placed: Once[Any] = field(default_factory=Once)
    headers: Once[list[bytes]] = field(default_factory=Once)
    handed_out: Once[Any] = field(default_factory=Once)
    tensors: Once[str] = field(default_factory=Once)

    def bound(self, tensors: int) -> None:
        """A save of so many tensors has ended: of more than `TENSORS_MAX` nothing is kept."""
        if tensors > TENSORS_MAX:
            fresh = Remembered()
            for name in self.__slots__:
                setattr(self, name, getattr(fresh, name))
