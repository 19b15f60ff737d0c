"""Tests that were written for metadata in a file, to be run on the server, too."""

import inspect
from collections.abc import Callable
from types import ModuleType


def cases_of(module: ModuleType, fixture: str) -> dict[str, Callable[..., object]]:
    """By name: its tests that take that fixture, which the borrower has of its own."""
    return {
        name: case
        for name, case in vars(module).items()
        if name.startswith("test_") and fixture in inspect.signature(case).parameters
    }
