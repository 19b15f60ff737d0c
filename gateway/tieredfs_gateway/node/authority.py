"""Who may do what on a node."""

from tieredfs.core.capability import Right, Verdict, judge
from tieredfs.host import Clock
from tieredfs_gateway.node.refusals import refused


class Authority:
    """Who may: whoever shows a token that was made with the secret, for this."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock

    def check(self, authorization: str, wanted: Right) -> None:
        """Raises RefusedError."""
        scheme, _, token = authorization.partition(" ")
        verdict = judge(token.strip() if scheme.lower() == "bearer" else "", self._secret, wanted, self._now_s())
        if verdict is not Verdict.GOOD:
            raise refused(verdict)

    def _now_s(self) -> float:
        return self._clock.wall_ns() / 1e9
