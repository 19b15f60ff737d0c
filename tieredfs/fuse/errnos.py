"""Domain errors to errno: the one table of the mount's edge. A test holds it total."""

import errno
from typing import Final

from tieredfs import errors

ERRNO_OF: Final[dict[type[errors.TieredError], int]] = {
    errors.NotFoundError: errno.ENOENT,
    errors.StaleError: errno.ESTALE,
    errors.AlreadyExistsError: errno.EEXIST,
    errors.NotDirectoryError: errno.ENOTDIR,
    errors.IsDirectoryError: errno.EISDIR,
    errors.DirectoryNotEmptyError: errno.ENOTEMPTY,
    errors.InvalidRequestError: errno.EINVAL,
    errors.NameTooLongError: errno.ENAMETOOLONG,
    errors.TooLargeError: errno.EFBIG,
    errors.TooManyLinksError: errno.EMLINK,
    errors.NotPermittedError: errno.EPERM,
    errors.AccessDeniedError: errno.EACCES,
    errors.NoAttributeError: errno.ENODATA,
    errors.NotSupportedError: errno.EOPNOTSUPP,
    errors.QuotaBoundaryError: errno.EXDEV,
    errors.ReadOnlyError: errno.EROFS,
    errors.ConfigurationError: errno.EINVAL,
    errors.VolumeNotFoundError: errno.ENOENT,
    errors.VolumeExistsError: errno.EEXIST,
    errors.ForeignDataError: errno.EINVAL,
    errors.NewerFormatError: errno.EINVAL,
    errors.NotAMountError: errno.EINVAL,
    errors.MountPointError: errno.EINVAL,
    errors.UnstorableError: errno.EINVAL,
    errors.StateMismatchError: errno.EINVAL,
    errors.NoSpaceError: errno.ENOSPC,
    errors.QuotaExceededError: errno.EDQUOT,
    errors.BusyError: errno.EBUSY,
    errors.ConflictError: errno.EAGAIN,
    errors.UnavailableError: errno.EIO,
    errors.DeadlineError: errno.ETIMEDOUT,
    errors.WaitInterruptedError: errno.EINTR,
    errors.RankMissingError: errno.ETIMEDOUT,
    errors.RankFailedError: errno.EIO,
    errors.CorruptError: errno.EIO,
    errors.DataLossError: errno.EIO,
}


def errno_of(error: Exception) -> int:
    """The errno that a program on the mount sees. An OSError keeps its own; anything that is not ours is EIO."""
    if isinstance(error, errors.TieredError):
        return ERRNO_OF[type(error)]
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
