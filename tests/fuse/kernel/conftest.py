"""Marks that these tests use."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "allows_warnings(*patterns): warnings in the log that are expected")
