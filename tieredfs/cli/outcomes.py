"""Errors to exit codes and a word of what to do next: the one table of the command line's edge. A test holds it total.

0: done. 1: done, and problems were found (`fsck`). 2: the request cannot be carried out; asking again does not help.
3: the world is in the way (busy, full, away); asking again may help. 4: stored bytes are not what was written.
130: interrupted from the keyboard (`tieredfs.cli.INTERRUPTED`).
"""

from dataclasses import dataclass
from typing import Final

from tieredfs import errors
from tieredfs.limits import DEAD_BLOCK_GRACE_S

OK: Final = 0
PROBLEMS_FOUND: Final = 1
REQUEST: Final = 2
CONDITION: Final = 3
INTEGRITY: Final = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the shell sees, and what the user reads after the message (nothing where the message says it all)."""

    exit_code: int
    advice: str = ""


OUTCOME_OF: Final[dict[type[errors.TieredError], Outcome]] = {
    errors.NotFoundError: Outcome(REQUEST),
    errors.StaleError: Outcome(REQUEST, "it was deleted meanwhile; look again"),
    errors.AlreadyExistsError: Outcome(REQUEST),
    errors.NotDirectoryError: Outcome(REQUEST),
    errors.IsDirectoryError: Outcome(REQUEST),
    errors.DirectoryNotEmptyError: Outcome(REQUEST),
    errors.InvalidRequestError: Outcome(REQUEST),
    errors.NameTooLongError: Outcome(REQUEST),
    errors.TooLargeError: Outcome(REQUEST),
    errors.TooManyLinksError: Outcome(REQUEST),
    errors.NotPermittedError: Outcome(REQUEST),
    errors.AccessDeniedError: Outcome(REQUEST, "ask as the user who owns it, or as root"),
    errors.NoAttributeError: Outcome(REQUEST),
    errors.NotSupportedError: Outcome(REQUEST, "`--driver auto` picks what this kernel can do"),
    errors.QuotaBoundaryError: Outcome(REQUEST, "copy it, and delete the original"),
    errors.ReadOnlyError: Outcome(REQUEST, "mount without --read-only to change it"),
    errors.ConfigurationError: Outcome(REQUEST),
    errors.VolumeNotFoundError: Outcome(REQUEST, "`tieredfs format` makes a volume"),
    errors.VolumeExistsError: Outcome(REQUEST, "`tieredfs destroy` removes it, `format --force` starts over"),
    errors.ForeignDataError: Outcome(REQUEST, "name an empty directory, or look at what is in that one"),
    errors.NewerFormatError: Outcome(REQUEST, "install the newer TieredFS that wrote it"),
    errors.NotAMountError: Outcome(REQUEST, "name a path below a mounted volume; `tieredfs mount` mounts one"),
    errors.MountPointError: Outcome(REQUEST, "name an empty directory; `tieredfs umount` takes a stale mount away"),
    errors.UnstorableError: Outcome(REQUEST, "leave it out, or turn it into tensors, numbers, strings and bytes"),
    errors.StateMismatchError: Outcome(REQUEST, "load with strict=False to take what fits"),
    errors.NoSpaceError: Outcome(
        CONDITION, f"delete files and {DEAD_BLOCK_GRACE_S / 60:.0f} minutes later `tieredfs gc`, or `tieredfs disk add`"
    ),
    errors.QuotaExceededError: Outcome(CONDITION, "delete files there, or raise the limit with `tieredfs quota set`"),
    errors.BusyError: Outcome(CONDITION, "close what uses it and try again"),
    errors.ConflictError: Outcome(CONDITION, "nothing was changed; try again"),
    errors.UnavailableError: Outcome(CONDITION, "`tieredfs status` shows what is away"),
    errors.DeadlineError: Outcome(CONDITION, "try again"),
    errors.WaitInterruptedError: Outcome(CONDITION, "try again"),
    errors.RankMissingError: Outcome(CONDITION, "see what became of those ranks; the last checkpoint is as it was"),
    errors.RankFailedError: Outcome(CONDITION, "nothing was saved; the last checkpoint is as it was"),
    errors.CorruptError: Outcome(
        INTEGRITY,
        "`tieredfs fsck` says whether the store is to blame; with --repair it rebuilds what its redundancy allows",
    ),
    errors.DataLossError: Outcome(INTEGRITY, "bring missing disks back if you can, then `tieredfs fsck`"),
}


_WRONG_PATHS: Final = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""The operating system's errors by which the same command fails again. The others (full, busy, input or output) are conditions."""


def error_line(error: Exception) -> str:
    """One line: what is wrong, then what to do next."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {text}"
    advice = OUTCOME_OF[type(error)].advice if isinstance(error, errors.TieredError) else ""
    message = " ".join((text or type(error).__name__).split())
    says_what_to_do = "; " in message or "tieredfs " in message  # then ours, which knows less, would only repeat it
    return f"tieredfs: {message}" + (f"; {advice}" if advice and not says_what_to_do else "")


def exit_code_of(error: Exception) -> int:
    """Of a domain error, or of one of the operating system's own."""
    if isinstance(error, errors.TieredError):
        return OUTCOME_OF[type(error)].exit_code
    return REQUEST if isinstance(error, _WRONG_PATHS) else CONDITION
