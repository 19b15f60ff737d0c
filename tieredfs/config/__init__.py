"""Settings: metadata URLs, data URLs, sizes, codes; from text to values, with errors that say what would be right.

Nothing here looks at the machine: parsing decides what was meant, and whoever opens the volume finds out whether it is
there. Every function raises `ConfigurationError` on text that makes no sense, naming the text and one that would.
"""

from tieredfs.config.listening import parse_announced, parse_listen
from tieredfs.config.names import parse_volume_name, volume_name_from
from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.config.redundancy import parse_code, parse_durability
from tieredfs.config.remote_urls import BucketUrl, NodeUrl
from tieredfs.config.sizes import format_duration, format_size, parse_duration, parse_size
from tieredfs.config.urls import (
    DataUrl,
    DiskUrl,
    MetaUrl,
    SqliteUrl,
    expand_braces,
    parse_data_url,
    parse_data_urls,
    parse_meta_url,
)

__all__ = [
    "BucketUrl",
    "DataUrl",
    "DiskUrl",
    "MetaUrl",
    "NodeUrl",
    "PostgresUrl",
    "SqliteUrl",
    "expand_braces",
    "format_duration",
    "format_size",
    "parse_announced",
    "parse_code",
    "parse_data_url",
    "parse_data_urls",
    "parse_durability",
    "parse_duration",
    "parse_listen",
    "parse_meta_url",
    "parse_size",
    "parse_volume_name",
    "volume_name_from",
]
