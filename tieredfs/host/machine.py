"""`Host`: the bundle of what a machine gives, passed down from whoever wires a volume."""

import random
import socket
from dataclasses import dataclass, field

from tieredfs.host.clock import Clock, SystemClock
from tieredfs.host.files import Files, LocalFiles


@dataclass(frozen=True, slots=True)
class Host:
    """Clock, files, randomness and name of the machine that code runs on."""

    clock: Clock
    files: Files
    random: random.Random
    name: str = field(default_factory=socket.gethostname)


def local_host() -> Host:
    """The real machine."""
    return Host(SystemClock(), LocalFiles(), random.SystemRandom())
