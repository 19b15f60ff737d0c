"""`python -m bench.mount`: the mount against the file system below it and against JuiceFS, every row in one run.

Everything lies below one temporary directory on one file system, and is removed at the end, on an error and on Ctrl-C.
A side that cannot run here is left out with a line that says why; a row that needs it is then left out too. The exit
code is 0 when every target was met, 1 when one was missed or could not be measured, 2 for bad arguments.
"""

import argparse
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import machine, picture
from bench.juicefs import JuiceTarget
from bench.report import Row, document, failures, print_table, write_json
from bench.rows import GROUPS, KEYS, OURS, RIVAL, Bench, RowError
from bench.targets import MountedTarget, PlainTarget, TieredTarget, UnavailableTargetError
from bench.workspace import workspace

RESULTS: Final = Path(__file__).parent / "results"
UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
QUICK_DIVISOR: Final = 16
SPACE_FACTOR: Final = 14
"""Most bytes held at once, in sizes: the read rows hold 1 plain, 1 + 1.5 tiered, 2 in JuiceFS; the memory row 10."""


def parse_size(text: str) -> int:
    """`512MiB`, `2G`, `4096`: powers of 1024. Raises ArgumentTypeError, as argparse wants it."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:iB|B)?", text.strip())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB or 2GiB")
    return int(match[1]) * UNITS[match[2]]


def parse_rows(text: str) -> frozenset[str]:
    """Row keys, or prefixes of them (`random`, `small`)."""
    found = set()
    for word in text.split(","):
        matching = [key for key in KEYS if key == word] or [key for key in KEYS if key.startswith(word + "-")]
        if not matching:
            raise argparse.ArgumentTypeError(f"no row {word!r}; rows: {', '.join(KEYS)}")
        found.update(matching)
    return frozenset(found)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.mount", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where to work (default: the temp folder)"
    )
    parser.add_argument("--size", type=parse_size, default=None, help="of the large file (default 2GiB)")
    parser.add_argument("--repeat", type=int, default=None, help="rounds after the warm-up (default 3)")
    parser.add_argument("--files", type=int, default=None, help="small files (default 20000; 1000 with --quick)")
    parser.add_argument("--only", type=parse_rows, default=frozenset(KEYS), help=f"comma-separated: {', '.join(KEYS)}")
    parser.add_argument("--without", default="", help=f"sides to leave out: {OURS},{RIVAL}")
    parser.add_argument(
        "--quick", action="store_true", help="a sixteenth of the size and one round: does it run at all?"
    )
    parser.add_argument("--driver", default="auto", choices=["auto", "kernel", "fuse-python"])
    parser.add_argument("--code", default="rs:4+2")
    parser.add_argument("--memory", default="512MiB", help="the mount's ceiling")
    parser.add_argument("--name", default="mount", help="of the files in bench/results (default: mount)")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    chosen = parser.parse_args(argv)
    if chosen.repeat is not None and chosen.repeat < 1:
        parser.error("--repeat must be at least 1")
    chosen.repeat = chosen.repeat or (1 if chosen.quick else 3)
    chosen.files = chosen.files or (1_000 if chosen.quick else 20_000)
    chosen.size = chosen.size or (2 << 30) // (QUICK_DIVISOR if chosen.quick else 1)
    if chosen.size < 64 << 20:
        parser.error("--size must be at least 64MiB: below that the clock measures start-up")
    free = shutil.disk_usage(chosen.dir).free
    if free < SPACE_FACTOR * chosen.size:
        parser.error(f"{chosen.dir} has {free >> 30} GiB free; this size needs {SPACE_FACTOR * chosen.size >> 30}")
    return chosen


def started(candidates: Sequence[MountedTarget], stack: contextlib.ExitStack) -> Iterator[MountedTarget]:
    for target in candidates:
        stack.callback(target.stop)
        try:
            target.start()
        except UnavailableTargetError as error:
            print(f"skipped: {target.name}: {error}", file=sys.stderr)
            target.stop()
        else:
            yield target


def make_tiered(chosen: argparse.Namespace, directory: Path, cache_size: str) -> TieredTarget:
    return TieredTarget(directory, chosen.driver, chosen.code, cache_size, chosen.memory)


def measured(bench: Bench, wanted: frozenset[str], missing: list[str]) -> Iterator[Row]:
    """Every wanted row that can be measured; what cannot is printed and goes to `missing`."""
    for group in GROUPS:
        keys = wanted & frozenset(group.keys)
        done: set[str] = set()
        if not keys:
            continue
        try:
            for row in group.run(bench, keys):
                done.add(row.key)
                yield row
        except (RowError, OSError, EOFError, subprocess.SubprocessError, UnavailableTargetError) as error:
            left = sorted(keys - done)
            missing.extend(left)
            print(f"not measured: {', '.join(left)}: {explain(error)}", file=sys.stderr)


def explain(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return f"{error}: {said.strip()}" if isinstance(said, str) and said.strip() else str(error)


def run(chosen: argparse.Namespace) -> tuple[list[Row], list[str], dict[str, str]]:
    missing: list[str] = []
    without = set(chosen.without.split(","))
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, stack):
        found = machine.facts(directory)
        wide = f"{8 * chosen.size >> 20}MiB"
        candidates: list[MountedTarget] = [PlainTarget(directory, "plain")]
        if OURS not in without:
            candidates.append(make_tiered(chosen, directory, wide))
        if RIVAL not in without:
            candidates.append(JuiceTarget(directory, 8 * chosen.size >> 20))
        targets = tuple(started(candidates, stack))
        small = chosen.size < 2 << 30
        bench = Bench(
            targets=targets,
            directory=directory,
            size_bytes=chosen.size,
            small_count=chosen.files,
            random_count=2_000 if small else 20_000,
            stream_bytes=10 * chosen.size,
            memory_bytes=parse_size(chosen.memory),
            repeats=chosen.repeat,
            say=progress,
            make_tiered=functools.partial(make_tiered, chosen),
        )
        stack.callback(bench.dismiss)
        rows = []
        for row in measured(bench, chosen.only, missing):
            rows.append(row)
            print(f"  measured: {row.title}", file=sys.stderr, flush=True)
    return rows, missing, found


def progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K  {line}", end="\r", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    try:
        rows, missing, found = run(chosen)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    except UnavailableTargetError as error:
        print(error, file=sys.stderr)
        return 1
    settings = {
        "size_bytes": chosen.size,
        "repeats": chosen.repeat,
        "driver": chosen.driver,
        "code": chosen.code,
        "memory": chosen.memory,
        "files": chosen.files,
        "quick": chosen.quick,
        "not_measured": missing,
    }
    contents = document(chosen.name, found, settings, rows)
    write_json(RESULTS / f"{chosen.name}.json", contents)
    where = f"{found['cpu']}, {found['cores']} cores, Linux {found['kernel']}, {found['file system']}"
    caption = f"{where}; {chosen.size >> 20} MiB, {found['date']}"
    drawn = picture.draw(
        RESULTS / f"{chosen.name}.png", "The mount against what it stands on and its rival", rows, caption
    )
    show(chosen, contents, rows, found, drawn)
    return 1 if failures(rows) or missing else 0


def show(
    chosen: argparse.Namespace, contents: dict[str, object], rows: list[Row], found: dict[str, str], drawn: bool
) -> None:
    if chosen.json:
        import json

        print(json.dumps(contents, indent=1))
        return
    for name, value in found.items():
        print(f"{name:>13}: {value}")
    print_table(
        f"File of {chosen.size >> 20} MiB, {chosen.repeat} round(s), alternating; 'plain' is {found['file system']}",
        rows,
    )
    for row in rows:
        for each in failures([row]):
            wanted = f"{each.target.bound.value} {each.target.ratio:g}"
            print(f"missed: {row.title}: {each.median:.2f} of {each.target.reference}, wanted {wanted}")
    where = os.path.relpath(RESULTS / chosen.name)
    print(f"written: {where}.json{f' and {where}.png' if drawn else ''}")


if __name__ == "__main__":
    raise SystemExit(main())
