"""fsspec's own conformance suite against a volume."""

from collections.abc import Iterator

import pytest
from fsspec.tests import abstract

from tieredfs_client.filesystem import TieredFileSystem


class VolumeFixtures(abstract.AbstractFixtures):
    """One volume for all; each test works below and leaves an empty directory."""

    @pytest.fixture
    def fs(self, module_url: str) -> TieredFileSystem:
        return TieredFileSystem(meta_url=module_url)

    @pytest.fixture
    def fs_path(self, fs: TieredFileSystem) -> Iterator[str]:
        yield "suite"
        if fs.exists("suite"):
            fs.rm("suite", recursive=True)


class TestCopy(abstract.AbstractCopyTests, VolumeFixtures):
    """cp"""


class TestGet(abstract.AbstractGetTests, VolumeFixtures):
    """get"""


class TestPut(abstract.AbstractPutTests, VolumeFixtures):
    """put"""


class TestPipe(abstract.AbstractPipeTests, VolumeFixtures):
    """pipe"""


class TestOpen(abstract.AbstractOpenTests, VolumeFixtures):
    """open"""
