"""`TieredFileSystem`: a volume as fsspec has file systems. pandas, pyarrow, datasets, and DCP's own fsspec storage work on it.

What it promises beyond fsspec: a file appears whole or not at all; `mv` is one rename; a copy of what is stored refers to its
blocks; an append fails rather than lose what somebody else appended; a transaction makes every file durable before the first
gets its name. Nothing is cached here, so nothing is stale: a listing asks the volume. Safe from any thread; instances are cheap,
share one `FileSystem` per volume and process, and may be pickled and taken through fork. Missing parents of what is written
are made. Symlinks are shown and not followed.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fsspec import AbstractFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.transaction import Transaction
from fsspec.utils import isfilelike, stringify_path

from tieredfs.config import parse_meta_url
from tieredfs.errors import (
    AlreadyExistsError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
)
from tieredfs.limits import PACKED_FILE_BYTES_MAX
from tieredfs.model import NO_CACHE, AttributeChange, Attributes, FileKind
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Part, Reading
from tieredfs_client.filesystem.connections import CONNECTIONS
from tieredfs_client.filesystem.files import (
    ReadingFile,
    TextFile,
    WritingFile,
    pour,
    pour_reading,
    unchanged,
)
from tieredfs_client.filesystem.location import PROTOCOL, parse, url_of
from tieredfs_client.filesystem.ranges import GAP_BYTES_DEFAULT, RangeRead, Wish, coalesced, resolved
from tieredfs_client.filesystem.translation import as_python

_THREADS: Final = 4
_LIST_BATCH: Final = 1024
_MODES: Final = ("rb", "wb", "xb", "ab")
_TYPES: Final = {FileKind.REGULAR: "file", FileKind.DIRECTORY: "directory", FileKind.SYMLINK: "link"}


class TieredTransaction(Transaction):  # type: ignore[misc]
    """Files get their names at the end, after all of their bytes are durable; on an error none does.

    The names appear one after another. What can still fail between two of them is a name that became a directory meanwhile.
    """

    def complete(self, commit: bool = True) -> None:
        try:
            if commit:
                for file in self.files:
                    file.prepare()
        except BaseException:
            super().complete(commit=False)
            raise
        super().complete(commit)


class TieredFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """`meta_url`: of the volume, where URLs do not name it (see `location`); also from `FSSPEC_TIEREDFS_META_URL`."""

    protocol = PROTOCOL
    root_marker = ""
    transaction_type = TieredTransaction

    def __init__(self, meta_url: str | None = None, **storage_options: Any) -> None:
        super().__init__(meta_url=meta_url, **storage_options)
        if meta_url is None:
            raise ValueError(
                "which volume? tieredfs:///data/volume.db!/path in the URL, or meta_url='sqlite:///data/volume.db'"
            )
        with as_python():
            self.meta_url = str(parse_meta_url(meta_url))

    # ---- URLs -------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return parse(stringify_path(path)).path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        location = parse(path)
        return {"meta_url": location.meta_url} if location.meta_url else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL that names the volume, too."""
        return url_of(self.meta_url, self._strip_protocol(name))

    @property
    def fsid(self) -> str:
        return f"{PROTOCOL}-{self.meta_url}"

    @property
    def volume(self) -> FileSystem:
        """This process's own. Raises FileNotFoundError where there is no volume."""
        with as_python(self.meta_url.removeprefix("sqlite://")):
            return CONNECTIONS.get(self.meta_url)

    def close(self) -> None:
        """Close this process's volume, for all instances; the next call opens it again. It is open until the process ends, else."""
        CONNECTIONS.close(self.meta_url)

    def _path(self, path: Any) -> str:
        """Stripped; a URL that names another volume is refused, not read from this one."""
        location = parse(stringify_path(path))
        if location.meta_url is not None and str(parse_meta_url(location.meta_url)) != self.meta_url:
            raise ValueError(f"{path} is in another volume than {self.meta_url}")
        return location.path

    # ---- looking ----------------------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._path(path)
        with as_python(name):
            return _described(name, self.volume.stat(_encoded(name)))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        name = self._path(path)
        with as_python(name):
            try:
                found = list(self._entries(name))
            except NotDirectoryError:
                found = [_described(name, self.volume.stat(_encoded(name)))]
        return found if detail else [one["name"] for one in found]

    def _entries(self, name: str) -> Iterator[dict[str, Any]]:
        after = b""
        while True:
            batch = self.volume.entries(_encoded(name), after, _LIST_BATCH)
            for entry, attributes in batch:
                child = os.fsdecode(entry.name)
                yield _described(f"{name}/{child}" if name else child, attributes)
            if len(batch) < _LIST_BATCH:
                return
            after = batch[-1][0].name

    def exists(self, path: str, **_: Any) -> bool:
        """Unlike fsspec's own, an error other than `not there` is raised."""
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def created(self, path: str) -> datetime.datetime:
        """When the inode last changed, as for local files: a volume keeps no time of birth."""
        return datetime.datetime.fromtimestamp(self.info(path)["created"], tz=datetime.UTC)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.UTC)

    def ukey(self, path: str) -> str:
        """Another one whenever the content may be another."""
        about = self.info(path)
        return f"{about['ino']:x}-{about['version']:x}-{about['size']:x}-{about['mtime_ns']:x}"

    def checksum(self, path: str) -> int:
        return int.from_bytes(self.ukey(path).encode(), "big")

    # ---- reading ----------------------------------------------------------------------------------------------------

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._path(path)
        if "b" in mode:
            return super().open(path, mode, **options)
        encoding, errors, newline = (options.pop(key, None) for key in ("encoding", "errors", "newline"))
        binary = super().open(path, mode.replace("t", "") + "b", **options)
        return TextFile(binary, encoding, errors, newline)

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **_: Any) -> ReadingFile | WritingFile:
        if mode not in _MODES:
            raise ValueError(f"{mode!r}: a file of a volume is opened with one of {', '.join(_MODES)}")
        if mode == "rb":
            return ReadingFile(self._reading(path), path)
        return self._writing(path, mode, autocommit=autocommit)

    def _reading(self, name: str) -> Reading:
        with as_python(name):
            return self.volume.open(_encoded(name))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        name = self._path(path)
        with self._reading(name) as reading:
            first, last = resolved(start, end, reading.attributes.size_bytes)
            return _bytes_of(reading, name, first, last)

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Ranges of many files: those that are near each other in one read, files in parallel.

        `on_error`: `return` puts an exception where bytes would be, `raise` raises the first."""
        begins, finishes = _one_each(starts, len(paths)), _one_each(ends, len(paths))
        wanted: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            wanted.setdefault(self._path(path), []).append(index)
        answers: list[Any] = [None] * len(paths)

        def serve(item: tuple[str, list[int]]) -> None:
            name, indexes = item
            try:
                self._serve(name, [(at, begins[at], finishes[at]) for at in indexes], max_gap, answers)
            except OSError as error:
                if on_error == "raise":
                    raise
                for index in indexes:
                    answers[index] = error

        with ThreadPoolExecutor(_THREADS, "tieredfs-ranges") as pool:
            for _done in pool.map(serve, wanted.items()):
                pass
        return answers

    def _serve(
        self, name: str, wanted: Sequence[tuple[int, int | None, int | None]], max_gap: int | None, answers: list[Any]
    ) -> None:
        with self._reading(name) as reading:
            size = reading.attributes.size_bytes
            wishes = [Wish(index, *resolved(start, end, size)) for index, start, end in wanted]
            for read in coalesced(wishes, GAP_BYTES_DEFAULT if max_gap is None else max_gap):
                _answer(read, _bytes_of(reading, name, read.start, read.end), answers)

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **options: Any
    ) -> None:
        """The bytes go from file to file inside the kernel."""
        name = self._path(rpath)
        if outfile is not None or isfilelike(lpath):
            super().get_file(name, lpath, callback=callback, outfile=outfile, **options)
            return
        if self.isdir(name):
            os.makedirs(lpath, exist_ok=True)
            return
        os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
        with self._reading(name) as reading, open(lpath, "wb", buffering=0) as target, as_python(name):
            callback.set_size(reading.attributes.size_bytes)
            callback.relative_update(pour_reading(reading, target.fileno()))

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _writing(self, name: str, mode: str, *, autocommit: bool) -> WritingFile:
        """What is plainly impossible is said now, not when the file is closed."""
        with as_python(name):
            seen = self._seen(name)
            if seen is not None and mode == "xb":
                raise AlreadyExistsError(f"{name} is there already")
            if seen is not None and seen.kind is FileKind.DIRECTORY:
                raise IsDirectoryError(f"{name} is a directory")
            if mode == "ab":
                return self._appending(name, seen, autocommit=autocommit)
            return WritingFile(self.volume.create(), name, autocommit=autocommit, replace=mode != "xb")

    def _seen(self, name: str) -> Attributes | None:
        if not name:
            raise IsDirectoryError("the root of the volume is a directory")
        try:
            return self.volume.stat(_encoded(name))
        except NotFoundError:
            return None

    def _appending(self, name: str, seen: Attributes | None, *, autocommit: bool) -> WritingFile:
        """A new file that begins as the old one, and replaces it only if that is still what was copied."""
        writing = self.volume.create()
        try:
            if seen is not None:
                with self.volume.open(_encoded(name)) as reading:
                    pour_reading(reading, writing.descriptor)
            file = WritingFile(writing, name, autocommit=autocommit, condition=unchanged(seen))
            file.seek(0, os.SEEK_END)
        except BaseException:
            writing.discard()
            raise
        return file

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """The bytes go from file to file inside the kernel."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb") as source, self.open(rpath, "xb" if mode == "create" else "wb") as target:
            size = os.fstat(source.fileno()).st_size
            callback.set_size(size)
            callback.relative_update(pour(source.fileno(), target.fileno(), size))

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        name = self._path(path)
        if not truncate and self.exists(name):
            with as_python(name):
                volume = self.volume
                now = AttributeChange(mtime_ns=volume.volume.host.clock.wall_ns())
                volume.volume.metadata.set_attributes(volume.stat(_encoded(name)).inode, now)
            return
        with self.open(name, "wb"):
            pass

    # ---- names ------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        name = self._path(path)
        with as_python(name):
            parent = name.rpartition("/")[0]
            if not create_parents:
                self.volume.stat(_encoded(parent))
            if self.exists(name):
                raise AlreadyExistsError(f"{name} is there already")
            self.volume.make_directories(_encoded(name))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        name = self._path(path)
        if not exist_ok and self.exists(name):
            raise FileExistsError(name)
        with as_python(name):
            self.volume.make_directories(_encoded(name))

    def rmdir(self, path: str) -> None:
        name = self._path(path)
        with as_python(name):
            if self.volume.stat(_encoded(name)).kind is not FileKind.DIRECTORY:
                raise NotDirectoryError(f"{name} is no directory")
            self.volume.remove(_encoded(name))

    def rm_file(self, path: str) -> None:
        name = self._path(path)
        with as_python(name):
            self.volume.remove(_encoded(name), condition=_no_directory(name))

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """With `recursive`, directories with all below them; not atomic."""
        for name in reversed(
            self.expand_path(self._paths(path), recursive=recursive and maxdepth is not None, maxdepth=maxdepth)
        ):
            with as_python(name):
                if recursive and maxdepth is None:
                    self.volume.remove_tree(_encoded(name))
                else:
                    self.volume.remove(_encoded(name), condition=None if recursive else _no_directory(name))

    def _paths(self, path: Any) -> Any:
        return [self._path(each) for each in path] if isinstance(path, list) else self._path(path)

    def mv(self, path1: Any, path2: Any, maxdepth: int | None = None, **_: Any) -> None:
        """One rename each: atomic, of directories, too. What is moved to a directory that exists goes into it."""
        if maxdepth is not None:
            raise ValueError("a directory is moved whole, not to a depth")
        if isinstance(path1, list) and isinstance(path2, list):
            for source, target in zip(path1, path2, strict=True):
                self._rename(self._path(source), self._path(target))
            return
        into = str(path2).endswith("/") or self.isdir(path2)
        for source in self.expand_path(self._paths(path1)):
            target = self._path(path2)
            self._rename(source, f"{target}/{source.rpartition('/')[2]}" if into else target)

    def _rename(self, source: str, target: str) -> None:
        with as_python(source):
            if source == target:
                self.volume.stat(_encoded(source))  # onto itself: nothing to do, if it is there
            else:
                self.volume.rename(_encoded(source), _encoded(target))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """By reference: no byte is moved. A small file that is not stored yet is copied; a large one is stored first."""
        source, target = self._path(path1), self._path(path2)
        with as_python(source):
            seen = self.volume.stat(_encoded(source))
            if seen.kind is FileKind.DIRECTORY:
                self.volume.make_directories(_encoded(target))
            elif seen.staged_in != NO_CACHE and seen.size_bytes <= PACKED_FILE_BYTES_MAX:
                with self._reading(source) as reading, self.volume.create() as copied:
                    pour_reading(reading, copied.descriptor)
                    copied.commit(_encoded(target))
            else:
                with self.volume.splice([Part(seen.inode, 0, seen.size_bytes)]) as referring:
                    referring.commit(_encoded(target))


def _encoded(name: str) -> bytes:
    return os.fsencode(name)


def _described(name: str, attributes: Attributes) -> dict[str, Any]:
    """What fsspec calls the info of a file."""
    return {
        "name": name,
        "size": attributes.size_bytes if attributes.kind is FileKind.REGULAR else 0,
        "type": _TYPES.get(attributes.kind, "other"),
        "created": attributes.ctime_ns / 1e9,
        "mtime": attributes.mtime_ns / 1e9,
        "mtime_ns": attributes.mtime_ns,
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "ino": attributes.inode,
        "nlink": attributes.link_count,
        "version": attributes.version,
        "islink": attributes.kind is FileKind.SYMLINK,
        "stored": attributes.staged_in == NO_CACHE,
    }


def _bytes_of(reading: Reading, name: str, start: int, end: int) -> bytes:
    """From the local file at once where there is one whole, without a copy; else as the bytes arrive."""
    with as_python(name):
        if reading.descriptor is not None:
            data = os.pread(reading.descriptor, end - start, start)
            if len(data) == end - start:
                return data
        made = bytearray(end - start)
        count = reading.read_into(start, memoryview(made))
        return bytes(made[:count])


def _answer(read: RangeRead, data: bytes, answers: list[Any]) -> None:
    for wish in read.wishes:
        answers[wish.index] = data[wish.start - read.start : wish.end - read.start]


def _one_each(value: Any, count: int) -> list[int | None]:
    given: list[int | None] = list(value) if isinstance(value, Iterable) else [value] * count
    if len(given) != count:
        raise ValueError(f"{len(given)} positions for {count} paths")
    return given


def _no_directory(name: str) -> Callable[[Attributes | None], None]:
    def check(found: Attributes | None) -> None:
        if found is not None and found.kind is FileKind.DIRECTORY:
            raise IsDirectoryError(f"{name} is a directory: remove it with recursive=True, or with rmdir")

    return check
