"""What a manifest says of ranks and tensors, from what processes had and what their machines stored. Pure; linear in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tieredfs.errors import CorruptError, UnstorableError
from tieredfs_client.checkpoint.layout import (
    Contents,
    StoredFile,
    StoredShard,
    StoredTensor,
    blob_rows,
    rank_row,
    read_blob_rows,
    read_checked,
    tensor_rows,
)
from tieredfs_client.checkpoint.plan import flaw
from tieredfs_client.checkpoint.remembered import Once
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


def assemble(
    shares: Sequence[Share],
    tasks: Mapping[int, Task],
    parts: Sequence[StoredPart],
    remembered: Once[str] | None = None,
) -> Contents:
    """Shares of all processes, in any order; tasks by their leads. `remembered`: the table of tensors, as it follows from the very
    object that `tasks` is, which never comes with shares of another layout. Raises CorruptError where a tensor that a rank has
    was stored by nobody, UnstorableError where the shards of a tensor do not make it up, or overlap."""
    files: list[StoredFile] = []
    blobs: list[str] = []
    reports: dict[int, Report] = {}
    starts: dict[int, int] = {}
    count = 0
    for part in parts:
        base = len(files)
        files += part.files
        for lead, report in part.reports.items():
            reports[lead], starts[lead] = report, count
            blobs.append(report.blobs if not base else _moved(report.blobs, base))
            count += report.blob_count
    if reports.keys() != tasks.keys():
        raise CorruptError("other processes have stored than were to")
    for lead, task in tasks.items():
        stored = reports[lead].blob_count
        if stored != len(task.chosen):
            raise CorruptError(f"of {len(task.chosen)} tensors of rank {lead} and on, {stored} were stored")
    table = remembered if remembered is not None else Once[str]()
    places = [starts[share.lead] for share in shares]
    tensors = table.of(lambda: tensor_rows(_tensors(shares, tasks, starts)), tasks, *places)
    trees: dict[str, int] = {}
    records: list[tuple[int, str]] = []
    for share in shares:
        records += _records(share, reports[share.lead], trees)
    records.sort()
    packed = any(one.packed for one in reports.values())
    return Contents(list(trees), tensors, blobs, packed, files, [text for _, text in records])


def _moved(rows: str, base: int) -> str:
    """Those of a machine whose first file is number `base` of all."""
    found = read_checked(lambda: read_blob_rows(rows), "what a machine stored")
    return blob_rows([one._replace(file=base + one.file) for one in found])


def _records(share: Share, report: Report, trees: dict[str, int]) -> list[tuple[int, str]]:
    """Of the ranks of one process, and their rows of the manifest; their trees join `trees`."""
    names = [trees.setdefault(text, len(trees)) for text in report.trees]
    both = zip(share.ranks, report.tree_numbers, report.ranks, strict=True)
    return [(rank, rank_row(rank, names[tree], text)) for rank, tree, text in both]


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
