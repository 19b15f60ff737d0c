"""One server for the tests of this folder; each test has a database of its own."""

from collections.abc import Iterator

import pytest

from tests.postgres.server import Server


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def database(server: Server) -> str:
    return server.database()
