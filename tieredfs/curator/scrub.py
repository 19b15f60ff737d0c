"""The check (fsck): metadata against itself, every chunk against its checksums, the disks against the metadata.

With `repair`, what can be made right with certainty is: metadata that follows from other metadata, chunks that the
code can rebuild. A chunk on a disk that merely does not answer is left: the disk may be back in a minute, and whoever
knows that it will not says so with `rebuild_disk`.

Blocks are checked `CARE_THREADS` at a time, in pages of `CARE_BATCH`. A dead block is passed over: nobody will read it,
and its chunks may be half deleted.
"""

import logging
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tieredfs.core.care import Ailment, ChunkFate, Health, health
from tieredfs.curator import amends
from tieredfs.curator.audit import Audited, Suspicion, audit
from tieredfs.curator.holdings import Holdings
from tieredfs.curator.paths import paths_of
from tieredfs.curator.report import CheckReport, Finding, FindingKind
from tieredfs.curator.sweep import sweep
from tieredfs.errors import (
    AlreadyExistsError,
    ConditionError,
    IntegrityError,
    NotFoundError,
    QuotaExceededError,
    RequestError,
)
from tieredfs.format import keys
from tieredfs.kv.engine import Reader
from tieredfs.limits import CARE_BATCH, CARE_THREADS, FINDINGS_MAX, PATHS_PER_LOSS_MAX
from tieredfs.meta import blocks as block_layer
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.model import ROOT, Block, BlockId, DiskId, FileKind, InodeId, Progress

_log: Final = logging.getLogger(__name__)

_AMEND_ROUNDS: Final = 3
"""One amendment may bring another to light: a user that is found makes its block alive."""

_CHUNK_KINDS: Final = {
    Ailment.UNPLACED: FindingKind.CHUNK_UNPLACED,
    Ailment.MISSING: FindingKind.CHUNK_MISSING,
    Ailment.ROTTEN: FindingKind.CHUNK_ROTTEN,
}
"""`UNREACHABLE` is told once per disk, not per chunk."""

_BLOCK_KINDS: Final = {Health.LOST: FindingKind.DATA_LOST, Health.UNAVAILABLE: FindingKind.DATA_UNAVAILABLE}


@dataclass(slots=True)
class _Tally:
    findings: list[Finding] = field(default_factory=list)
    omitted: int = 0
    blocks: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    chunks_repaired: int = 0
    unreachable: Counter[DiskId] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        elif not finding.repaired:
            self.omitted += 1


def check(holdings: Holdings, *, repair: bool, progress: Progress) -> CheckReport:
    tally = _Tally()
    audited = _check_metadata(holdings, tally, repair, progress)
    _check_blocks(holdings, tally, audited.blocks, repair, progress)
    garbage_unreachable = _find_garbage(holdings, tally, progress)
    _tell_unreachable(tally, garbage_unreachable)
    return CheckReport(
        tuple(tally.findings),
        tally.omitted,
        audited.records,
        audited.inodes,
        tally.blocks,
        tally.chunks,
        tally.chunk_bytes,
        tally.chunks_repaired,
    )


# ---- metadata --------------------------------------------------------------------------------------------------------


def _check_metadata(holdings: Holdings, tally: _Tally, repair: bool, progress: Progress) -> Audited:
    """What was found first and is no longer found after the amendments is repaired: that is looked at, not believed."""
    first = latest = _audit(holdings, progress)
    seen = {_identity(suspicion): suspicion for suspicion in first.suspicions}
    for _ in range(_AMEND_ROUNDS if repair else 0):
        if not _amend(holdings, latest):
            break
        latest = _audit(holdings, progress)
        for suspicion in latest.suspicions:
            seen.setdefault(_identity(suspicion), suspicion)
    left = {_identity(suspicion) for suspicion in latest.suspicions}
    paths = _paths(holdings, {s.inode for s in seen.values() if s.inode is not None})
    for identity, suspicion in seen.items():
        tally.add(_finding(suspicion, paths, repaired=identity not in left))
    tally.omitted += latest.omitted
    return first


def _identity(suspicion: Suspicion) -> tuple[FindingKind, str, InodeId | None]:
    """Without the detail, which may tell of other numbers the next time."""
    return suspicion.kind, suspicion.subject, suspicion.inode


def _audit(holdings: Holdings, progress: Progress) -> Audited:
    now_ns = holdings.host.clock.wall_ns()
    return holdings.metadata.inspect(partial(audit, now_ns=now_ns, progress=lambda done: progress(done, 0, "records")))


def _paths(holdings: Holdings, wanted: Collection[InodeId]) -> dict[InodeId, str]:
    return holdings.metadata.inspect(partial(paths_of, wanted=wanted)) if wanted else {}


def _finding(suspicion: Suspicion, paths: dict[InodeId, str], *, repaired: bool) -> Finding:
    path = paths.get(suspicion.inode) if suspicion.inode is not None else None
    detail = suspicion.detail if path is None else f"{suspicion.detail} ({path})"
    return Finding(suspicion.kind, suspicion.subject, detail, repaired)


def _amend(holdings: Holdings, audited: Audited) -> bool:
    """Whether there was anything to amend. Link counts first: who is an orphan depends on them."""
    metadata = holdings.metadata
    amendments = [suspicion.amendment for suspicion in audited.suspicions if suspicion.amendment is not None]
    if not audited.names_in_doubt:
        amendments[:0] = [partial(amends.link_counts, wanted=audited.wrong_links)] if audited.wrong_links else []
        home = _lost_and_found(metadata) if audited.placeless else ROOT
        now_ns = holdings.host.clock.wall_ns()
        amendments += [
            partial(amends.find_place, inode=inode, home=home, now_ns=now_ns) for inode in sorted(audited.placeless)
        ]
    for amendment in [*amendments, *([amends.every_quota] if amendments else [])]:
        try:
            metadata.amend(amendment)
        except (IntegrityError, RequestError) as error:
            _log.warning("an amendment met another damage: %s", error)
    return bool(amendments)


def _lost_and_found(metadata: Metadata) -> InodeId:
    try:
        return metadata.create(ROOT, amends.LOST_AND_FOUND, Creation(FileKind.DIRECTORY, 0o700, 0, 0)).inode
    except QuotaExceededError:
        return ROOT
    except AlreadyExistsError:
        return metadata.lookup(ROOT, amends.LOST_AND_FOUND).inode


# ---- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Examined:
    block: Block
    ailments: dict[int, Ailment]
    renewed: bool
    failure: str


def _check_blocks(holdings: Holdings, tally: _Tally, total: int, repair: bool, progress: Progress) -> None:
    after = BlockId(0)
    with ThreadPoolExecutor(CARE_THREADS, thread_name_prefix="check") as threads:
        while True:
            page, alive = holdings.metadata.inspect(partial(_page, after=after))
            for examined in threads.map(partial(_examine, holdings, repair), alive):
                if examined is not None:
                    _tell_block(holdings, tally, examined)
                    progress(tally.blocks, max(total, tally.blocks), "blocks")
            if len(page) < CARE_BATCH:
                return
            after = page[-1].block


def _page(reader: Reader, after: BlockId) -> tuple[list[Block], list[Block]]:
    """The next blocks, and those of them that are not dead."""
    page = block_layer.listed(reader, after, CARE_BATCH)
    dead = reader.get_many([keys.dead_block(block.block) for block in page])
    return page, [block for block, mark in zip(page, dead, strict=True) if mark is None]


def _examine(holdings: Holdings, repair: bool, block: Block) -> _Examined | None:
    """None: the block is gone by now."""
    try:
        block, ailments = holdings.examine(block)
        renewable = [index for index, ailment in ailments.items() if ailment is not Ailment.UNREACHABLE]
        if not repair or not renewable:
            return _Examined(block, ailments, renewed=False, failure="")
        holdings.renew(block, renewable)
    except NotFoundError:
        return None
    except (IntegrityError, ConditionError) as error:
        return _Examined(block, ailments, renewed=False, failure=str(error))
    return _Examined(block, ailments, renewed=True, failure="")


def _tell_block(holdings: Holdings, tally: _Tally, examined: _Examined) -> None:
    block = examined.block
    tally.blocks += 1
    tally.chunks += len(block.chunks)
    tally.chunk_bytes += block.chunk_bytes * (block.code.width - len(examined.ailments))
    places = {chunk.index: chunk.disk for chunk in block.chunks}
    for index, ailment in sorted(examined.ailments.items()):
        if ailment is Ailment.UNREACHABLE:
            tally.unreachable[places[index]] += 1
            continue
        tally.chunks_repaired += examined.renewed
        where = f"on disk {places[index]}" if index in places else "on no disk"
        detail = "; ".join(filter(None, (where, examined.failure)))
        tally.add(Finding(_CHUNK_KINDS[ailment], f"block {block.block:x} chunk {index}", detail, examined.renewed))
    kind = _BLOCK_KINDS.get(health(block.code, examined.ailments.values()))
    if kind is not None:
        paths, count = files_of(holdings, block)
        more = f" and {count - len(paths)} more" if count > len(paths) else ""
        left = block.code.width - len(examined.ailments)
        detail = f"{left} of {block.code.data_count} chunks that it takes are left; files: {', '.join(paths)}{more}"
        tally.add(Finding(kind, f"block {block.block:x}", detail))


def files_of(holdings: Holdings, block: Block) -> tuple[tuple[str, ...], int]:
    """Paths of files with bytes in the block, `PATHS_PER_LOSS_MAX` at most, and how many files there are."""
    users = holdings.metadata.block_users(block.block)
    paths = _paths(holdings, users[:PATHS_PER_LOSS_MAX])
    return tuple(sorted(paths.values())), len(users)


# ---- disks -----------------------------------------------------------------------------------------------------------


def _find_garbage(holdings: Holdings, tally: _Tally, progress: Progress) -> dict[DiskId, str]:
    """One finding per disk; the disks that did not answer."""
    swept = sweep(holdings)
    counts: Counter[DiskId] = Counter()
    example: dict[DiskId, str] = {}
    for seen, chunk in enumerate(swept.chunks, 1):
        if chunk.fate in {ChunkFate.UNKNOWN, ChunkFate.STRAY}:
            counts[chunk.disk] += 1
            example.setdefault(chunk.disk, f"block {chunk.name.block:x} chunk {chunk.name.index}")
        if seen % CARE_BATCH == 0:
            progress(seen, 0, "chunks")
    for disk, count in sorted(counts.items()):
        detail = f"{count} chunks that no record names, {example[disk]} for one"
        tally.add(Finding(FindingKind.GARBAGE, f"disk {disk}", detail))
    return swept.unreachable


def _tell_unreachable(tally: _Tally, unreachable: dict[DiskId, str]) -> None:
    for disk in sorted({*unreachable, *tally.unreachable}):
        reason = unreachable.get(disk, "it did not answer at times")
        detail = f"{reason}; {tally.unreachable[disk]} chunks of blocks in use are there"
        tally.add(Finding(FindingKind.DISK_UNREACHABLE, f"disk {disk}", detail))
