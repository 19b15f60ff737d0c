"""`python -m bench.demo`: tell the story, check it, leave nothing behind.

Exit code 0: every claim held. 1: one did not, or a command failed. 2: something is missing here; the message says what.
130: stopped by Ctrl-C, after the clean-up.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import machine
from bench.demo.story import ClaimError, Narrator, Stage, tell
from bench.demo.volume import DemoVolume, PlainVolume
from bench.targets import UnavailableTargetError
from bench.workspace import workspace

CHECKOUT: Final = Path(__file__).parents[2]
NEEDED_BYTES: Final = 6 << 30


def missing(plain: bool, parent: Path) -> str | None:
    """What this machine lacks for the demo, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: pip install 'tieredfs[torch]', or run `make demo`, which does it"
    if shutil.disk_usage(parent).free < NEEDED_BYTES:
        return f"{parent} has less than {NEEDED_BYTES >> 30} GiB free; choose another place with --dir"
    if plain:
        return None
    if importlib.util.find_spec("tieredfs.__main__") is None:
        return "tieredfs is not importable from this interpreter: run `make demo`, which installs it"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse: this kernel has no FUSE, or this container was not given the device"
    if os.geteuid() != 0 and not (shutil.which("fusermount") or shutil.which("fusermount3")):
        return "mounting without root needs fusermount (Debian: apt install fuse3); or run this as root"
    return None


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo", description="Train, kill, lose disks, rebuild; every claim is checked."
    )
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to work (default: build/demo, or the temp folder)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the files (not the mount) for a look")
    parser.add_argument("--driver", default="auto", choices=["auto", "kernel", "fuse-python"])
    parser.add_argument("--code", default="rs:4+2", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)  # the trainer's part, without a mount
    return parser.parse_args(argv)


def place(chosen: Path | None) -> Path:
    """The folder to work in, made if need be: the checkout's build/demo, else the temp folder."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        return chosen
    try:
        (CHECKOUT / "build" / "demo").mkdir(parents=True, exist_ok=True)
    except OSError:
        import tempfile

        return Path(tempfile.gettempdir())
    return CHECKOUT / "build" / "demo"


def perform(chosen: argparse.Namespace, parent: Path, narrator: Narrator) -> Path:
    """Tell the story in a workspace; returns where that was, after it has been cleaned up."""
    with workspace(parent, "demo-", keep=chosen.keep) as (directory, stack):
        tiered = None if chosen.plain else DemoVolume(directory, chosen.driver, chosen.code)
        tell(Stage(directory, tiered or PlainVolume(directory), tiered, narrator, stack))
    return directory


def leftovers(directory: Path, keep: bool) -> list[str]:
    """What is still there of a demo that has ended: mounts, processes, files."""
    found = [f"mount {point}" for _, point, _ in machine.mounts() if point.startswith(f"{directory}/")]
    processes = machine.processes_naming(str(directory)) | machine.processes_holding(directory)
    found += [f"process {number}" for number in sorted(processes)]
    if directory.exists() and not keep:
        found.append(f"files in {directory}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    parent = place(chosen.dir)
    lacking = missing(chosen.plain, parent)
    if lacking is not None:
        print(f"The demo cannot run here: {lacking}", file=sys.stderr)
        return 2
    narrator, started = Narrator(), time.monotonic()
    try:
        directory = perform(chosen, parent, narrator)
        left = leftovers(directory, chosen.keep)
        narrator.check("nothing is left behind: no mount, no process" + ("" if chosen.keep else ", no file"), not left)
    except KeyboardInterrupt:
        print("\nstopped; cleaned up", file=sys.stderr)
        return 130
    except (ClaimError, UnavailableTargetError, LookupError, OSError, subprocess.SubprocessError) as error:
        print(f"\nThe demo failed: {explained(error)}", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(OSError):
            (CHECKOUT / "build" / "demo").rmdir()  # only if it is empty
    narrator.say(f"{narrator.checks} claims checked in {time.monotonic() - started:.0f} s")
    if chosen.keep:
        narrator.say(f"kept: {directory}")
    return 0


def explained(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = f"{error.stderr or ''}{error.stdout or ''}".strip()
        return f"`{' '.join(map(str, error.cmd[2:]))}` ended with {error.returncode}: {said}"
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
