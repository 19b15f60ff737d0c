"""What the OpenAPI descriptions promise, held against the live servers with requests that schemathesis makes of them.

Valid and invalid ones, of sessions that are not there, open and closed. Never a 5xx, never a status, a type or a body that
is not described, nothing read without a token.
"""

from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests import web
from tests.serving.rig import SOURCE, WAIT_S, Gateway, gateway
from tieredfs_gateway.datasets.tokens import make_token

SECRET: Final = "a secret of the tests"
UNPROMISED: Final = [positive_data_acceptance]
"""A filter that fits its description as a text may still be no filter: 400."""
BOUNDED: Final = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Gateway]:
    with gateway(TIEREDFS_GATEWAY_SECRET=SECRET) as made:
        yield made


@pytest.fixture(scope="module")
def token() -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(SECRET.encode(), ['*'], 1 << 33)}"}


def operations(served: Gateway) -> Iterator[Any]:
    """The calls of the description that the gateway itself shows."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        yield found.ok()


def called(operation: Any, token: dict[str, str], mode: GenerationMode, **fixed: Any) -> set[int]:
    """The statuses that came; each answer was held against the description."""
    statuses = set()

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode, **fixed))
    def holds(case: Any) -> None:
        statuses.add(case.call_and_validate(headers=token, excluded_checks=UNPROMISED).status_code)

    holds()
    return statuses


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_call_is_as_described(guarded: Gateway, token: dict[str, str], mode: GenerationMode) -> None:
    statuses = {
        operation.label: called(operation, token, mode)
        for operation in operations(guarded)
        if mode is GenerationMode.POSITIVE or list(operation.iter_parameters()) or operation.body
    }
    assert len(statuses) == (8 if mode is GenerationMode.POSITIVE else 6)
    assert (404 if mode is GenerationMode.POSITIVE else 400) in statuses["POST /v1/sessions"]
    assert guarded.process is not None
    assert guarded.process.poll() is None


def test_an_open_session_is_as_described(guarded: Gateway, token: dict[str, str]) -> None:
    asked = {"source": SOURCE, "batch_size": 5000}
    opened = web.post(f"{guarded.url}/v1/sessions", json=asked, headers=token, timeout=WAIT_S)
    fixed = {"session": opened.json()["session"]}
    of_sessions = {operation.label: operation for operation in operations(guarded) if "{session}" in operation.path}
    closing = of_sessions.pop("DELETE /v1/sessions/{session}")
    for operation in of_sessions.values():
        assert called(operation, token, GenerationMode.POSITIVE, path_parameters=fixed) == {200}
    assert called(closing, token, GenerationMode.POSITIVE, path_parameters=fixed) <= {204, 404}
    for operation in of_sessions.values():  # nothing answers for a session that was closed
        assert called(operation, token, GenerationMode.POSITIVE, path_parameters=fixed) == {404}
