"""A new metadata database from a dump.

It fences: the volume gets a new identity, its disks and caches are given to it one by one, and metadata of before can open
none of them any more. Otherwise two databases would look after the same disks, and each would collect the other's chunks as
garbage. Copies in caches are given up, for the versions of files go on from an earlier number; what is *staged* there stays.

The order is: the records, the caches and disks, where chunks are, and last the record that makes the database a volume. Killed
at any point, it can be done again, with the same dump or another one: disks and caches are known by their own ids.
"""

import contextlib
import itertools
import os
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tieredfs.cache.layout import claimed, give_to_volume, is_here
from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.disk_dumps import DiskDumps
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.sites import site_of
from tieredfs.chunk.store import ChunkStore
from tieredfs.config import DataUrl, DiskUrl, MetaUrl, expand_braces, parse_data_url, parse_meta_url
from tieredfs.curator import Reunion, reunite
from tieredfs.errors import (
    CorruptError,
    NewerFormatError,
    NotFoundError,
    TieredError,
    UnavailableError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from tieredfs.format import dump as dump_format
from tieredfs.format.dump import DumpHeader
from tieredfs.host import Host, crash, local_host
from tieredfs.kv.databases import create_engine, database_exists, open_engine, remove_database
from tieredfs.kv.engine import Engine
from tieredfs.meta import dumping, sessions, volumes
from tieredfs.model import CacheRecord, Disk, DiskId, DiskState, Progress, VolumeConfig

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadReport:
    """`taken_ns`: the moment of the dump that was loaded. `away`: disks that could not be given to the volume, and why; they
    must be rebuilt. `chunks`: what was found on the others. `unusable`: sources that could not be read or were not whole."""

    dump: str
    taken_ns: int
    name: str
    uuid: str
    record_count: int
    chunks: Reunion
    away: dict[int, str]
    unusable: tuple[str, ...]


def load_volume(meta_url: str, sources: Sequence[str], progress: Progress, *, host: Host | None = None) -> LoadReport:
    """Make the metadata database at `meta_url` from the newest whole dump among `sources`: dump files, and disks (a directory, or
    the URL of any disk, with braces as in `format`) for the dumps on them. No process may have the volume open.

    Raises VolumeExistsError, NotFoundError (no dump there), CorruptError (none is whole), NewerFormatError, UnavailableError,
    ConfigurationError, BusyError (a cache of this host is in use); then nothing was changed.
    """
    host = host or local_host()
    location = parse_meta_url(meta_url)
    _check_vacant(location)
    with contextlib.ExitStack() as stack:
        found, unusable = _dumps(host, sources, stack)
        if not found:
            raise _nothing_usable(unusable) if unusable else NotFoundError(f"there is no dump in {', '.join(sources)}")
        for each in sorted(found, key=lambda each: each.header.taken_ns, reverse=True):
            try:
                report = _load(each, location, progress, host)
            except (CorruptError, _UnreadableError) as error:
                unusable.append(CorruptError(f"{each.label}: {error}"))
            else:
                return replace(report, unusable=tuple(map(str, unusable)))
    raise CorruptError(f"no dump is whole: {'; '.join(map(str, unusable))}; other disks may have others")


def _nothing_usable(problems: Sequence[TieredError]) -> TieredError:
    """All of them in one, of the kind of the first."""
    told = "; ".join(dict.fromkeys(map(str, problems)))
    if all(isinstance(problem, UnavailableError) for problem in problems):
        told += "; bring it back, or name another disk of the volume"
    return type(problems[0])(told)


class _UnreadableError(Exception):
    """A dump that cannot be read any more, though it could a moment ago. Never leaves this module."""


def _check_vacant(location: MetaUrl) -> None:
    """A database that holds no volume is what a loading that was killed left."""
    if not database_exists(location):
        return
    with contextlib.suppress(VolumeNotFoundError):
        engine = open_engine(location)
        try:
            engine.read(volumes.config)
        finally:
            engine.close()
        raise VolumeExistsError(
            f"there is a volume at {location} already; load into another place, or move that one away"
        )
    remove_database(location)


# ---- finding dumps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """`pieces`: the dump from its beginning, each time anew. Raises TieredError while it is read."""

    label: str
    pieces: Callable[[], Iterator[bytes]]
    header: DumpHeader


def _dumps(host: Host, sources: Sequence[str], stack: contextlib.ExitStack) -> tuple[list[_Found], list[TieredError]]:
    """What has the header of a dump, and what is wrong with the rest. `stack` closes what was opened for it."""
    found: list[_Found] = []
    problems: list[TieredError] = []
    for source in itertools.chain.from_iterable(map(_expanded, sources)):
        try:
            candidates = list(_candidates(host, source, stack))
        except TieredError as error:
            problems.append(error)
            continue
        for label, pieces in candidates:
            try:
                with contextlib.closing(pieces()) as beginning:
                    found.append(_Found(label, pieces, dump_format.decode_header(beginning)[0]))
            except (CorruptError, NewerFormatError) as error:
                problems.append(type(error)(f"{label}: {error}; name another dump, or a disk of the volume"))
            except TieredError as error:
                problems.append(error)
    return found, problems


def _expanded(source: str) -> list[str]:
    """A path is taken as it is; a URL may stand for several."""
    return expand_braces(source) if "://" in source else [source]


def _candidates(
    host: Host, source: str, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Callable[[], Generator[bytes]]]]:
    """What may be a dump there, and how to read it."""
    url = parse_data_url(source) if "://" in source else DiskUrl(os.path.abspath(source))
    if isinstance(url, DiskUrl) and not os.path.isdir(url.path):
        yield url.path, partial(_file_pieces, url.path)
        return
    shelf = DiskDumps(url.path, host, None) if isinstance(url, DiskUrl) else _far_shelf(url, host, stack)
    for taken_ns in shelf.taken():
        yield shelf.label(taken_ns), partial(_shelf_pieces, shelf, taken_ns)


def _far_shelf(url: DataUrl, host: Host, stack: contextlib.ExitStack) -> DumpShelf:
    """That of whichever disk is there now. Raises NotFoundError."""
    site = site_of(url, host)
    identity = site.identity()
    if identity is None:
        raise NotFoundError(f"{url} is not a disk of a volume")
    store = site.open(identity)
    stack.callback(store.close)
    return store.dumps


def _file_pieces(path: str) -> Generator[bytes]:
    try:
        with open(path, "rb") as file:
            while piece := file.read(_READ_BYTES):
                yield piece
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _shelf_pieces(shelf: DumpShelf, taken_ns: int) -> Generator[bytes]:
    yield from shelf.read(taken_ns)


# ---- loading one -----------------------------------------------------------------------------------------------------


def _load(found: _Found, location: MetaUrl, progress: Progress, host: Host) -> LoadReport:
    """Raises CorruptError when the dump is not whole, and leaves no database then, nor after any other failure."""
    engine = create_engine(location)
    try:
        with contextlib.closing(engine), contextlib.ExitStack() as claims:
            config, records = _fill(engine, found, progress)
            crash.here("load.filled")
            caches = [each for each in engine.read(sessions.caches) if is_here(each, host)]
            for cache in caches:
                claims.enter_context(claimed(cache.path, host.files))
            config = replace(config, uuid=str(uuid.uuid4()))
            _give_caches(host, caches, config)
            stores, away = _give_disks(host, engine, config)
            crash.here("load.given")
            chunks = _reunite(engine, stores, host.clock.wall_ns(), progress)
            dumping.complete(engine, config)
    except BaseException:
        remove_database(location)
        raise
    taken_ns = found.header.taken_ns
    return LoadReport(found.label, taken_ns, config.name, config.uuid, records, chunks, away, ())


def _fill(engine: Engine, found: _Found, progress: Progress) -> tuple[VolumeConfig, int]:
    with contextlib.closing(_reread(found)) as pieces:
        _, first = dump_format.decode_header(pieces)
        return dumping.fill(engine, dump_format.decode_body(first, pieces), progress)


def _reread(found: _Found) -> Generator[bytes]:
    """Raises _UnreadableError: it was deleted since, or its place is gone. Another dump may do."""
    try:
        yield from found.pieces()
    except TieredError as error:
        raise _UnreadableError(str(error)) from error


def _give_caches(host: Host, caches: Sequence[CacheRecord], config: VolumeConfig) -> None:
    for cache in caches:
        with contextlib.suppress(FileNotFoundError):
            give_to_volume(host.files, cache.path, cache.uuid, config.uuid)


def _give_disks(host: Host, engine: Engine, config: VolumeConfig) -> tuple[dict[DiskId, ChunkStore], dict[int, str]]:
    stores: dict[DiskId, ChunkStore] = {}
    away: dict[int, str] = {}
    for disk in engine.read(volumes.disks):
        if disk.state is DiskState.REMOVED:
            continue
        try:
            stores[disk.disk] = _give_disk(host, disk, config)
        except TieredError as error:
            away[disk.disk] = str(error)
    if not stores:
        raise UnavailableError(f"none of the volume's disks is here: {'; '.join(away.values())}")
    return stores, away


def _give_disk(host: Host, disk: Disk, config: VolumeConfig) -> ChunkStore:
    site, identity = site_of(parse_data_url(disk.url), host), DiskIdentity(config.uuid, disk.uuid)
    site.give(identity)
    return site.open(identity)


def _reunite(engine: Engine, stores: dict[DiskId, ChunkStore], now_ns: int, progress: Progress) -> Reunion:
    try:
        return reunite(engine, stores, now_ns, progress)
    finally:
        for store in stores.values():
            store.close()
