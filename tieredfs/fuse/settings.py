"""What a mount's daemon is told by whoever starts it. Apart from the daemon, for who starts one loads nothing that serves."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """What a daemon is told on its command line. No secret is among it. `report`: the descriptor that the portable
    driver's daemon says on that it is ready (the kernel driver's has a keeper for that)."""

    meta_url: str
    mountpoint: str
    mount_id: str
    cache_dir: str
    cache_bytes: int
    memory_bytes: int
    driver: str
    reason: str
    read_only: bool
    allow_other: bool
    report: int = -1

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "DaemonSettings":
        return cls(**json.loads(text))
