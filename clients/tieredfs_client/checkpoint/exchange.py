"""Checkpoints to and from plain files: `export` to safetensors, `import` from safetensors, torch.save and DCP.

Export needs neither torch nor numpy: tensors are loaded, verified, straight into the mapped output file. Import reads with the
formats' own libraries; torch.save files with `weights_only`, so that no foreign code runs.
"""

import contextlib
import importlib
import json
import mmap
import os
from collections.abc import Sequence
from typing import Any, Final

from tieredfs.errors import ConfigurationError
from tieredfs.host import Host
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.dcp_directory import is_dcp_directory, read_dcp
from tieredfs_client.checkpoint.layout import FILE_BYTES_MAX, Item, StoredTensor, lay_out, split_into_files
from tieredfs_client.checkpoint.load import Loader

SAFETENSORS: Final = ".safetensors"
TORCH_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt")


def export_checkpoint(
    catalog: Catalog, which: int | str, directory: str, file_bytes: int = FILE_BYTES_MAX
) -> list[str]:
    """Write whole tensors as safetensors into a new or empty directory, `checkpoint.json` (step, metadata, metrics) last;
    the paths. Raises ConfigurationError where the directory has anything in it."""
    files = catalog.host.files
    files.make_directory(directory)
    if files.list_directory(directory):
        raise ConfigurationError(f"{directory} is not empty: name a new directory")
    with catalog.leased(which) as name:
        manifest = catalog.manifest(name)
        tensors = _one_of_each_key(manifest.tensors)
        groups = split_into_files([tensor.size_bytes for _, tensor in tensors], file_bytes)
        written = []
        with Loader(catalog, name, manifest) as loader:
            for number, group in enumerate(groups):
                counted = f"model-{number + 1:05d}-of-{len(groups):05d}" if len(groups) > 1 else "model"
                path = os.path.join(directory, counted + SAFETENSORS)
                _write_file(catalog.host, path, loader, [tensors[index] for index in group])
                written.append(path)
    about = {"step": manifest.step, "metadata": dict(manifest.metadata), "metrics": dict(manifest.metrics)}
    path = os.path.join(directory, "checkpoint.json")
    files.save(path, json.dumps(about, indent=1).encode())
    return [*written, path]


def _one_of_each_key(tensors: Sequence[StoredTensor]) -> list[tuple[int, StoredTensor]]:
    """Numbers and tensors; where ranks have different values under one key, that of the first rank."""
    found: dict[str, tuple[int, StoredTensor]] = {}
    for number, tensor in enumerate(tensors):
        found.setdefault(tensor.key, (number, tensor))
    return list(found.values())


def _write_file(host: Host, path: str, loader: Loader, tensors: Sequence[tuple[int, StoredTensor]]) -> None:
    layout = lay_out([Item(one.key, one.dtype, one.item_bytes, one.shape, one.size_bytes) for _, one in tensors])
    descriptor = host.files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        host.files.allocate(descriptor, 0, 0, layout.size_bytes)
        host.files.write(descriptor, [layout.header], 0)
        if layout.size_bytes > len(layout.header):
            with contextlib.closing(mmap.mmap(descriptor, layout.size_bytes)) as mapped, memoryview(mapped) as view:
                targets = {
                    number: view[offset : offset + tensor.size_bytes]
                    for (number, tensor), offset in zip(tensors, layout.offsets, strict=True)
                }
                try:
                    loader.fill_memory(targets)
                finally:
                    for target in targets.values():
                        target.release()
        host.files.sync(descriptor)
    finally:
        host.files.close(descriptor)


def read_foreign(path: str) -> Any:
    """The tree in a safetensors or torch.save file, in all safetensors files of a directory, or in a directory of DCP.

    Raises ConfigurationError for anything else, and where the library that it takes is not installed.
    """
    try:
        if is_dcp_directory(path):
            return read_dcp(path)
        if os.path.isdir(path):
            parts = sorted(name for name in os.listdir(path) if name.endswith(SAFETENSORS))
            if not parts:
                raise ConfigurationError(f"{path} has no {SAFETENSORS} files")
            return {key: item for name in parts for key, item in _read_safetensors(os.path.join(path, name)).items()}
        if path.endswith(SAFETENSORS):
            return _read_safetensors(path)
        if path.endswith(TORCH_SUFFIXES):
            return importlib.import_module("torch").load(path, map_location="cpu", weights_only=True, mmap=True)
    except ImportError as error:
        raise ConfigurationError(f"reading {path} needs {error.name}: pip install 'tieredfs[torch]'") from error
    raise ConfigurationError(f"{path} is neither safetensors nor torch.save ({', '.join(TORCH_SUFFIXES)})")


def _read_safetensors(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = importlib.import_module("safetensors.torch").load_file(path)
    return loaded
