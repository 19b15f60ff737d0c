"""`postgresql://user@host:port/database?schema=NAME`: a volume whose metadata is in a PostgreSQL database.

The form is that of libpq (https://www.postgresql.org/docs/current/libpq-connect.html, "Connection URIs"), several hosts with
commas among it, less two things: a password, which would be seen in process lists, logs and `status`, and the settings that
are ours to choose. Percent signs escape, as there. What the URL leaves out libpq finds where it always does: `PGUSER`,
`PGPASSWORD`, `~/.pgpass`, a service file.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

from tieredfs.errors import ConfigurationError

SCHEMES: Final = ("postgresql", "postgres")
EXAMPLE: Final = "postgresql://user@host/database"
SCHEMA_DEFAULT: Final = "tieredfs"
PORT_DEFAULT: Final = 5432
HOSTS_MAX: Final = 16
OPTIONS: Final = frozenset(
    {
        "channel_binding",
        "gssencmode",
        "passfile",
        "require_auth",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslrootcert",
    }
)
"""Of libpq's: how to prove who one is, and to whom."""
_SCHEMA: Final = re.compile(r"(?!pg_)(?!public$)(?!information_schema$)[a-z_][a-z0-9_]{0,62}", re.ASCII)
_PASSWORD_ADVICE: Final = (
    "a metadata URL has no place for a password, which process lists and logs would show: put it into ~/.pgpass, "
    "a file named by ?passfile=/path, or PGPASSWORD"
)


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """`hosts`: (name, address, or directory of a socket; port), tried in order; none: libpq's default.
    `user`, `database`: empty where the service file or libpq's defaults say. `options`: sorted."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    database: str
    schema: str = SCHEMA_DEFAULT
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Canonical: one spelling of it has one text."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        hosts = ",".join(_host_text(*host) for host in self.hosts)
        pairs = [*self.options] if self.schema == SCHEMA_DEFAULT else [*self.options, ("schema", self.schema)]
        query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in pairs)
        return f"postgresql://{user}{hosts}/{quote(self.database, safe='')}{'?' if query else ''}{query}"

    @property
    def place(self) -> str:
        """For messages: which server, which database, which schema."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts) or "the default host"
        return f"{self.database or 'the default database'} on {hosts}, schema {self.schema}"


def parse_postgres_url(text: str) -> PostgresUrl:
    """Raises ConfigurationError, whose message never has a password in it."""
    rest = text.partition("://")[2]
    before_query, _, query = rest.partition("?")
    authority, _, database = before_query.partition("/")
    user, at, hosts_text = authority.rpartition("@")
    if at and ":" in user:
        raise ConfigurationError(_PASSWORD_ADVICE)
    options = _options(query)
    schema = options.pop("schema", SCHEMA_DEFAULT)
    if not _SCHEMA.fullmatch(schema):
        raise ConfigurationError(
            f"schema {schema!r}: lower-case letters, digits and _, at most 63, beginning with a letter or _, "
            f"and none of PostgreSQL's own (public, pg_...)"
        )
    directory = options.pop("host", "")
    port = options.pop("port", "")
    if directory and hosts_text:
        raise ConfigurationError(f"two hosts, one before the / and one as ?host=; write one like {EXAMPLE}")
    hosts = _hosts(hosts_text) if hosts_text else ((directory, _port(port)),) if directory else ()
    name = _plain(database, "database")
    if not name and "service" not in options:
        raise ConfigurationError(f"the URL names no database; write one like {EXAMPLE}")
    return PostgresUrl(hosts, _plain(user, "user"), name, schema, tuple(sorted(options.items())))


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise ConfigurationError(
            f"what follows the ? is no list like sslmode=require&schema={SCHEMA_DEFAULT}"
        ) from None
    names = [key for key, _ in pairs]
    if {"password", "sslpassword"} & {*names}:
        raise ConfigurationError(_PASSWORD_ADVICE)
    known = OPTIONS | {"schema", "host", "port"}
    for name in names:
        if name not in known:
            raise ConfigurationError(f"option {name!r} of the metadata URL is none of {', '.join(sorted(known))}")
        if names.count(name) > 1:
            raise ConfigurationError(f"option {name!r} of the metadata URL is there twice")
    return {key: _plain(value, key, quoted=False) for key, value in pairs}


def _hosts(text: str) -> tuple[tuple[str, int], ...]:
    parts = text.split(",")
    if len(parts) > HOSTS_MAX:
        raise ConfigurationError(f"{len(parts)} hosts are over the limit of {HOSTS_MAX}")
    return tuple(_host(part) for part in parts)


def _host(text: str) -> tuple[str, int]:
    if text.startswith("["):  # an IPv6 address
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    name = _plain(name, "host")
    if not name:
        raise ConfigurationError(f"an empty host name; write one like {EXAMPLE}")
    return name, _port(port)


def _port(text: str) -> int:
    if not text:
        return PORT_DEFAULT
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 1 << 16):
        raise ConfigurationError(f"{text!r} is no port")
    return int(text)


def _host_text(name: str, port: int) -> str:
    shown = f"[{name}]" if ":" in name else quote(name, safe="")
    return shown if port == PORT_DEFAULT else f"{shown}:{port}"


def _plain(text: str, what: str, *, quoted: bool = True) -> str:
    try:
        plain = unquote(text, errors="strict") if quoted else text
    except UnicodeDecodeError:
        raise ConfigurationError(f"the {what} of the metadata URL is no UTF-8") from None
    if any(character < " " for character in plain):
        raise ConfigurationError(f"the {what} of the metadata URL has a control character in it")
    return plain
