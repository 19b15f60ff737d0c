"""One small PUT of an object, step by step as `small_puts` takes it; what its headers say is read once."""

from tieredfs.volume.contract import Naming, Writing
from tieredfs_gateway.s3.http import Caller, Request, Response
from tieredfs_gateway.s3.ingest import Expected, Received
from tieredfs_gateway.s3.object_calls import Asked, ObjectCalls, expected_body
from tieredfs_gateway.s3.store import Committed


class ObjectPut:
    """`expect` comes first. One thread at a time."""

    def __init__(self, objects: ObjectCalls, request: Request, caller: Caller) -> None:
        self._objects = objects
        self._request = request
        self._caller = caller
        self._said: Asked | None = None

    @property
    def _asked(self) -> Asked:
        assert self._said is not None
        return self._said

    def expect(self) -> Expected:
        """What the body must be. Raises S3Error; but whether the bucket is there is seen at the commit."""
        self._said = self._objects.asked(self._request)
        return expected_body(self._request, self._caller)

    def plan(self, received: Received) -> Naming | None:
        return self._objects.plan_put(self._asked, self._request, received)

    def store(self, writing: Writing, received: Received) -> Response:
        return self._objects.put_as(self._asked, self._request, writing, received)

    def answer(self, received: Received, done: Committed) -> Response:
        return self._objects.was_put(self._asked, self._request, received, done)
