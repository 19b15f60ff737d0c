"""One gateway for the tests that leave it alive."""

from collections.abc import Iterator

import pytest

from tests.serving.rig import Gateway, gateway


@pytest.fixture(scope="package")
def served() -> Iterator[Gateway]:
    with gateway() as made:
        yield made
