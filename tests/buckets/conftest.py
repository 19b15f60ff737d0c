"""One moto for the tests of a file; credentials as a user sets them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets.moto_server import CREDENTIALS, Moto, moto_server


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    log: Path = tmp_path_factory.mktemp("moto") / "log"
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ |= CREDENTIALS
    try:
        with moto_server(log) as server:
            yield server
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
