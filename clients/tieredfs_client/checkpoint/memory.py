"""The memory of tensors: the one module that touches torch and numpy, and only where a tree holds their values.

A tensor's bytes are its elements in row-major order. Contiguous CPU tensors are seen in place, without a copy, through
their address; others (strided, conjugated, on an accelerator) are copied, one at a time. Neither library is imported
here: a value of theirs can only come from a program that has imported it. Only what is restored without a target imports one.
Views keep their tensor alive. Safe from any thread as long as nobody changes the tensors meanwhile.
"""

import ctypes
import importlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from tieredfs.errors import NotSupportedError, UnstorableError
from tieredfs.host.memory import HUGE_PAGE_BYTES, advise_huge_pages
from tieredfs_client.checkpoint.dtypes import code_of_numpy, code_of_torch, numpy_of_code, torch_of_code

Origin = Literal["torch", "numpy"]

_NUMPY_KINDS: Final = "biufcSUMm"
"""Kinds of numpy types whose bytes are all there is to them."""
_KINDS_KEPT: Final = 256
"""A program has few types, and thousands of tensors of each: to look at one anew took 1.8 us."""


def _loaded(name: str) -> Any:
    return sys.modules.get(name)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the elements of a value are."""

    origin: Origin
    dtype: str
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A tensor's bytes at the moment of a call, in memory that is ours: stands in for the tensor."""

    view: memoryview


# ---- looking ---------------------------------------------------------------------------------------------------------


def is_tensor(value: object) -> bool:
    """A torch tensor or numpy array of any sort, storable or not."""
    torch, numpy = _loaded("torch"), _loaded("numpy")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        numpy is not None and isinstance(value, numpy.ndarray)
    )


def is_dtensor(value: object) -> bool:
    module = _loaded("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_numpy_scalar(value: object) -> bool:
    numpy = _loaded("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def kind_of(value: Any, where: str) -> Kind:
    """Raises UnstorableError for tensors that are more, or less, than their bytes."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        kind = _numpy_kind(value.dtype) if type(value) is numpy.ndarray else None
        if kind is None:
            raise UnstorableError(f"{where}: a {type(value).__name__} of {value.dtype} cannot be stored without pickle")
        return kind
    torch = _loaded("torch")
    if torch is None or (type(value) is not torch.Tensor and type(value) is not torch.nn.Parameter):
        raise UnstorableError(f"{where}: a {type(value).__name__} is a tensor of a kind that cannot be stored")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
        nested = "nested " if value.is_nested else ""
        raise UnstorableError(
            f"{where}: a {nested}{value.layout} {value.dtype} tensor on {value.device} cannot be stored"
        )
    return _torch_kind(value.dtype)


def look_of(value: Any, where: str) -> tuple[object, tuple[int, ...]]:
    """Type of the elements, and shape: where both are equal of two values, so is `kind_of`. Raises what that does, now or when it
    is asked for the first value that looks so."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        kind_of(value, where)  # what cannot be stored may have no shape
    return value.dtype, shape_of(value)


@lru_cache(maxsize=_KINDS_KEPT)
def _torch_kind(dtype: Any) -> Kind:
    return Kind("torch", code_of_torch(str(dtype).removeprefix("torch.")), dtype.itemsize)


@lru_cache(maxsize=_KINDS_KEPT)
def _numpy_kind(dtype: Any) -> Kind | None:
    """None: its elements are more than their bytes."""
    if dtype.kind not in _NUMPY_KINDS or dtype.isbuiltin == 2:
        return None
    return Kind("numpy", code_of_numpy(dtype.str), dtype.itemsize)


def why_not_fillable(value: Any) -> str | None:
    """What keeps a value from being loaded into; None: nothing."""
    torch = _loaded("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None if value.flags.writeable else "it is read-only"
    repeats = any(length > 1 and stride == 0 for length, stride in zip(value.shape, value.stride(), strict=True))
    return "several of its elements are one in memory; clone it first" if repeats else None


def shape_of(value: Any) -> tuple[int, ...]:
    shape = value.shape
    return shape if type(shape) is tuple else tuple(map(int, shape))


def place_of(value: Any) -> tuple[object, ...] | None:
    """Equal for two values exactly when both are the same elements of the same memory; None: never shared."""
    torch = _loaded("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.numel() == 0:
        return None
    if value.is_conj() or value.is_neg():
        return None
    return (str(value.device), value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.dtype)


def dtensor_piece(value: Any, where: str) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """The local tensor, the global shape, and the offsets of the one in the other."""
    if any(placement.is_partial() for placement in value.placements):
        raise UnstorableError(f"{where}: a DTensor with partial sums has no value yet; redistribute it first")
    inner = importlib.import_module("torch.distributed.tensor._utils")
    _, offsets = inner.compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return value.to_local().detach(), tuple(value.shape), tuple(int(offset) for offset in offsets)


# ---- bytes of a value ------------------------------------------------------------------------------------------------


def _at(address: int, size: int, keeper: object) -> memoryview:
    """`size` bytes of memory at `address`, writable; `keeper` lives as long as the view."""
    array = (ctypes.c_char * size).from_address(address)
    array.keeper = keeper  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


def in_place(value: Any) -> memoryview | None:
    """The bytes of a value where they are, writable; None where they are not in row-major order in this memory."""
    if isinstance(value, Staged):
        return value.view
    torch = _loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or not value.is_contiguous() or value.is_conj() or value.is_neg():
            return None
        size = value.numel() * value.element_size()
        return _at(value.data_ptr(), size, value) if size else memoryview(bytearray())
    return _in_place_numpy(value)


def _in_place_numpy(value: Any) -> memoryview | None:
    """By Python's own protocol in 0.4 us where it knows the type of the elements, by the address in 4 us where not."""
    if not value.nbytes:
        return memoryview(bytearray()) if value.flags.c_contiguous and value.flags.writeable else None
    try:
        view = memoryview(value)
        return None if view.readonly or not view.c_contiguous else view.cast("B")
    except ValueError:
        flags = value.flags
        return _at(value.ctypes.data, value.nbytes, value) if flags.c_contiguous and flags.writeable else None


def bytes_of(value: Any) -> memoryview:
    """The bytes of a value: in place where that is possible, else of a copy."""
    view = in_place(value)
    if view is not None:
        return view
    torch = _loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        copied = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    else:
        copied = value.copy(order="C")
    view = in_place(copied)
    assert view is not None, "a fresh contiguous copy"
    return view


def part_of(value: Any, start: int, length: int, item_bytes: int) -> memoryview:
    """Some of the bytes of a value, whole elements: of memory elsewhere only these are copied."""
    view = in_place(value)
    torch = _loaded("torch")
    if view is None and torch is not None and isinstance(value, torch.Tensor):
        items = value.detach().reshape(-1)[start // item_bytes : (start + length) // item_bytes]
        return bytes_of(items)
    return (view if view is not None else bytes_of(value))[start : start + length]


def copy_into(value: Any, target: memoryview) -> None:
    """The bytes of a value into memory of the same length, without the GIL for what is long."""
    torch = _loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor) and len(target) and in_place(value) is None:
        torch.frombuffer(target, dtype=value.dtype).view(value.shape).copy_(value.detach())
        return
    source = bytes_of(value)
    assert len(source) == len(target)
    if len(source):
        ctypes.memmove(address_of(target), address_of(source), len(source))


def pin(address: int, size_bytes: int) -> bool:
    """Page-lock memory that a CUDA device is to copy into. False: this program does not use CUDA, or the driver refuses; copies
    are right all the same, only slower. (No such device was at hand to try it.)"""
    torch = _loaded("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    return int(torch.cuda.cudart().cudaHostRegister(address, size_bytes, 0)) == 0


def unpin(address: int) -> None:
    """Before memory that was pinned goes."""
    _loaded("torch").cuda.cudart().cudaHostUnregister(address)


def address_of(view: memoryview) -> int:
    """Of a writable view; the caller keeps it alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# ---- making values ---------------------------------------------------------------------------------------------------


def make(origin: Origin, dtype: str, shape: tuple[int, ...]) -> Any:
    """A new tensor with unset elements. Raises NotSupportedError where the library is missing or lacks the type."""
    try:
        if origin == "torch":
            torch = importlib.import_module("torch")
            made = torch.empty(shape, dtype=getattr(torch, torch_of_code(dtype) or ""))
        else:
            numpy = importlib.import_module("numpy")
            made = numpy.empty(shape, dtype=numpy_of_code(dtype))
    except (ImportError, AttributeError, TypeError) as error:
        raise NotSupportedError(
            f"a {dtype} tensor was saved from {origin}, which cannot make one here: {error}"
        ) from error
    view = in_place(made)
    if view is not None and len(view) > HUGE_PAGE_BYTES:
        advise_huge_pages(address_of(view), len(view))
    return made


def like(value: Any) -> Any:
    """A new contiguous tensor in this memory of the same shape and type, with unset elements."""
    torch = _loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype)
    return _loaded("numpy").empty(value.shape, dtype=value.dtype)


def assign(target: Any, source: Any) -> None:
    """Copy elements, whatever the layout of the target."""
    torch = _loaded("torch")
    if torch is not None and isinstance(target, torch.Tensor):
        with torch.no_grad():
            target.copy_(source)
    else:
        target[...] = source


# ---- scalars and shapes ----------------------------------------------------------------------------------------------


def scalar_parts(value: Any, where: str) -> tuple[str, bytes]:
    """A numpy scalar as its type and bytes."""
    if value.dtype.kind not in _NUMPY_KINDS:
        raise UnstorableError(f"{where}: a numpy scalar of {value.dtype} cannot be stored without pickle")
    return value.dtype.str, value.tobytes()


def make_scalar(dtype: str, data: bytes) -> object:
    numpy = importlib.import_module("numpy")
    return numpy.frombuffer(data, dtype=numpy.dtype(dtype))[0] if data else numpy.zeros((), numpy.dtype(dtype))[()]


def is_torch_size(value: object) -> bool:
    torch = _loaded("torch")
    return torch is not None and type(value) is torch.Size


def make_torch_size(lengths: tuple[int, ...]) -> object:
    return importlib.import_module("torch").Size(lengths)
