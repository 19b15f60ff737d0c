"""One node for the tests of a file that only use it; each takes a directory of its own."""

from collections.abc import Iterator

import pytest

from tests.nodes.rig import Node, node, secret_set


@pytest.fixture(scope="package", autouse=True)
def nodes_secret() -> Iterator[None]:
    with secret_set():
        yield


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    with node(150) as made:
        yield made
