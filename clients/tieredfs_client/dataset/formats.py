"""Batches as what a training loop takes: Arrow as it is, numpy arrays, torch tensors.

numpy: arrays that share the batch's memory where they can (numbers without nulls), read-only then. torch: copies, for a
tensor has no way to say that it must not be written to. Lists of fixed size become a second dimension. Nulls in floating
point columns are NaN; in other numbers they are an error that names the column. What is neither number, bool, time nor
fixed-size list stays a list of Python values (torch) or an array of objects (numpy).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from tieredfs.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

FORMATS: Final = ("arrow", "numpy", "torch")


def converter(name: str) -> Callable[[pa.RecordBatch], Any]:
    """Raises ConfigurationError for a name that is none, and where the library is not installed."""
    if name not in FORMATS:
        raise ConfigurationError(f"format {name!r} is none of {', '.join(FORMATS)}")
    if name == "arrow":
        return lambda batch: batch
    needed = {"numpy": "numpy", "torch": "torch"}[name]
    try:
        __import__(needed)
    except ImportError as error:
        raise ConfigurationError(f"format {name!r} needs {needed}: pip install 'tieredfs[torch]'") from error
    return to_numpy if name == "numpy" else to_torch


def to_numpy(batch: pa.RecordBatch) -> "dict[str, np.ndarray[Any, Any]]":
    return {name: _array(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def to_torch(batch: pa.RecordBatch) -> dict[str, Any]:
    import torch

    made = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not _is_numeric(column.type):
            made[name] = column.to_pylist()
            continue
        array = _array(name, column)
        if array.dtype.kind in "mM":
            array = array.view("int64")
        made[name] = torch.from_numpy(array.copy())
    return made


def _is_numeric(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_temporal(kind))


def _array(name: str, column: pa.Array) -> "np.ndarray[Any, Any]":
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and _is_numeric(kind):
        if column.null_count:
            raise ConfigurationError(f"column {name}: lists that are null have no place in an array; filter them out")
        flat = _array(name, column.flatten())
        return flat.reshape(len(column), kind.list_size, *flat.shape[1:])
    if column.null_count and _is_numeric(kind) and not pa.types.is_floating(kind) and not pa.types.is_temporal(kind):
        raise ConfigurationError(
            f"column {name} ({kind}) has nulls, which an array of it cannot hold: cast it to a float, or filter them out"
        )
    found: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    return found
