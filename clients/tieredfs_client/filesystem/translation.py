"""Domain errors to the errors of Python's own files: the one table of this edge. A test holds it total.

A program on fsspec expects what `open` and `os` raise: FileNotFoundError, FileExistsError, IsADirectoryError and so on, all
of which OSError picks by the errno. What no state of a volume could satisfy is a ValueError, as for `open(path, "q")`.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from tieredfs import errors

VALUE: Final = 0
"""Stands for ValueError."""

ERRNO_OR_VALUE: Final[dict[type[errors.TieredError], int]] = {
    errors.NotFoundError: errno.ENOENT,
    errors.StaleError: errno.ENOENT,
    errors.AlreadyExistsError: errno.EEXIST,
    errors.NotDirectoryError: errno.ENOTDIR,
    errors.IsDirectoryError: errno.EISDIR,
    errors.DirectoryNotEmptyError: errno.ENOTEMPTY,
    errors.InvalidRequestError: VALUE,
    errors.NameTooLongError: errno.ENAMETOOLONG,
    errors.TooLargeError: errno.EFBIG,
    errors.TooManyLinksError: errno.EMLINK,
    errors.NotPermittedError: errno.EPERM,
    errors.AccessDeniedError: errno.EACCES,
    errors.NoAttributeError: errno.ENODATA,
    errors.NotSupportedError: errno.EOPNOTSUPP,
    errors.QuotaBoundaryError: errno.EXDEV,
    errors.ReadOnlyError: errno.EROFS,
    errors.ConfigurationError: VALUE,
    errors.VolumeNotFoundError: errno.ENOENT,
    errors.VolumeExistsError: errno.EEXIST,
    errors.ForeignDataError: VALUE,
    errors.NewerFormatError: VALUE,
    errors.NotAMountError: VALUE,
    errors.MountPointError: VALUE,
    errors.UnstorableError: VALUE,
    errors.StateMismatchError: VALUE,
    errors.NoSpaceError: errno.ENOSPC,
    errors.QuotaExceededError: errno.EDQUOT,
    errors.BusyError: errno.EBUSY,
    errors.ConflictError: errno.EBUSY,
    errors.UnavailableError: errno.EIO,
    errors.DeadlineError: errno.ETIMEDOUT,
    errors.WaitInterruptedError: errno.EINTR,
    errors.RankMissingError: errno.ETIMEDOUT,
    errors.RankFailedError: errno.EIO,
    errors.CorruptError: errno.EIO,
    errors.DataLossError: errno.EIO,
}


def translated(error: errors.TieredError, path: str | None = None) -> Exception:
    """The error as Python would have said it, about `path`."""
    number = ERRNO_OR_VALUE[type(error)]
    if number == VALUE:
        return ValueError(str(error))
    text = os.strerror(number) if isinstance(error, errors.NotFoundError) and path is not None else str(error)
    return OSError(number, text, path) if path is not None else OSError(number, text)


@contextlib.contextmanager
def as_python(path: str | None = None) -> Iterator[None]:
    """Within it, domain errors leave as Python's own, with the original as their cause."""
    try:
        yield
    except errors.TieredError as error:
        raise translated(error, path) from error
