"""The face of a package: names that are there at once, and imported when they are used (PEP 562).

So importing a package does not import all of it, nor what all of it needs: a command that asks one thing of a volume loads no SSD
tier, and without torch everything works that is not about torch.
"""

import importlib
from collections.abc import Callable, Mapping


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__`. `homes`: the module of each of its names, relative to the package where it begins with a dot."""

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    return find
