"""`tieredfs://` URLs: which volume, and where in it. Pure.

    tieredfs:///data/volume.db!/runs/gpt/file   the volume whose metadata is /data/volume.db, and a path in it
    tieredfs://runs/gpt/file                    a path in the volume that the option `meta_url` names
    runs/gpt/file                               the same, stripped

A URL with three slashes is split at its first `!/` (or a `!` at its end). A path that was stripped is never split again, so
files with `!` in their names are safe; a database below a directory whose name ends with `!` needs the option.
"""

from dataclasses import dataclass
from typing import Final

PROTOCOL: Final = "tieredfs"
_PREFIX: Final = f"{PROTOCOL}://"
_CHAINED: Final = f"{PROTOCOL}::"
_MARK: Final = "!"


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
        return Location(f"sqlite://{database}", _plain(path))
    return Location(None, _plain(rest))


def url_of(database: str, path: str) -> str:
    """`database`: the absolute path of the metadata file."""
    return f"{_PREFIX}{database}{_MARK}/{path}"


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part)
