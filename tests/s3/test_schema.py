"""What the endpoint's OpenAPI description promises (of its probes; S3 itself has none), held against a live endpoint."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from tests.s3.endpoint import Endpoint
from tieredfs_gateway.s3.metrics import Metrics
from tieredfs_gateway.s3.server import S3App


def test_the_probes_are_as_described(served: Endpoint) -> None:
    of_s3: Any = None  # not described, hence not needed
    schema = schemathesis.openapi.from_dict(S3App(of_s3, Metrics()).openapi())
    answered = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(
            max_examples=5,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def holds(case: Any) -> None:
            answered.add((case.operation.label, case.call_and_validate(base_url=served.url).status_code))

        holds()
    assert answered == {("GET /healthz", 200), ("GET /metrics", 200)}
