"""What `tieredfs s3` was asked for, as a value that a worker can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Serving:
    """`share`: of how many processes this is one; what the endpoint allows itself is divided by it."""

    meta_url: str
    host: str
    port: int
    domains: Sequence[str]
    cert: Path | None
    key: Path | None
    access_log: bool
    cache_bytes: int
    memory_bytes: int
    workers: int = 1
    share: int = 1
