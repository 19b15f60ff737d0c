"""`tieredfs ckpt ...`: the checkpoints of a run. Found by the command line through the entry point group `tieredfs.cli`.

Everything heavy is imported when a verb runs, so that `tieredfs --help` stays quick.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tieredfs.cli.outcomes import PROBLEMS_FOUND
from tieredfs.cli.render import emit, progress_bar
from tieredfs.cli.session import AsJson, MetaUrlArgument, new_verbs
from tieredfs.config import parse_meta_url
from tieredfs.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    from tieredfs_client.checkpoint.catalog import Catalog

verbs = new_verbs("List, check, compare, keep and move the checkpoints of a run.")


def add_to(app: typer.Typer) -> None:
    """The entry point: `tieredfs ckpt`."""
    app.add_typer(verbs, name="ckpt")


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Directory of the run, as runs/gpt", show_default=False)
]
WhichArgument = Annotated[str, typer.Argument(metavar="[STEP|TAG|latest]", help="Which checkpoint.")]


@contextlib.contextmanager
def _catalog(meta_url: str, run: str, purpose: str) -> Iterator["Catalog"]:
    from tieredfs.host import local_host
    from tieredfs.volume import FileSystem
    from tieredfs_client.checkpoint.catalog import Catalog
    from tieredfs_client.checkpoint.names import RunPaths

    paths = RunPaths.of(run)
    with FileSystem.at(str(parse_meta_url(meta_url)), purpose=purpose) as volume:
        yield Catalog(volume, local_host(), paths)


def _which(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


@verbs.command("list")
def list_checkpoints(meta_url: MetaUrlArgument, run: RunArgument, as_json: AsJson = False) -> None:
    """List the checkpoints of a run: sizes, what was new, whether all of it is stored, how long it took.

    Example: tieredfs ckpt list sqlite:///data/volume.db runs/gpt
    """
    from tieredfs_client.checkpoint.keeping import Keeper

    with _catalog(meta_url, run, "ckpt list") as catalog:
        summaries = Keeper(catalog).summaries()
        rows = summaries if as_json else [_row(summary) for summary in summaries]
        emit(rows, as_json=as_json, empty="no checkpoints")


@dataclass(frozen=True, slots=True)
class _Row:
    """What fits on a line."""

    step: int
    created_ns: int
    size_bytes: int
    stored_bytes: int
    new_bytes: int
    reused_ratio: float
    durability: str
    world_size: int
    duration_s: float
    slowest_rank: int
    tags: str
    problem: str | None


def _row(summary: object) -> _Row:
    from tieredfs_client.checkpoint.keeping import Summary

    assert isinstance(summary, Summary)
    return _Row(
        summary.step,
        summary.created_ns,
        summary.size_bytes,
        summary.stored_bytes,
        summary.new_bytes,
        summary.reused_ratio,
        summary.durability,
        summary.world_size,
        summary.duration_s,
        summary.slowest_rank,
        " ".join(summary.tags),
        summary.problem,
    )


@verbs.command()
def show(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    which: WhichArgument = "latest",
    as_json: AsJson = False,
) -> None:
    """Show one checkpoint: metadata, metrics, files, ranks and tensors.

    Example: tieredfs ckpt show sqlite:///data/volume.db runs/gpt 1000 --json
    """
    from tieredfs_client.checkpoint.keeping import described

    with _catalog(meta_url, run, "ckpt show") as catalog:
        emit(described(catalog, _which(which)), as_json=as_json)


@verbs.command()
def verify(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    which: WhichArgument = "latest",
    as_json: AsJson = False,
) -> None:
    """Read every byte of a checkpoint and check it. Exit code 1: something is wrong.

    Example: tieredfs ckpt verify sqlite:///data/volume.db runs/gpt latest
    """
    from tieredfs_client.checkpoint.keeping import Keeper

    with _catalog(meta_url, run, "ckpt verify") as catalog, progress_bar(f"verifying {which}", as_json) as progress:
        problems = Keeper(catalog).verify(_which(which), progress)
    emit({"problems": problems} if as_json else problems, as_json=as_json, empty="every byte is as it was written")
    if problems:
        raise typer.Exit(PROBLEMS_FOUND)


@verbs.command()
def diff(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    first: Annotated[str, typer.Argument(metavar="STEP|TAG", help="The earlier one.", show_default=False)],
    second: WhichArgument = "latest",
    as_json: AsJson = False,
) -> None:
    """Which tensors differ between two checkpoints, by content; nothing but the manifests is read.

    Example: tieredfs ckpt diff sqlite:///data/volume.db runs/gpt 1000 2000
    """
    from tieredfs_client.checkpoint.keeping import differences

    with _catalog(meta_url, run, "ckpt diff") as catalog:
        found = differences(catalog, _which(first), _which(second))
    emit(found, as_json=as_json, empty="no tensor differs")


@verbs.command()
def tag(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="TAG", help="A name of your choice.", show_default=False)],
    which: WhichArgument = "latest",
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
) -> None:
    """Give a checkpoint a name; it is kept as long as it has one.

    Example: tieredfs ckpt tag sqlite:///data/volume.db runs/gpt released 2000
    """
    with _catalog(meta_url, run, "ckpt tag") as catalog:
        if remove:
            catalog.remove_tag(name)
        else:
            catalog.set_tag(name, _which(which))


@verbs.command()
def rm(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    which: Annotated[list[str], typer.Argument(metavar="STEP|TAG...", help="Which checkpoints.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also tagged ones, and the last one.")] = False,
) -> None:
    """Delete checkpoints. What others refer to stays; one that is being read is refused.

    Example: tieredfs ckpt rm sqlite:///data/volume.db runs/gpt 1000
    """
    from tieredfs_client.checkpoint.keeping import Keeper

    with _catalog(meta_url, run, "ckpt rm") as catalog:
        keeper = Keeper(catalog)
        for name in dict.fromkeys(
            catalog.resolve(_which(each)) for each in which
        ):  # all of them, before the first is gone
            keeper.delete(name.step, force=force)


@verbs.command()
def prune(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    keep_last: Annotated[int | None, typer.Option(help="Keep the last n.", show_default=False)] = None,
    keep_every: Annotated[int | None, typer.Option(help="Keep steps that n divides.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Delete what no rule keeps, and what interrupted deletions left. Tagged ones and the newest stay.

    Example: tieredfs ckpt prune sqlite:///data/volume.db runs/gpt --keep-last 3 --keep-every 1000
    """
    from tieredfs_client.checkpoint.keeping import Keeper
    from tieredfs_client.checkpoint.retention import Retention

    retention = Retention(keep_last, keep_every)
    if not retention.deletes:
        raise ConfigurationError("say what to keep: --keep-last, --keep-every, or both")
    with _catalog(meta_url, run, "ckpt prune") as catalog:
        deleted = [name.step for name in Keeper(catalog).prune(retention)]
    emit({"deleted_steps": deleted} if as_json else deleted, as_json=as_json, empty="nothing to delete")


@verbs.command("export")
def export_to(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    which: Annotated[str, typer.Argument(metavar="STEP|TAG|latest", help="Which checkpoint.", show_default=False)],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A new directory.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as plain safetensors, verified on the way.

    Example: tieredfs ckpt export sqlite:///data/volume.db runs/gpt latest /tmp/gpt
    """
    from tieredfs_client.checkpoint.exchange import export_checkpoint

    with _catalog(meta_url, run, "ckpt export") as catalog, progress_bar(f"exporting {which}", as_json) as progress:
        written = export_checkpoint(catalog, _which(which), directory, progress=progress)
    emit(written, as_json=as_json)


@verbs.command("import")
def import_from(
    meta_url: MetaUrlArgument,
    run: RunArgument,
    step: Annotated[int, typer.Argument(metavar="STEP", help="The step that it becomes.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A safetensors or torch.save file, or a directory of safetensors or of DCP."
        ),
    ],
    compression: Annotated[
        str, typer.Option(metavar="none|auto|zstd|zstd:LEVEL", help="How its tensors are stored.")
    ] = "none",
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint of a file of another program. Nothing in it is executed.

    Example: tieredfs ckpt import sqlite:///data/volume.db runs/gpt 0 /tmp/model.safetensors
    """
    from tieredfs.volume import FileSystem
    from tieredfs_client.checkpoint.checkpoints import CheckpointManager
    from tieredfs_client.checkpoint.exchange import read_foreign

    if step < 0:
        raise InvalidRequestError("steps count from 0")
    with (
        FileSystem.at(str(parse_meta_url(meta_url)), purpose="ckpt import") as volume,
        progress_bar(f"importing step {step}", as_json) as progress,
        CheckpointManager(volume, run, rank=0, world_size=1, compression=compression, progress=progress) as manager,
    ):
        saved = manager.save(step, read_foreign(source))
    report = {"step": saved.step, "written_bytes": saved.written_bytes, "reused_bytes": saved.reused_bytes}
    emit(report | {"duration_s": saved.seconds}, as_json=as_json)
