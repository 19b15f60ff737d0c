"""Files as they are, named by a manifest: JSON Lines or CSV with a column of names, beside whatever else is known of them.

Names are paths below the manifest's directory. The column `bytes` holds the contents; the others are the manifest's. The files
that it names are pinned with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from tieredfs.errors import ConfigurationError, CorruptError, NotDirectoryError, NotFoundError, TooLargeError
from tieredfs.model import Attributes, FileKind
from tieredfs.volume.contract import FileSystemContract
from tieredfs_gateway.datasets.arrow_files import ByteCount
from tieredfs_gateway.datasets.listing import is_front_ends
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex, Source
from tieredfs_gateway.datasets.sources.tar import COLUMN_BYTES_MAX, counts, cut
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot, shown

BYTES: Final = "bytes"
NAMES: Final = ("file", "path", "file_name", "filename", "name")
"""The first of these columns has the names of the files."""
_LISTED_FROM: Final = 32
"""So many names of one directory are looked up in a listing of it, fewer one by one."""
_LIST_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class _Manifest:
    """Its rows, the file that each names, and the first row of each part."""

    rows: pa.Table
    files: tuple[PinnedFile, ...]
    starts: tuple[int, ...]


class RawSource:
    """See `Source`, `HasRows`. `manifests` reads the manifest itself."""

    columnar = True

    def __init__(self, volume: FileSystemContract, snapshot: Snapshot, manifests: Source, count: ByteCount) -> None:
        self._volume = volume
        self._snapshot = snapshot
        self._manifests = manifests
        self._count = count

    def look(self, file: PinnedFile) -> FileIndex:
        index = self._manifests.look(file)
        paths = [(field.name,) for field in index.schema]
        parts = [self._manifests.read(file, index, part, paths) for part in range(len(index.rows))]
        rows = pa.concat_tables([part.cast(index.schema) for part in parts]) if parts else index.schema.empty_table()
        name = next((name for name in NAMES if name in index.schema.names), None)
        if name is None or BYTES in index.schema.names:
            raise ConfigurationError(
                f"{file.name}: a manifest needs a column {' or '.join(NAMES)}, and none that is called {BYTES!r}"
            )
        files = self._named(file, rows.column(name))
        starts = cut([each.size_bytes for each in files])
        schema = pa.schema([*index.schema, pa.field(BYTES, pa.binary())])
        return FileIndex(schema, counts(starts, len(files)), _Manifest(rows, files, starts))

    def _named(self, manifest: PinnedFile, names: pa.ChunkedArray) -> tuple[PinnedFile, ...]:
        """The files, pinned. Raises NotFoundError with the manifest's row."""
        base = manifest.path.rpartition(b"/")[0]
        paths: list[bytes] = []
        for row, name in enumerate(names.to_pylist(), 1):
            if not isinstance(name, str) or not name or ".." in name.split("/"):
                raise ConfigurationError(f"{manifest.name}, row {row}: {name!r} names no file below it")
            paths.append((base + b"/" if base else b"") + name.encode("utf-8", "surrogateescape"))
            if is_front_ends(paths[-1]):
                raise ConfigurationError(f"{manifest.name}, row {row}: what is below `.tieredfs` is no data")
        held = {path: self._snapshot.pinned(path) for path in sorted(set(paths))}
        found = self._attributes([path for path, file in held.items() if file is None])
        for row, path in enumerate(paths, 1):
            if held[path] is None and path not in found:
                raise NotFoundError(f"{manifest.name}, row {row}: there is no file {shown(path)!r}")
        pinned = {path: file for path, file in held.items() if file is not None}
        pinned |= {each.path: each for each in self._snapshot.add(sorted(found.items()))}
        return tuple(pinned[path] for path in paths)

    def _attributes(self, paths: Sequence[bytes]) -> dict[bytes, Attributes]:
        """Of those that are regular files."""
        by_directory: dict[bytes, list[bytes]] = {}
        for path in paths:
            by_directory.setdefault(path.rpartition(b"/")[0], []).append(path)
        found: dict[bytes, Attributes] = {}
        for directory, wanted in by_directory.items():
            found |= self._listed(directory, set(wanted)) if len(wanted) >= _LISTED_FROM else self._looked_up(wanted)
        return {path: attributes for path, attributes in found.items() if attributes.kind is FileKind.REGULAR}

    def _looked_up(self, paths: Sequence[bytes]) -> dict[bytes, Attributes]:
        found = {}
        for path in paths:
            try:
                found[path] = self._volume.stat(path)
            except (NotFoundError, NotDirectoryError):
                continue
        return found

    def _listed(self, directory: bytes, wanted: set[bytes]) -> dict[bytes, Attributes]:
        found: dict[bytes, Attributes] = {}
        after = b""
        while True:
            try:
                page = self._volume.entries(directory, after, _LIST_BATCH)
            except (NotFoundError, NotDirectoryError):
                return found
            for entry, attributes in page:
                path = directory + b"/" + entry.name if directory else entry.name
                if path in wanted:
                    found[path] = attributes
            if len(page) < _LIST_BATCH:
                return found
            after = page[-1][0].name

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        return self.take(file, index, part, np.arange(index.rows[part], dtype=np.int64), paths)

    def take(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, paths: Sequence[Path]) -> pa.Table:
        manifest: _Manifest = index.detail
        rows = rows + manifest.starts[part]
        wanted = {path[0] for path in paths}
        known = [name for name in manifest.rows.schema.names if name in wanted]
        table = manifest.rows.select(known or manifest.rows.schema.names[:1]).take(pa.array(rows))
        if BYTES in wanted:
            table = table.append_column(BYTES, self._contents(file, [manifest.files[row] for row in rows.tolist()]))
        return table

    def _contents(self, manifest: PinnedFile, files: Sequence[PinnedFile]) -> pa.BinaryArray:
        ends = np.zeros(len(files) + 1, np.int64)
        np.cumsum([file.size_bytes for file in files], out=ends[1:])
        if ends[-1] > COLUMN_BYTES_MAX:
            raise TooLargeError(
                f"{manifest.name}: {len(files)} files have {ends[-1]} bytes; {COLUMN_BYTES_MAX} fit one column"
            )
        data = pa.allocate_buffer(int(ends[-1]))
        view = memoryview(data).cast("B") if ends[-1] else memoryview(b"")
        for file, at in zip(files, ends.tolist(), strict=False):
            self._read(file, view[at : at + file.size_bytes])
        return pa.BinaryArray.from_buffers(pa.binary(), len(files), [None, pa.py_buffer(ends.astype(np.int32)), data])

    def payload_lengths(self, index: FileIndex, part: int, rows: Indices, path: Path) -> Indices | None:
        manifest: _Manifest = index.detail
        if path != (BYTES,):
            return None
        sizes = [manifest.files[row].size_bytes for row in (rows + manifest.starts[part]).tolist()]
        return np.array(sizes, np.int64)

    def fill(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path, targets: Sequence[memoryview]
    ) -> None:
        manifest: _Manifest = index.detail
        assert path == (BYTES,), f"{file.name} has one column of bytes"
        for row, target in zip((rows + manifest.starts[part]).tolist(), targets, strict=True):
            self._read(manifest.files[row], target)

    def _read(self, file: PinnedFile, target: memoryview) -> None:
        if not target:
            return
        with self._snapshot.reading(file) as reading:
            done = reading.read_into(0, target)
        self._count.add(done)
        if done != file.size_bytes:
            raise CorruptError(f"{file.name}: {file.size_bytes} bytes were expected, {done} are there")

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        manifest: _Manifest = index.detail
        start = manifest.starts[part]
        files = manifest.files[start : start + index.rows[part]]
        contents = sum(file.size_bytes for file in files) if any(path[0] == BYTES for path in paths) else 0
        return contents + 64 * len(files)
