"""The tables of a volume in a PostgreSQL database, in a schema of their own: how they are made, checked and dropped.

- `kv(k, v)`: the map. PostgreSQL compares `bytea` as `memcmp` does, which is the order of `bytes`.
- `commits(slot, number, at)`: by connection, the last commit that was carried out for it, written in the same transaction.
  A commit without an answer is looked up here. Rows of connections that are gone are deleted after `COMMIT_MARK_S`.
- `turn`: always empty. Writers that met a conflict lock it, one after the other.
- `about(format, version)`: one row, by which we know the others for ours.
"""

from typing import Final

from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    ForeignDataError,
    NewerFormatError,
    VolumeNotFoundError,
)
from tieredfs.kv.postgres_wire import I64, INT8, ServerError, Statement, Wire
from tieredfs.limits import COMMIT_MARK_S

FORMAT: Final = b"tieredfs-kv"
SCHEMA_VERSION: Final = 1
SERVER_VERSION_MIN: Final = 140_000
"""The oldest that its makers mend, and the first with `client_connection_check_interval`."""

_TABLES: Final = (
    b"CREATE TABLE kv (k bytea PRIMARY KEY, v bytea NOT NULL) WITH (fillfactor = 80)",
    b"CREATE TABLE commits (slot bigint PRIMARY KEY, number bigint NOT NULL, at timestamptz NOT NULL)"
    b" WITH (fillfactor = 50)",
    b"CREATE TABLE turn ()",
    b"CREATE TABLE about (format text NOT NULL, version bigint NOT NULL)",
    b"INSERT INTO about VALUES ('tieredfs-kv', 1)",
)
_SETTINGS: Final = Statement(b"settings", b"SELECT current_setting('fsync'), current_setting('full_page_writes')")
_ABOUT: Final = Statement(b"about", b"SELECT format, version FROM about")
_HAS_SCHEMA: Final = Statement(b"has", b"SELECT 1 FROM pg_namespace WHERE nspname = ANY(current_schemas(false))")
_FORGET_OLD_MARKS: Final = Statement(
    b"old", b"DELETE FROM commits WHERE at < now() - $1 * interval '1 second'", (INT8,)
)
_MISSING, _NOT_ALLOWED, _EXISTS, _NEEDED = "42P01", "42501", {"42P06", "42P07", "23505"}, "2BP01"


def _run(wire: Wire, *texts: bytes) -> None:
    wire.exchange([(Statement(b"", text), ()) for text in (b"BEGIN", *texts, b"COMMIT")])


def _rolled_back(wire: Wire) -> None:
    wire.exchange([(Statement(b"", b"ROLLBACK"), ())])


def check_server(wire: Wire, url: PostgresUrl) -> None:
    """Raises ConfigurationError: too old, or it does not keep what it commits."""
    if wire.server_version < SERVER_VERSION_MIN:
        raise ConfigurationError(
            f"metadata database {url.place}: PostgreSQL {wire.server_version // 10_000} is too old;"
            f" {SERVER_VERSION_MIN // 10_000} or newer is needed"
        )
    (result,) = wire.exchange([(_SETTINGS, ())])
    for column, name in enumerate(("fsync", "full_page_writes")):
        if result.get_value(0, column) != b"on":
            raise ConfigurationError(
                f"metadata database {url.place}: the server runs with {name}=off, so a power cut would destroy the volume;"
                f" set {name}=on"
            )


def check(wire: Wire, url: PostgresUrl) -> None:
    """Raises VolumeNotFoundError, CorruptError, NewerFormatError, ForeignDataError."""
    try:
        (result,) = wire.exchange([(_ABOUT, ())])
    except ServerError as error:
        if error.state == _MISSING:
            raise VolumeNotFoundError(f"no metadata in database {url.place}") from None
        if error.state == _NOT_ALLOWED:
            raise ConfigurationError(f"metadata database {url.place}: {error}") from None
        raise ForeignDataError(f"database {url.place} has an `about` that is not ours: {error}") from None
    if result.ntuples != 1 or result.get_value(0, 0) != FORMAT:
        raise ForeignDataError(f"database {url.place} is no metadata database of TieredFS")
    version = I64.unpack(result.get_value(0, 1) or b"")[0]
    if version > SCHEMA_VERSION:
        raise NewerFormatError(f"database {url.place} has format {version}; this program knows {SCHEMA_VERSION}")
    if version < 1:
        raise CorruptError(f"database {url.place} has format {version}, which never was")
    wire.exchange([(_FORGET_OLD_MARKS, (I64.pack(int(COMMIT_MARK_S)),))])


def create(wire: Wire, url: PostgresUrl) -> None:
    """Make the tables unless they are there; of two creators at once one finds them made.

    Raises ConfigurationError (not allowed), ForeignDataError (other tables of these names)."""
    try:
        check(wire, url)
    except VolumeNotFoundError:
        pass
    else:
        return
    (has_schema,) = wire.exchange([(_HAS_SCHEMA, ())])
    made = () if has_schema.ntuples else (f'CREATE SCHEMA "{url.schema}"'.encode(),)
    try:
        _run(wire, *made, *_TABLES)
    except ServerError as error:
        _rolled_back(wire)
        if error.state == _NOT_ALLOWED:
            raise ConfigurationError(
                f"metadata database {url.place}: {error}; its owner may run: CREATE SCHEMA {url.schema} AUTHORIZATION USER"
            ) from None
        if error.state not in _EXISTS:
            raise
        try:
            check(wire, url)  # made by somebody else just now
        except VolumeNotFoundError:
            raise ForeignDataError(
                f"database {url.place} has tables that are not ours ({error}); choose another with ?schema=NAME"
            ) from None


def drop(wire: Wire, url: PostgresUrl) -> None:
    """Drop our tables, and the schema if nothing else is in it. Raises what `check` raises."""
    check(wire, url)
    _run(wire, b"DROP TABLE kv, commits, turn, about")
    try:
        _run(wire, f'DROP SCHEMA "{url.schema}" RESTRICT'.encode())
    except ServerError as error:
        _rolled_back(wire)
        if error.state not in (_NEEDED, _NOT_ALLOWED):
            raise
