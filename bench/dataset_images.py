"""The row of the dataset benchmark for pictures: a full shuffle of tar shards, each byte looked at.

Ours is a trainer of a gateway on its host: with views, and without them; and the reader that both stand on, in this process. A
dataset is opened once, as that of Hugging Face is, and its epochs are read by one thread on all sides (but for DataLoader's
workers). All of them hash each picture (XXH3) where it is given to them.
"""

import contextlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from bench.dataset_reading import BATCH, OURS, Bench, against_the_best, rate
from bench.dataset_serving import Gateway
from bench.report import Row
from tieredfs_client.dataset import GatewayDataset
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader

IMAGE_BYTES: Final = 100_000
COPIED: Final = f"{OURS}, without views"
READER: Final = f"{OURS}, in process"


def image_shards(bench: Bench) -> int:
    """Random bytes: a picture does not compress either."""
    shards, each = max(1, round(10 * bench.scale)), 400

    def make() -> None:
        random = np.random.default_rng(2)
        for shard in range(shards):
            sink = io.BytesIO()
            with tarfile.open(fileobj=sink, mode="w") as archive:
                for number in range(each):
                    content = random.bytes(IMAGE_BYTES)
                    name = f"{shard * each + number:06d}"
                    (bench.plain / "pictures").mkdir(exist_ok=True)
                    (bench.plain / "pictures" / f"{name}.jpg").write_bytes(content)
                    for suffix, data in (("jpg", content), ("cls", b"%d" % (number % 10))):
                        info = tarfile.TarInfo(f"{name}.{suffix}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
            bench.put(f"images/{shard:03d}.tar", sink.getvalue())

    bench.once("images", make)
    return shards * each


def shuffle_images(bench: Bench) -> Iterator[Row]:
    from bench import dataset_rivals as rivals

    rows = image_shards(bench)
    order = OrderSpec(BATCH, Shuffle.FULL, 1)

    def pictures() -> int:
        with open_reader(bench.volume, DatasetSpec("images"), order) as reader:
            return sum(rivals.touched(batch.rows["jpg"]) for batch in reader.batches(Position(0, 0)))

    def trained(data: GatewayDataset) -> int:
        data.set_epoch(0)
        return sum(rivals.touched(batch["jpg"]) for batch in data)

    found = rivals.images(bench.plain / "images", bench.plain / "pictures", bench.plain / "converted", BATCH)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(contextlib.closing(Gateway(bench.meta_url)))

        def dataset(*, views: bool) -> GatewayDataset:
            made = GatewayDataset(
                gateway.url, "images", batch_size=BATCH, shuffle="full", seed=1, transport="shared", views=views
            )
            return stack.enter_context(made)

        viewed, copied = dataset(views=True), dataset(views=False)
        sides: dict[str, Callable[[], float]] = {
            OURS: lambda: rate(rows, lambda: trained(viewed)),
            COPIED: lambda: rate(rows, lambda: trained(copied)),
            READER: lambda: rate(rows, pictures),
        }
        sides |= {name: lambda rival=rival: rate(rival.rows or rows, rival.epoch) for name, rival in found.items()}  # type: ignore[misc]
        yield against_the_best("shuffle-images", "full shuffle, 100 KB images", bench.alternate(sides), found)
    shutil.rmtree(bench.plain / "converted", ignore_errors=True)


GROUPS: Final[dict[str, Callable[[Bench], Iterator[Row]]]] = {"shuffle-images": shuffle_images}
