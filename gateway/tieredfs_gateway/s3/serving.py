"""What `tieredfs s3` was asked for, as a value that a worker can be told."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


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


def share_of(asked: Serving) -> Serving:
    """What one of the workers is to do: the SSD is divided among them, the memory is for each. Pure."""
    return replace(asked, workers=1, share=asked.workers, cache_bytes=asked.cache_bytes // asked.workers)


def encode(asked: Serving) -> bytes:
    return json.dumps(asdict(asked), default=str).encode() + b"\n"


def decode(line: bytes) -> Serving:
    fields: dict[str, Any] = json.loads(line)
    files = {name: Path(fields[name]) if fields[name] else None for name in ("cert", "key")}
    return Serving(**(fields | files))


def begin_logging(asked: Serving) -> None:
    """In the process that was asked, and in each that serves. Repeating it is harmless."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("tieredfs_gateway.s3.access").setLevel(logging.INFO if asked.access_log else logging.WARNING)
