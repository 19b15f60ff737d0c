"""Where a volume keeps what belongs to one host: SSD directories, the log of mounts, what server processes share.

Beside the metadata file, where it is one. Metadata in a database server has no place on this host; then it is a directory of
the volume's own, the same for every spelling of its URL, below `/var/lib/tieredfs` for root, and below
`$XDG_STATE_HOME/tieredfs` (`~/.local/state/tieredfs`) for others; `TIEREDFS_STATE_DIR` names another place. Processes that
are to share a host's part of a volume must agree about it.
"""

import os
from typing import Final

from tieredfs.config import SqliteUrl, parse_meta_url
from tieredfs.errors import ConfigurationError

ENVIRONMENT: Final = "TIEREDFS_STATE_DIR"
_SYSTEM_DIRECTORY: Final = "/var/lib/tieredfs"


def local_directory(meta_url: str, volume_uuid: str) -> str:
    """Absolute. It exists, where it is not that of the metadata file. Raises ConfigurationError."""
    url = parse_meta_url(meta_url)
    if isinstance(url, SqliteUrl):
        return os.path.dirname(url.path)
    path = os.path.join(_state_directory(), volume_uuid)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"no place for the volume on this host ({error}): name one in {ENVIRONMENT}"
        ) from error
    return path


def slots_directory(meta_url: str, volume_uuid: str) -> str:
    """Where the SSD directories of processes without a mount are: none of them writes into a file that has a name."""
    return os.path.join(local_directory(meta_url, volume_uuid), "clients")


def log_path(meta_url: str, volume_uuid: str) -> str:
    """Of the processes that serve mounts."""
    url = parse_meta_url(meta_url)
    if isinstance(url, SqliteUrl):
        return f"{url.path}.log"
    return os.path.join(local_directory(meta_url, volume_uuid), "mounts.log")


def _state_directory() -> str:
    named = os.environ.get(ENVIRONMENT)
    if named:
        return os.path.abspath(named)
    if os.geteuid() == 0:
        return _SYSTEM_DIRECTORY
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "tieredfs")
