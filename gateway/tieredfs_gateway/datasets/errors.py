"""What a trainer is told when something does not work: the one table of this edge.

An error travels as `{"error": {"code", "message", "retryable"}}`. A code has one status; a domain error has one code. A
test holds the second table total over `tieredfs.errors.domain_errors()`. Codes are for programs and never change; messages are
for people.
"""

from dataclasses import dataclass
from typing import Final

from tieredfs import errors


@dataclass(frozen=True, slots=True)
class Answer:
    """`retryable`: the same request may succeed later."""

    status: int
    retryable: bool = False


CODES: Final[dict[str, Answer]] = {
    "bad_request": Answer(400),
    "bad_position": Answer(400),
    "cannot": Answer(400),
    "too_large": Answer(413),
    "not_supported": Answer(501),
    "token_missing": Answer(401),
    "token_invalid": Answer(401),
    "token_expired": Answer(401),
    "token_scope": Answer(403),
    "denied": Answer(403),
    "not_found": Answer(404),
    "session_unknown": Answer(404, retryable=True),
    "version_gone": Answer(409),
    "transform_unknown": Answer(400),
    "transform_failed": Answer(422),
    "too_many_sessions": Answer(429, retryable=True),
    "busy": Answer(503, retryable=True),
    "unavailable": Answer(503, retryable=True),
    "deadline": Answer(503, retryable=True),
    "no_space": Answer(507),
    "corrupt": Answer(500),
    "internal": Answer(500),
}

CODE_OF: Final[dict[type[errors.TieredError], str]] = {
    errors.NotFoundError: "not_found",
    errors.StaleError: "not_found",
    errors.AlreadyExistsError: "cannot",
    errors.NotDirectoryError: "not_found",
    errors.IsDirectoryError: "bad_request",
    errors.DirectoryNotEmptyError: "cannot",
    errors.InvalidRequestError: "bad_request",
    errors.NameTooLongError: "bad_request",
    errors.TooLargeError: "too_large",
    errors.TooManyLinksError: "cannot",
    errors.NotPermittedError: "denied",
    errors.AccessDeniedError: "denied",
    errors.NoAttributeError: "not_found",
    errors.NotSupportedError: "not_supported",
    errors.QuotaBoundaryError: "cannot",
    errors.ReadOnlyError: "cannot",
    errors.ConfigurationError: "bad_request",
    errors.VolumeNotFoundError: "not_found",
    errors.VolumeExistsError: "cannot",
    errors.ForeignDataError: "internal",
    errors.NewerFormatError: "not_supported",
    errors.NotAMountError: "cannot",
    errors.MountPointError: "cannot",
    errors.UnstorableError: "cannot",
    errors.StateMismatchError: "bad_request",
    errors.NoSpaceError: "no_space",
    errors.QuotaExceededError: "no_space",
    errors.BusyError: "busy",
    errors.ConflictError: "busy",
    errors.UnavailableError: "unavailable",
    errors.DeadlineError: "deadline",
    errors.WaitInterruptedError: "unavailable",
    errors.RankMissingError: "unavailable",
    errors.RankFailedError: "unavailable",
    errors.CorruptError: "corrupt",
    errors.DataLossError: "corrupt",
}


class Refusal(Exception):  # noqa: N818 - the field's word for it
    """What this edge itself refuses, by its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def answer(self) -> Answer:
        return CODES[self.code]

    def document(self) -> dict[str, object]:
        return {"error": {"code": self.code, "message": self.message, "retryable": self.answer.retryable}}


def told(error: BaseException) -> Refusal:
    """The error as a trainer is told it. What is neither ours nor the volume's is an internal error without details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, errors.TieredError):
        return Refusal(CODE_OF[type(error)], str(error))
    return Refusal("internal", "the gateway failed; its log says why")
