"""Checkpoints to and from plain files: `export` to safetensors, `import` from safetensors, torch.save and DCP directories.

Export needs neither torch nor numpy: tensors are loaded, verified, straight into the mapped output file. Import reads with the
formats' own libraries; torch.save files with `weights_only`, DCP's metadata with an unpickler that admits
nothing else, so that no foreign code runs.
"""

import contextlib
import importlib
import json
import mmap
import os
import pickle
import zipfile
from collections.abc import Sequence
from typing import Any, Final

from tieredfs.errors import ConfigurationError, CorruptError, UnstorableError
from tieredfs.host import Host
from tieredfs.model import Progress
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.layout import FILE_BYTES_MAX, Item, StoredTensor, lay_out, split_into_files
from tieredfs_client.checkpoint.load import Loader, unwatched

SAFETENSORS: Final = ".safetensors"
_DCP_METADATA: Final = ".metadata"
TORCH_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt")


def export_checkpoint(
    catalog: Catalog,
    which: int | str,
    directory: str,
    file_bytes: int = FILE_BYTES_MAX,
    progress: Progress = unwatched,
) -> list[str]:
    """Write whole tensors as safetensors into a new or empty directory, `checkpoint.json` (step, metadata, metrics) last;
    the paths. Raises ConfigurationError where it is none, or has anything in it."""
    files = catalog.host.files
    with catalog.leased(which) as name:
        if os.path.exists(directory) and not os.path.isdir(directory):
            raise ConfigurationError(f"{directory} is not a directory: name a new one")
        files.make_directory(directory)
        if files.list_directory(directory):
            raise ConfigurationError(f"{directory} is not empty: name a new directory")
        manifest = catalog.manifest(name)
        tensors = _one_of_each_key(manifest.tensors)
        groups = split_into_files([tensor.size_bytes for _, tensor in tensors], file_bytes)
        written = []
        with Loader(catalog, name, manifest, progress=_over_files(progress, tensors)) as loader:
            for number, group in enumerate(groups):
                counted = f"model-{number + 1:05d}-of-{len(groups):05d}" if len(groups) > 1 else "model"
                path = os.path.join(directory, counted + SAFETENSORS)
                _write_file(catalog.host, path, loader, [tensors[index] for index in group])
                written.append(path)
    about = {"step": manifest.step, "metadata": dict(manifest.metadata), "metrics": dict(manifest.metrics)}
    path = os.path.join(directory, "checkpoint.json")
    files.save(path, json.dumps(about, indent=1).encode())
    return [*written, path]


def _over_files(progress: Progress, tensors: Sequence[tuple[int, StoredTensor]]) -> Progress:
    """What a loader tells of one file after the other, as one whole."""
    whole = sum(tensor.size_bytes for _, tensor in tensors)
    before = 0

    def tell(done: int, total: int, unit: str) -> None:
        nonlocal before
        progress(min(before + done, whole), whole, unit)
        before += total if done == total else 0

    return tell


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
    """The tree in a safetensors or torch.save file, in all safetensors files of a directory, or in a DCP directory.

    Raises ConfigurationError for anything else, for what is damaged (it is not of our store), and where the library that it takes
    is not installed; UnstorableError for what only foreign code could restore; OSError.
    """
    os.stat(path)  # what is not there is told as that
    try:
        if os.path.isfile(os.path.join(path, _DCP_METADATA)):
            return importlib.import_module("tieredfs_client.dcp.foreign").read_dcp_directory(path)
        if os.path.isdir(path):
            parts = sorted(name for name in os.listdir(path) if name.endswith(SAFETENSORS))
            if not parts:
                raise ConfigurationError(f"{path} has neither {SAFETENSORS} files nor a {_DCP_METADATA} of DCP")
            return {key: item for name in parts for key, item in _read_safetensors(os.path.join(path, name)).items()}
        if path.endswith(SAFETENSORS):
            return _read_safetensors(path)
        if path.endswith(TORCH_SUFFIXES):
            return _read_torch(path)
    except CorruptError as error:
        raise ConfigurationError(f"{path} cannot be imported: {error}") from error
    except ImportError as error:
        raise ConfigurationError(f"reading {path} needs {error.name}: pip install 'tieredfs[torch]'") from error
    raise ConfigurationError(f"{path} is neither safetensors nor torch.save ({', '.join(TORCH_SUFFIXES)})")


def _read_safetensors(path: str) -> dict[str, Any]:
    torch = importlib.import_module("safetensors.torch")
    try:
        loaded: dict[str, Any] = torch.load_file(path)
    except importlib.import_module("safetensors").SafetensorError as error:
        raise CorruptError(f"{os.path.basename(path)} is no safetensors file, or damaged: {error}") from error
    return loaded


def _read_torch(path: str) -> Any:
    """Also of before torch 1.6, whose files are no archives and cannot be mapped."""
    torch = importlib.import_module("torch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        text = str(error)
        _, _, reason = text.partition("WeightsUnpickler error: ")
        why = (reason or text).strip().partition("\n")[0].partition(". Please use")[0]
        raise UnstorableError(f"{path} is damaged, or holds what only code of its own could restore: {why}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise CorruptError(f"no torch.save file, or damaged: {why or type(error).__name__}") from error
