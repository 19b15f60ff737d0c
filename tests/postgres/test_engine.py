"""The PostgreSQL engine: the suite."""

import pytest

from tests.postgres.server import Server
from tieredfs.config.postgres_url import parse_postgres_url
from tieredfs.kv.postgres import PostgresEngine
from tieredfs.testing.engine_suite import EngineSuite
from tieredfs.testing.engine_workers import Opener


def opened(location: str) -> PostgresEngine:
    return PostgresEngine(parse_postgres_url(location))


class TestPostgresEngine(EngineSuite):
    @pytest.fixture(autouse=True)
    def _server(self, server: Server, database: str) -> None:
        self.server = server
        self.database = database

    @pytest.fixture
    def location(self) -> str:
        return self.server.url(self.database)

    def create(self, location: str) -> PostgresEngine:
        if "model-" in location:
            location = self.server.url(self.database, more=f"?schema={self.schema(location)}")
        return PostgresEngine(parse_postgres_url(location), create=True)

    @staticmethod
    def schema(location: str) -> str:
        return "m" + location.rpartition("-")[2].removesuffix(".db") if "model-" in location else "tieredfs"

    @property
    def opener(self) -> Opener:
        return opened

    def raw_items(self, location: str) -> dict[bytes, bytes]:
        rows = self.server.sql(f"SELECT k, v FROM {self.schema(location)}.kv", database=self.database)
        return {bytes(key): bytes(value) for key, value in rows}

    def raw_put(self, location: str, key: bytes, value: bytes) -> None:
        self.server.sql("INSERT INTO tieredfs.kv VALUES (%s, %s)", key, value, database=self.database)
