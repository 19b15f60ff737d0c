"""One endpoint for the tests that leave it alive; each test has a bucket of its own."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.s3.endpoint import Endpoint, endpoint, new_bucket


@pytest.fixture(scope="package")
def served() -> Iterator[Endpoint]:
    with endpoint() as made:
        yield made


@pytest.fixture(scope="package")
def s3(served: Endpoint) -> Any:
    return served.client()


@pytest.fixture
def bucket(s3: Any) -> str:
    return new_bucket(s3)
