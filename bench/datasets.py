"""How fast datasets are read, beside pyarrow and beside what people use: `python -m bench.datasets [--scale 1]`.

Groups of rows come from modules of their own (`GROUPS` of each); this is the program.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import dataset_codecs, dataset_images, dataset_reading, dataset_serving, machine, picture
from bench.dataset_reading import Bench
from bench.report import Row, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume

RESULTS: Final = Path(__file__).parent / "results"
MODULES: Final = (dataset_reading, dataset_images, dataset_codecs, dataset_serving)
GROUPS: Final = {name: group for module in MODULES for name, group in module.GROUPS.items()}
NEEDED_BYTES: Final = 8 << 30


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Datasets beside pyarrow and other loaders.")
    parser.add_argument("--scale", type=float, default=1.0, help="of every dataset (default 1)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"comma-separated: {', '.join(GROUPS)}")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is measured")
    parser.add_argument("--name", default="datasets", help="of the files in bench/results")
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.only.split(",")) - set(GROUPS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if shutil.disk_usage(chosen.dir).free < NEEDED_BYTES * max(1.0, chosen.scale):
        parser.error(f"{chosen.dir} needs {NEEDED_BYTES >> 30} GiB free")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    rows: list[Row] = []
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, stack):
        found = machine.facts(directory)
        (directory / "plain").mkdir()
        url = f"sqlite://{directory}/volume.db"
        disks = [f"disk://{directory}/d{number}" for number in range(6)]
        format_volume(url, disks, code=parse_code("rs:4+2"), durability=Durability.SSD, name="bench")
        volume = stack.enter_context(FileSystem.at(url, purpose="bench"))

        def say(line: str) -> None:
            print(f"  {line}", file=sys.stderr)

        bench = Bench(volume, directory / "plain", chosen.scale, chosen.repeat, say, url)
        for name in chosen.only.split(","):
            say(name)
            rows += GROUPS[name](bench)
    settings: dict[str, Any] = {"scale": chosen.scale, "repeats": chosen.repeat, "code": "rs:4+2"}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    caption = f"{found['cpu']}, {found['cores']} cores, scale {chosen.scale:g}, {found['date']}"
    picture.draw(RESULTS / f"{chosen.name}.png", "Datasets beside what reads them today", rows, caption)
    print_table(f"Scale {chosen.scale:g}, {chosen.repeat} round(s), alternating", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
