"""What a manifest says of ranks and tensors, from what processes had and what their machines stored. Pure; linear in both."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tieredfs.errors import CorruptError, UnstorableError
from tieredfs_client.checkpoint.layout import Blob, Contents, RankRecord, StoredFile, StoredShard, StoredTensor
from tieredfs_client.checkpoint.plan import flaw
from tieredfs_client.checkpoint.shares import Report, Share, StoredPart, Task
from tieredfs_client.checkpoint.tree import Whole


@dataclass(frozen=True, slots=True)
class Extra:
    """What goes into the manifest beside the state; rank 0's counts."""

    metadata: Mapping[str, object]
    metrics: Mapping[str, float]


def numbered(shares: Sequence[Share]) -> list[list[int]]:
    """What each tensor of each process is called in the manifest: pieces of one sharded tensor alike, and what has the same
    content."""
    known: dict[Whole | bytes, int] = {}
    found = []
    for share in shares:
        sharded = [known.setdefault(one, len(known)) if one.sharded else None for one in share.wholes]
        both = zip([sharded[kind] for kind in share.kinds], share.identities, strict=True)
        found.append([known.setdefault(one, len(known)) if number is None else number for number, one in both])
    return found


def assemble(shares: Sequence[Share], tasks: Mapping[int, Task], parts: Sequence[StoredPart]) -> Contents:
    """Shares of all processes, in any order; tasks by their leads. Raises CorruptError where a tensor that a rank has was stored by
    nobody, UnstorableError where the shards of a tensor do not make it up, or overlap."""
    files: list[StoredFile] = []
    blobs: list[Blob] = []
    reports: dict[int, Report] = {}
    starts: dict[int, int] = {}
    for part in parts:
        base = len(files)
        files += part.files
        for lead, report in part.reports.items():
            reports[lead], starts[lead] = report, len(blobs)
            blobs += [one._replace(file=base + one.file) for one in report.blobs] if base else report.blobs
    if reports.keys() != tasks.keys():
        raise CorruptError("other processes have stored than were to")
    tensors = _tensors(shares, tasks, starts)
    trees: dict[str, int] = {}
    records: list[RankRecord] = []
    for share in shares:
        task, report = tasks[share.lead], reports[share.lead]
        if len(report.blobs) != len(task.chosen):
            raise CorruptError(
                f"of {len(task.chosen)} tensors of rank {share.lead} and on, {len(report.blobs)} were stored"
            )
        start = starts[share.lead]
        records += _records(share, task, report, blobs[start : start + len(report.blobs)], files, trees)
    records.sort()
    return Contents(list(trees), tensors, blobs, files, records)


def _records(
    share: Share, task: Task, report: Report, blobs: Sequence[Blob], files: Sequence[StoredFile], trees: dict[str, int]
) -> list[RankRecord]:
    """Of the ranks of one process; their trees join `trees`."""
    written, reused = [0] * len(share.kinds), [0] * len(share.kinds)
    again = [file.reused for file in files]
    for number, blob in zip(task.chosen, blobs, strict=True):
        (reused if again[blob.file] else written)[number] = blob.size_bytes
    names = [trees.setdefault(text, len(trees)) for text in report.trees]
    spans = itertools.pairwise(itertools.accumulate(share.counts, initial=0))
    return [
        RankRecord(rank, names[tree], sum(written[start:end]), sum(reused[start:end]), seconds)
        for rank, tree, (start, end), seconds in zip(
            share.ranks, report.tree_numbers, spans, report.seconds, strict=True
        )
    ]


def _tensors(shares: Sequence[Share], tasks: Mapping[int, Task], starts: Mapping[int, int]) -> list[StoredTensor]:
    """The table of tensors that are stored: pieces of one sharded tensor meet here, whatever process they come from. `starts`: the
    number of each process's first blob."""
    count = 1 + max((max(task.numbers, default=-1) for task in tasks.values()), default=-1)
    wholes: list[Whole | None] = [None] * count
    shards: list[list[StoredShard]] = [[] for _ in range(count)]
    for share in shares:
        task = tasks[share.lead]
        for number, kind in zip(task.numbers, share.kinds, strict=True):
            wholes[number] = share.wholes[kind]
        for blob, number in enumerate(task.chosen, starts[share.lead]):
            shards[task.numbers[number]].append(StoredShard(*share.boxes[number], blob))
    return [_tensor(whole, pieces) for whole, pieces in zip(wholes, shards, strict=True)]


def _tensor(whole: Whole | None, shards: Sequence[StoredShard]) -> StoredTensor:
    if whole is None or not shards:
        raise CorruptError(f"{whole.key if whole else 'a tensor'} was stored by no rank")
    return StoredTensor(*whole, _complete(whole, shards))


def _complete(whole: Whole, shards: Sequence[StoredShard]) -> tuple[StoredShard, ...]:
    """A checkpoint with a tensor that no load can fill, or that is not the same however it is loaded, must not take the place of
    one that is whole."""
    if whole.sharded:
        found = flaw(whole.global_shape, [shard[:2] for shard in shards])
        if found is not None:
            raise UnstorableError(
                f"{whole.key}, {whole.dtype}: {found}; each element is to be in one shard, or in equal ones: do ranks disagree "
                "about its shape, its type or who holds what?"
            )
    return tuple(shards)
