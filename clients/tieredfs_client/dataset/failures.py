"""The gateway's errors as the domain's: the other end of its table of codes."""

import json
from typing import Final

from tieredfs import errors

ERROR_OF: Final[dict[str, type[errors.TieredError]]] = {
    "bad_request": errors.ConfigurationError,
    "bad_position": errors.InvalidRequestError,
    "cannot": errors.InvalidRequestError,
    "too_large": errors.TooLargeError,
    "not_supported": errors.NotSupportedError,
    "token_missing": errors.AccessDeniedError,
    "token_invalid": errors.AccessDeniedError,
    "token_expired": errors.AccessDeniedError,
    "token_scope": errors.AccessDeniedError,
    "denied": errors.AccessDeniedError,
    "not_found": errors.NotFoundError,
    "session_unknown": errors.StaleError,
    "version_gone": errors.StateMismatchError,
    "transform_unknown": errors.ConfigurationError,
    "transform_failed": errors.InvalidRequestError,
    "too_many_sessions": errors.BusyError,
    "busy": errors.BusyError,
    "unavailable": errors.UnavailableError,
    "deadline": errors.DeadlineError,
    "no_space": errors.NoSpaceError,
    "corrupt": errors.CorruptError,
    "internal": errors.UnavailableError,
}


class SessionUnknownError(Exception):
    """The gateway has forgotten the session: open it again. Never leaves this package."""


def domain_error(document: object, status: int | None = None) -> errors.TieredError | SessionUnknownError:
    """From `{"error": {...}}`; from whatever else a server or a proxy answered."""
    told = document.get("error") if isinstance(document, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("code"), str):
        return errors.UnavailableError(f"the gateway answered with status {status} and no reason")
    code, message = told["code"], str(told.get("message", ""))
    if code == "session_unknown":
        return SessionUnknownError(message)
    kind = ERROR_OF.get(code, errors.UnavailableError if told.get("retryable") else errors.InvalidRequestError)
    return kind(f"{message} [{code}]")


def parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def is_worth_waiting(error: Exception) -> bool:
    """Whether the same request may succeed when the gateway is back, or less busy."""
    if isinstance(error, errors.TieredError):
        return error.retryable
    return isinstance(error, SessionUnknownError | OSError)
