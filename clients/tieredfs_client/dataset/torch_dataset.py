"""What makes a dataset one that torch knows. Imported only where torch is in use."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import IterableDataset


def as_iterable_dataset(plain: type[Any], restore: Callable[[dict[str, Any]], Any]) -> type[Any]:
    """A class that is `plain` and a `torch.utils.data.IterableDataset`. Its instances are pickled as their state and `restore`."""

    class Iterable(plain, IterableDataset[Any]):  # type: ignore[misc]
        __doc__ = plain.__doc__

        def __reduce__(self) -> Any:
            return restore, (self.__getstate__(),)

    Iterable.__name__ = Iterable.__qualname__ = f"Torch{plain.__name__}"
    return Iterable
