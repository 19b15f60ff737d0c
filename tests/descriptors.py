"""What a process has open, seen from outside while it goes on."""

import contextlib
import os


def open_paths(process: int | str = "self") -> list[str]:
    """Where its descriptors lead, one each. Of those that are closed while one looks, as that of the look itself, nothing."""
    directory = f"/proc/{process}/fd"
    paths = []
    for number in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(f"{directory}/{number}"))
    return paths
