"""What a node says when it does not do what was asked: the one table of this edge."""

import json
from typing import Final

from tieredfs.chunk.node_protocol import STATUS_OF
from tieredfs.core.capability import Verdict
from tieredfs.errors import TieredError
from tieredfs_gateway.node.disks import NoSuchDiskError

STATUS_OF_VERDICT: Final = {
    Verdict.MISSING: 401,
    Verdict.INVALID: 401,
    Verdict.EXPIRED: 401,
    Verdict.EARLY: 401,
    Verdict.SCOPE: 403,
}


class RefusedError(Exception):
    """An HTTP status, a code of the protocol, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> bytes:
        return json.dumps({"error": self.code, "message": str(self)}).encode()


def refused(verdict: Verdict) -> RefusedError:
    return RefusedError(STATUS_OF_VERDICT[verdict], "refused", verdict.value)


def bad_request(message: str) -> RefusedError:
    return RefusedError(400, "bad_request", message)


def refusal_of(error: Exception) -> RefusedError:
    """For whatever a call raised; a bug of ours is a 500 that says nothing."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NoSuchDiskError):
        return RefusedError(404, "no_such_disk", str(error))
    if isinstance(error, TieredError) and type(error) in STATUS_OF:
        status, code = STATUS_OF[type(error)]
        return RefusedError(status, code, str(error))
    return RefusedError(500, "failed", "the node failed; its log says why")
