"""Where a volume's parts are: `sqlite:///path/volume.db` or `postgresql://user@host/database` for its metadata,
`disk:///path/d{0..5}` for its chunks.

What follows `sqlite://` and `disk://` is the path as it is: no percent signs, queries or fragments to escape. Braces expand
as in a shell, so that a URL in quotes and one that the shell expanded mean the same disks. `postgres_url` has the other kind of
metadata, `remote_urls` chunks that are off this machine.
"""

import itertools
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tieredfs.config import postgres_url
from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.config.remote_urls import BucketUrl, NodeUrl, parse_bucket_url, parse_node_url
from tieredfs.errors import ConfigurationError
from tieredfs.limits import DISKS_MAX, PATH_BYTES_MAX

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})", re.ASCII)
_META_EXAMPLE: Final = "sqlite:///path/volume.db"
_DATA_EXAMPLE: Final = "disk:///path/d0"


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """A metadata file. `path` is absolute and normal, so that one volume has one URL."""

    path: str

    def __str__(self) -> str:
        return f"sqlite://{self.path}"


MetaUrl = SqliteUrl | PostgresUrl
"""Where the metadata is. Its text is canonical."""


@dataclass(frozen=True, slots=True)
class DiskUrl:
    """One directory of chunks."""

    path: str

    @property
    def place(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"disk://{self.path}"


DataUrl = DiskUrl | BucketUrl | NodeUrl
"""Where chunks go."""


def parse_meta_url(text: str) -> MetaUrl:
    """Raises ConfigurationError."""
    if text.partition("://")[0] in postgres_url.SCHEMES:
        return postgres_url.parse_postgres_url(text)
    return SqliteUrl(_path_of(text, "sqlite", "metadata URL", f"{_META_EXAMPLE} or {postgres_url.EXAMPLE}"))


def parse_data_url(text: str) -> DataUrl:
    """One URL, taken literally. Raises ConfigurationError."""
    if text.startswith("s3://"):
        return parse_bucket_url(text)
    if text.startswith("node://"):
        return parse_node_url(text)
    return DiskUrl(_path_of(text, "disk", "data URL", _DATA_EXAMPLE))


def parse_data_urls(texts: Iterable[str]) -> list[DataUrl]:
    """Expand the braces of each and parse the results, in order. Raises ConfigurationError, also on doubles."""
    urls: list[DataUrl] = []
    for text in texts:
        urls.extend(parse_data_url(expanded) for expanded in expand_braces(text))
    if not urls:
        raise ConfigurationError("no data URL: name at least one directory, like --data 'disk:///path/d{0..5}'")
    if len(urls) > DISKS_MAX:
        raise ConfigurationError(f"{len(urls)} data URLs are too many: at most {DISKS_MAX}")
    _refuse_overlap(urls)
    return urls


def expand_braces(text: str) -> list[str]:
    """`d{0..2}` → d0, d1, d2; `d{08..10}` → d08, d09, d10; `d{a,b}` → da, db; several groups multiply."""
    pieces = _BRACES.split(text)  # literal, group, literal, group, ..., literal
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise ConfigurationError(f"{text!r}: braces do not match; write a range {{0..5}} or a list {{a,b}}")
    choices = [_choices(text, piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    count = 1
    for group in choices:
        count *= len(group)
    if count > DISKS_MAX:
        raise ConfigurationError(f"{text!r} stands for {count} URLs: at most {DISKS_MAX}")
    return ["".join(combination) for combination in itertools.product(*choices)]


def _choices(text: str, group: str) -> list[str]:
    if match := _RANGE.fullmatch(group):
        first, last = match.groups()
        if int(first) > int(last):
            raise ConfigurationError(f"{text!r}: the range goes down; write {{{last}..{first}}}")
        if int(last) - int(first) >= DISKS_MAX:
            raise ConfigurationError(f"{text!r}: the range is too long: at most {DISKS_MAX}")
        width = max(len(first), len(last)) if first.startswith("0") and len(first) > 1 else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    items = group.split(",")
    if len(items) < 2 or not all(items):
        raise ConfigurationError(f"{text!r}: {{{group}}} is neither a range {{0..5}} nor a list {{a,b}}")
    return items


def _path_of(text: str, scheme: str, what: str, example: str) -> str:
    found, separator, path = text.partition("://")
    if not separator:
        advice = f"did you mean {scheme}://{text}" if text.startswith("/") else f"write one like {example}"
        raise ConfigurationError(f"{text!r} is no {what}: {advice}")
    if found != scheme:
        shown = "" if "@" in path else f"{text!r}: "  # there may be a password in it
        raise ConfigurationError(f"{shown}{found!r} is no scheme of a {what}; write one like {example}")
    if not path.startswith("/"):
        raise ConfigurationError(f"{text!r}: the path must be absolute, with three slashes: {scheme}:///{path}")
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) >= PATH_BYTES_MAX:
        raise ConfigurationError(f"{text[:80]!r}: that is no path (a NUL byte, or over {PATH_BYTES_MAX} bytes)")
    normal = posixpath.normpath("/" + path.lstrip("/"))
    if normal == "/":
        raise ConfigurationError(f"{text!r} names the root directory; write one like {example}")
    return normal


def _refuse_overlap(urls: list[DataUrl]) -> None:
    """Two stores in one directory, or one inside another, would take each other's files for foreign ones."""
    known = {url.place: url for url in urls}
    if len(known) < len(urls):
        double = next(url for index, url in enumerate(urls) if url.place in [other.place for other in urls[:index]])
        raise ConfigurationError(f"{str(double)!r} is named twice: each disk needs a directory of its own")
    for url in urls:
        parent = posixpath.dirname(url.place)
        while "://" in parent:
            if parent in known:
                raise ConfigurationError(f"{str(url)!r} lies inside {known[parent]}: each disk needs its own directory")
            parent = posixpath.dirname(parent)
