"""Runs one command against the fake backend and returns what a shell would see."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.cli.fakes import FakeBackend
from tieredfs.cli import main


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def run(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run_one(*arguments: str) -> Ran:
        code = main(arguments, backend)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_one
