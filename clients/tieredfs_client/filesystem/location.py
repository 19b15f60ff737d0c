"""`tieredfs://` URLs: which volume, and where in it. Pure.

    tieredfs:///data/volume.db!/runs/gpt/file   the volume whose metadata is /data/volume.db, and a path in it
    tieredfs://postgresql://user@host/db!/runs  the volume whose metadata is in that database, and a path in it
    tieredfs://runs/gpt/file                    a path in the volume that the option `meta_url` names
    runs/gpt/file                               the same, stripped

A URL with three slashes, or with a URL in it, is split at its first `!/` (or a `!` at its end). A path that was stripped is
never split again, so
files with `!` in their names are safe; a database below a directory whose name ends with `!` needs the option.
"""

from dataclasses import dataclass
from typing import Final

PROTOCOL: Final = "tieredfs"
_PREFIX: Final = f"{PROTOCOL}://"
_CHAINED: Final = f"{PROTOCOL}::"
_MARK: Final = "!"
_FILE: Final = "sqlite://"
_SERVERS: Final = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class Location:
    """`meta_url` None: the URL does not say. `path` has no leading, trailing or doubled slashes; the root is empty."""

    meta_url: str | None
    path: str


def parse(url: str) -> Location:
    """Never fails: what is no URL of ours is a path."""
    if url.startswith(_CHAINED):
        url = url[len(_CHAINED) :]
    if not url.startswith(_PREFIX):
        return Location(None, _plain(url))
    rest = url[len(_PREFIX) :]
    database, mark, path = (rest + "/").partition(f"{_MARK}/")
    if rest.startswith("/") and mark:
        return Location(f"{_FILE}{database}", _plain(path))
    if rest.startswith(_SERVERS) and mark:
        return Location(database, _plain(path))
    return Location(None, _plain(rest))


def url_of(meta_url: str, path: str) -> str:
    """`meta_url`: canonical (`config.parse_meta_url`)."""
    return f"{_PREFIX}{meta_url.removeprefix(_FILE)}{_MARK}/{path}"


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part)
