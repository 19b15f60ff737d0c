"""What people read datasets with today, each used as its documentation says, and in the fastest way it offers for whole batches.

Those that are not installed are left out. MosaicML Streaming wants numpy < 2.2 and LitData a torchvision of another torch: neither
installs beside the versions in `requirements/`, so they are not here.
"""

import itertools
import mmap
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset
import xxhash
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

SLOW_BATCHES: Final = 100
IN_PLACE: Final = "no loader, hashed in place"
"""The most that any loader could reach: no copy, no batch, no order but a random one."""
BUFFER_SAMPLES: Final = 1000
"""WebDataset's and HF's usual shuffle buffer for streams: not a full shuffle, but what they offer for shards."""


@dataclass(frozen=True, slots=True)
class Rival:
    """`epoch` reads all rows once and says how many. `converted_s`: what making its own form of the data took."""

    epoch: Callable[[], int]
    what: str
    converted_s: float = 0.0
    rows: int | None = None
    """How many rows `epoch` reads where a whole one would take minutes."""

    def __str__(self) -> str:
        return f"{self.what}, converted in {self.converted_s:.1f} s" if self.converted_s else self.what


class TableRows(Dataset[Any]):
    """A table in memory, a batch of indices at a time: one `take`, no collating."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, indices: list[int]) -> pa.Table:
        return self.table.take(pa.array(indices))


class Pictures(Dataset[Any]):
    """One file a sample."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as file:
            return file.read()


def touched(column: pa.Array | pa.ChunkedArray) -> int:
    """How many rows; every byte of them was read (XXH3), as a decoder would: what only maps a file has not read it."""
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if pa.types.is_binary_view(chunk.type):
            _touched_views(chunk)
            continue
        width = 8 if pa.types.is_large_binary(chunk.type) else 4
        _, offsets, data = chunk.buffers()
        ends = memoryview(offsets).cast("B").cast("q" if width == 8 else "i")
        if data is not None:
            xxhash.xxh3_64_intdigest(memoryview(data)[ends[chunk.offset] : ends[chunk.offset + len(chunk)]])
    return len(column)


def _touched_views(column: pa.Array) -> None:
    """Of values that are longer than 12 bytes: shorter ones are in the view itself."""
    _, views, *buffers = column.buffers()
    contents = [memoryview(buffer) for buffer in buffers]
    fields = memoryview(views).cast("B").cast("i")[4 * column.offset : 4 * (column.offset + len(column))].tolist()
    assert min(fields[::4]) > 12
    for length, number, offset in zip(fields[::4], fields[2::4], fields[3::4], strict=True):
        xxhash.xxh3_64_intdigest(contents[number][offset : offset + length])


def touched_list(samples: list[Any]) -> int:
    """The same of samples that are bytes, or dicts with a `jpg`."""
    for sample in samples:
        xxhash.xxh3_64_intdigest(sample["jpg"] if isinstance(sample, dict) else sample)
    return len(samples)


def same(samples: Any) -> Any:
    return samples


def loader_of(dataset: Dataset[Any], batch: int, workers: int, kind: Any = DataLoader) -> Any:
    return kind(dataset, batch_size=batch, shuffle=True, num_workers=workers, collate_fn=same)


def tabular(path: Path, converted: Path, batch: int) -> dict[str, Rival]:
    """The rivals for Parquet files."""

    def loaded() -> int:
        rows = TableRows(pa.dataset.dataset(path).to_table().combine_chunks())
        sampler = BatchSampler(RandomSampler(rows), batch, drop_last=False)
        return sum(table.num_rows for table in DataLoader(rows, sampler=sampler, batch_size=None))

    found = {"DataLoader": Rival(loaded, "DataLoader over a table in memory, BatchSampler, one take a batch")}
    if find_spec("torchdata"):
        found["StatefulDataLoader"] = Rival(lambda: _stateful(path, batch), "the same with StatefulDataLoader")
    if find_spec("datasets"):
        found["HF datasets"] = _hugging_face(path, converted, batch)
    return found


def _stateful(path: Path, batch: int) -> int:
    from torchdata.stateful_dataloader import StatefulDataLoader

    rows = TableRows(pa.dataset.dataset(path).to_table().combine_chunks())
    sampler = BatchSampler(RandomSampler(rows), batch, drop_last=False)
    return sum(table.num_rows for table in StatefulDataLoader(rows, sampler=sampler, batch_size=None))


def _hugging_face(path: Path, converted: Path, batch: int) -> Rival:
    import datasets

    datasets.disable_progress_bars()
    start = time.perf_counter()
    files = sorted(str(file) for file in path.iterdir())
    made = datasets.Dataset.from_parquet(files, cache_dir=str(converted / "hf"))
    seconds = time.perf_counter() - start

    def epoch() -> int:
        shuffled = made.shuffle(seed=1, load_from_cache_file=False).with_format("arrow")
        return sum(table.num_rows for table in itertools.islice(shuffled.iter(batch_size=batch), SLOW_BATCHES))

    rows = min(made.num_rows, SLOW_BATCHES * batch)
    return Rival(epoch, f"datasets, shuffle(), {SLOW_BATCHES} Arrow tables of iter()", seconds, rows)


def images(shards: Path, pictures: Path, converted: Path, batch: int) -> dict[str, Rival]:
    """The rivals for pictures: bytes, not decoded, but touched by the consumer."""
    found = {
        "DataLoader": Rival(
            lambda: sum(map(touched_list, loader_of(Pictures(pictures), batch, 0))),
            "DataLoader over one file a picture",
        ),
        "DataLoader, 2 workers": Rival(
            lambda: sum(map(touched_list, loader_of(Pictures(pictures), batch, 2))), "the same with two workers"
        ),
    }
    if find_spec("torchdata"):
        from torchdata.stateful_dataloader import StatefulDataLoader

        found["StatefulDataLoader"] = Rival(
            lambda: sum(map(touched_list, loader_of(Pictures(pictures), batch, 0, StatefulDataLoader))),
            "its stateful form",
        )
    if find_spec("webdataset"):
        found["WebDataset"] = Rival(
            lambda: _count(_webdataset(shards, batch)), f"shards and a buffer of {BUFFER_SAMPLES}: no full shuffle"
        )
    if find_spec("datasets"):
        found["HF datasets"] = _hugging_face_images(pictures, converted, batch)
    found[IN_PLACE] = _in_place(shards, len(Pictures(pictures)))
    return found


def _in_place(shards: Path, count: int) -> Rival:
    """Of mapped shards, as many pieces of them as there are pictures."""
    pieces: list[memoryview] = []
    paths = sorted(shards.iterdir())
    each = count // len(paths)
    for path in paths:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        length = len(view) // each
        pieces += [view[number * length : (number + 1) * length] for number in range(each)]

    def epoch() -> int:
        random.Random(1).shuffle(pieces)
        return touched_list(pieces)

    return Rival(epoch, "the bytes of the mapped shards", rows=len(pieces))


def _count(batches: Iterable[list[Any]]) -> int:
    return sum(touched_list(batch) for batch in batches)


def _webdataset(shards: Path, batch: int) -> Iterator[list[Any]]:
    import webdataset

    urls = sorted(str(path) for path in shards.iterdir())
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=1, empty_check=False).shuffle(BUFFER_SAMPLES)
    return iter(stream.batched(batch, collation_fn=None, partial=True))


def _hugging_face_images(pictures: Path, converted: Path, batch: int) -> Rival:
    import datasets

    datasets.disable_progress_bars()
    start = time.perf_counter()
    paths = sorted(pictures.iterdir())

    def rows() -> Iterator[dict[str, bytes]]:
        for path in paths:
            yield {"jpg": path.read_bytes()}

    made = datasets.Dataset.from_generator(rows, cache_dir=str(converted / "hf-images"), writer_batch_size=100)
    seconds = time.perf_counter() - start

    def epoch() -> int:
        shuffled = made.shuffle(seed=1, load_from_cache_file=False).with_format("arrow")
        return sum(touched(table["jpg"]) for table in shuffled.iter(batch_size=batch))

    return Rival(epoch, "datasets, shuffle(), iter() of Arrow tables: views of single rows in its mapped file", seconds)
