"""Element types: one code per type, shared by torch, numpy and the files.

A code is what safetensors calls the type (`F32`, `BF16`) where it has a name for it, `C128` for the one that both
libraries have and safetensors lacks, and otherwise the library's own name with a prefix (`torch:float8_e8m0fnu`,
`numpy:>f4`, `numpy:<M8[ns]`), so that nothing is ever converted. In files, types that safetensors lacks are bytes (`U8`)
with the item's size as a last dimension; the manifest has the code. Pure.
"""

from typing import Final

_TABLE: Final = (
    # code, bytes, torch, numpy
    ("BOOL", 1, "bool", "|b1"),
    ("U8", 1, "uint8", "|u1"),
    ("I8", 1, "int8", "|i1"),
    ("U16", 2, "uint16", "<u2"),
    ("I16", 2, "int16", "<i2"),
    ("U32", 4, "uint32", "<u4"),
    ("I32", 4, "int32", "<i4"),
    ("U64", 8, "uint64", "<u8"),
    ("I64", 8, "int64", "<i8"),
    ("F16", 2, "float16", "<f2"),
    ("BF16", 2, "bfloat16", ""),
    ("F32", 4, "float32", "<f4"),
    ("F64", 8, "float64", "<f8"),
    ("F8_E4M3", 1, "float8_e4m3fn", ""),
    ("F8_E5M2", 1, "float8_e5m2", ""),
    ("C64", 8, "complex64", "<c8"),
    ("C128", 16, "complex128", "<c16"),
)
_NOT_IN_SAFETENSORS: Final = frozenset({"C128"})
TORCH_PREFIX: Final = "torch:"
NUMPY_PREFIX: Final = "numpy:"
_CODE_OF_TORCH: Final = {torch: code for code, _, torch, _ in _TABLE}
_CODE_OF_NUMPY: Final = {numpy: code for code, _, _, numpy in _TABLE if numpy}
_TORCH_OF_CODE: Final = {code: torch for code, _, torch, _ in _TABLE}
_NUMPY_OF_CODE: Final = {code: numpy for code, _, _, numpy in _TABLE if numpy}
_IN_SAFETENSORS: Final = frozenset(code for code, *_ in _TABLE) - _NOT_IN_SAFETENSORS


def code_of_torch(name: str) -> str:
    """`float32` (without `torch.`) to its code."""
    return _CODE_OF_TORCH.get(name, TORCH_PREFIX + name)


def code_of_numpy(text: str) -> str:
    """`dtype.str` to its code."""
    return _CODE_OF_NUMPY.get(text, NUMPY_PREFIX + text)


def torch_of_code(code: str) -> str | None:
    """The torch name of a code; None where torch has no such type."""
    return code.removeprefix(TORCH_PREFIX) if code.startswith(TORCH_PREFIX) else _TORCH_OF_CODE.get(code)


def numpy_of_code(code: str) -> str | None:
    """The `dtype.str` of a code; None where numpy has no such type."""
    return code.removeprefix(NUMPY_PREFIX) if code.startswith(NUMPY_PREFIX) else _NUMPY_OF_CODE.get(code)


def in_safetensors(code: str) -> bool:
    """Whether the files can say the type itself."""
    return code in _IN_SAFETENSORS
