"""Whole files of a volume, written and read back without a mount."""

import os

from tieredfs.model import Attributes
from tieredfs.volume import FileSystem


def put(volume: FileSystem, path: bytes, content: bytes, **options: object) -> Attributes:
    """`options` as `commit` takes them."""
    with volume.create() as writing:
        os.pwrite(writing.descriptor, content, 0)
        return writing.commit(path, **options)  # type: ignore[arg-type]


def get(volume: FileSystem, path: bytes) -> bytes:
    with volume.open(path) as reading:
        target = bytearray(reading.attributes.size_bytes)
        assert reading.read_into(0, memoryview(target)) == len(target)
        return bytes(target)
