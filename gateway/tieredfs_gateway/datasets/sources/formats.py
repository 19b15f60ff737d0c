"""Which format files have: by their names, else by their first bytes; and the source that reads them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import ConfigurationError
from tieredfs.volume.contract import FileSystemContract
from tieredfs_gateway.datasets.arrow_files import ByteCount
from tieredfs_gateway.datasets.listing import Found
from tieredfs_gateway.datasets.scratch import Scratch
from tieredfs_gateway.datasets.sources.archives import Archives
from tieredfs_gateway.datasets.sources.csv import CsvSource
from tieredfs_gateway.datasets.sources.ipc import IpcSource
from tieredfs_gateway.datasets.sources.jsonl import JsonLinesSource
from tieredfs_gateway.datasets.sources.parquet import ParquetSource
from tieredfs_gateway.datasets.sources.protocol import Source
from tieredfs_gateway.datasets.sources.raw import RawSource
from tieredfs_gateway.datasets.sources.tar import TarSource
from tieredfs_gateway.datasets.sources.text import TextFiles, bare_name
from tieredfs_gateway.datasets.versions import Snapshot, shown

FORMATS: Final = ("parquet", "ipc", "csv", "jsonl", "tar", "raw")
MANIFESTS: Final = (b"manifest.jsonl", b"manifest.csv", b"metadata.jsonl", b"metadata.csv")
_ENDINGS: Final = {
    b"parquet": "parquet",
    b"pq": "parquet",
    b"arrow": "ipc",
    b"arrows": "ipc",
    b"feather": "ipc",
    b"ipc": "ipc",
    b"csv": "csv",
    b"tsv": "csv",
    b"jsonl": "jsonl",
    b"ndjson": "jsonl",
    b"json": "jsonl",
    b"tar": "tar",
}
_MAGIC_AT: Final = ((0, b"PAR1", "parquet"), (0, b"ARROW1", "ipc"), (257, b"ustar", "tar"))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files to look into, and their format."""

    format: str
    files: tuple[Found, ...]


def by_name(path: bytes) -> str | None:
    return _ENDINGS.get(os.path.splitext(bare_name(path))[1][1:].lower())


def choose(volume: FileSystemContract, files: Sequence[Found], wanted: str | None) -> Chosen:
    """Raises ConfigurationError: an unknown format, files of several, or none that can be told."""
    if wanted is not None and wanted not in FORMATS:
        raise ConfigurationError(f"there is no format {wanted!r}; there are {', '.join(FORMATS)}")
    manifests = [each for each in files if each[0].rpartition(b"/")[2] in MANIFESTS]
    if wanted == "raw":
        chosen = manifests or [each for each in files if by_name(each[0]) in {"csv", "jsonl"}]
        if len(chosen) != 1:
            raise ConfigurationError(f"raw files need one manifest ({shown(MANIFESTS[0])}); {len(chosen)} were found")
        return Chosen("raw", tuple(chosen))
    if wanted is None and len(manifests) == 1 and len(files) > 1 and _all_below(manifests[0][0], files):
        return Chosen("raw", tuple(manifests))
    if wanted is not None:
        return Chosen(wanted, tuple(files))
    kinds = {path: by_name(path) or _by_content(volume, path) for path, _ in files}
    first, kind = next(iter(kinds.items()))
    for path, other in kinds.items():
        if other is None:
            raise ConfigurationError(f"{shown(path)}: its format cannot be told; name it ({', '.join(FORMATS)})")
        if other != kind:
            raise ConfigurationError(f"{shown(first)} is {kind} and {shown(path)} is {other}: a glob can choose")
    assert kind is not None
    return Chosen(kind, tuple(files))


def _all_below(manifest: bytes, files: Sequence[Found]) -> bool:
    """The files are all in the manifest's directory: it can name them. Others would be left out without a word."""
    folder = manifest[: manifest.rfind(b"/") + 1]
    return all(path.startswith(folder) for path, _ in files)


def _by_content(volume: FileSystemContract, path: bytes) -> str | None:
    head = bytearray(512)
    with volume.open(path) as reading:
        done = reading.read_into(0, memoryview(head))
    for at, magic, kind in _MAGIC_AT:
        if head[at : at + len(magic)] == magic and done >= at + len(magic):
            return kind
    return None


def source_of(
    chosen: Chosen, volume: FileSystemContract, snapshot: Snapshot, scratch: Scratch, count: ByteCount
) -> Source:
    """What reads them."""
    texts = TextFiles(snapshot, scratch, count)
    if chosen.format == "raw":
        manifest = by_name(chosen.files[0][0])
        return RawSource(volume, snapshot, CsvSource(texts) if manifest == "csv" else JsonLinesSource(texts), count)
    if chosen.format == "parquet":
        return ParquetSource(snapshot, count)
    if chosen.format == "ipc":
        return IpcSource(snapshot, count)
    if chosen.format == "tar":
        return TarSource(Archives(snapshot, scratch, count))
    assert chosen.format in {"csv", "jsonl"}
    return CsvSource(texts) if chosen.format == "csv" else JsonLinesSource(texts)
