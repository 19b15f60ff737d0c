"""What can go wrong, in the words of the domain.

Each edge (errno at the mount, exit codes at the command line, HTTP status at an endpoint) translates these in one table
of its own, and a test holds that table total over `domain_errors()`. The three kinds below say who can act:

- `RequestError`: what was asked cannot be. Asking again does not help.
- `ConditionError`: the world is in the way now (full, busy, away). Asking again may help; `retryable` says so.
- `IntegrityError`: stored bytes are not what was written. Never hidden, never guessed around.

A broken promise between our own parts is an `AssertionError`, never one of these.
"""

from collections.abc import Iterator


class TieredError(Exception):
    """Root of every error that a caller of TieredFS may see. `retryable`: the same call may succeed later."""

    retryable: bool = False


class RequestError(TieredError):
    """The request itself cannot be carried out."""


class ConditionError(TieredError):
    """The state of the world is in the way."""


class IntegrityError(TieredError):
    """Stored data failed its check and could not be repaired."""


# ---- requests on the namespace -----------------------------------------------------------------------------------------


class NotFoundError(RequestError):
    """No such entry, inode, attribute owner or version."""


class StaleError(RequestError):
    """The inode was deleted since it was looked up; its name may show another one now, so looking it up again helps."""


class AlreadyExistsError(RequestError):
    """The name is taken."""


class NotDirectoryError(RequestError):
    """A directory was needed."""


class IsDirectoryError(RequestError):
    """Anything but a directory was needed."""


class DirectoryNotEmptyError(RequestError):
    """The directory has entries."""


class InvalidRequestError(RequestError):
    """Arguments that no state of the volume could satisfy (a directory moved below itself, a negative size)."""


class NameTooLongError(RequestError):
    """A name over `NAME_BYTES_MAX`, a symlink target or an attribute name over its limit."""


class TooLargeError(RequestError):
    """A size or value over its limit."""


class TooManyLinksError(RequestError):
    """`LINK_COUNT_MAX` reached."""


class NotPermittedError(RequestError):
    """Forbidden whatever the rights (a hard link to a directory)."""


class AccessDeniedError(RequestError):
    """The caller lacks the right."""


class NoAttributeError(RequestError):
    """No such extended attribute."""


class NotSupportedError(RequestError):
    """An operation or option that this volume, driver or kernel does not have."""


class QuotaBoundaryError(RequestError):
    """A directory, or one of several names, cannot go to where other quotas hold; a copy can."""


class ReadOnlyError(RequestError):
    """The mount or volume is read-only."""


# ---- volumes, disks and settings ---------------------------------------------------------------------------------------


class ConfigurationError(RequestError):
    """A URL, option or setting that makes no sense; the message says which and what would."""


class VolumeNotFoundError(RequestError):
    """No volume at that metadata URL."""


class VolumeExistsError(RequestError):
    """There is a volume already; it is never overwritten without being told to."""


class ForeignDataError(RequestError):
    """A data or cache directory that belongs to another volume, or holds files that are not ours."""


class NewerFormatError(RequestError):
    """Written by a newer version of TieredFS than this one."""


class NotAMountError(RequestError):
    """The path is not below a TieredFS mount."""


class MountPointError(RequestError):
    """The mount point is missing, not a directory, not empty, or already in use."""


# ---- checkpoints -------------------------------------------------------------------------------------------------------


class UnstorableError(RequestError):
    """A value in a tree that cannot be stored without pickle; the message names its path in the tree."""


class StateMismatchError(RequestError):
    """What is loaded into does not fit what was saved; the message names every key that is missing, extra or different."""


# ---- conditions --------------------------------------------------------------------------------------------------------


class NoSpaceError(ConditionError):
    """The store (or the SSD, past the bounded wait) has no room."""


class QuotaExceededError(ConditionError):
    """A directory has a quota, and it would be exceeded; the message names the directory and the figures."""


class BusyError(ConditionError):
    """In use by somebody else: a locked cache directory, a mount with open files."""

    retryable = True


class ConflictError(ConditionError):
    """A transaction lost a race and its retries; nothing was changed."""

    retryable = True


class UnavailableError(ConditionError):
    """A disk, node or daemon that is needed does not answer."""

    retryable = True


class DeadlineError(ConditionError):
    """A bounded wait ran out."""

    retryable = True


class WaitInterruptedError(ConditionError):
    """The waiting caller was told to stop waiting."""

    retryable = True


class RankMissingError(ConditionError):
    """Ranks of a collective save or load did not arrive before the deadline; the message has their numbers."""

    retryable = True


class RankFailedError(ConditionError):
    """Another rank's part of a collective save failed, so nothing was saved; the message has its number and its reason."""

    retryable = True


# ---- integrity ---------------------------------------------------------------------------------------------------------


class CorruptError(IntegrityError):
    """A record, chunk or file whose checksum, length or identity is wrong."""


class DataLossError(IntegrityError):
    """More of a block is gone than its code can rebuild."""


def domain_errors() -> Iterator[type[TieredError]]:
    """Every concrete error type, for edges that must translate all of them."""
    pending: list[type[TieredError]] = [TieredError]
    while pending:
        kind = pending.pop()
        children = kind.__subclasses__()
        pending.extend(children)
        if not children:
            yield kind
