"""ISA-L through ctypes: Reed-Solomon codes and CRC32C on memory that is already there.

PyEClib's wheel carries the library; its own interface copies every fragment several times (0.2-0.7 GB/s where the bare
call does 12 GB/s), so this module calls the library below it on pointers, without a copy.

Two handles of one library, because the GIL has a price: `ctypes.CDLL` gives it up around a call, `ctypes.PyDLL` keeps
it. Giving it up pays for milliseconds (encoding a block, the checksum of a chunk); around the 9 us of one 256 KiB cell
it lets any busy Python thread take it for a whole switch interval. The 64 cells of a chunk beside one such thread: 0.6
ms with the GIL kept, 169 ms with it given up around each.

Everything here may be called from any thread. Tables are immutable once made; the cache of decode tables is guarded.
"""

import ctypes
import glob
import importlib.util
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import google_crc32c

from tieredfs.errors import ConfigurationError
from tieredfs.limits import CODE_WIDTH_MAX

View = bytes | bytearray | memoryview

_ALL_ONES: Final = 0xFFFFFFFF
_TABLE_BYTES_PER_COEFFICIENT: Final = 32
_DECODERS_MAX: Final = 256
"""Loss patterns remembered per code; 4+2 has 21, 9+6 thousands of which few happen at one time."""
_GIL_HELD_BYTES_MAX: Final = 256 * 1024
_WIDE_CRC: Final = "_by16_10"
_WIDE_CRC_FLAGS: Final = {
    *("avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg"),
    *("avx512_vpopcntdq", "gfni", "vaes", "vpclmulqdq"),
}
"""What ISA-L itself asks for before it takes its 512-bit CRCs."""


# ---- the library -----------------------------------------------------------------------------------------------------


def _library_path() -> str | None:
    package = importlib.util.find_spec("pyeclib")
    if package is None or package.origin is None:
        return None
    beside = os.path.join(os.path.dirname(os.path.dirname(package.origin)), "pyeclib.libs")
    found = sorted(glob.glob(os.path.join(glob.escape(beside), "libisal*.so*")))
    return found[0] if found else None


@lru_cache(maxsize=1)
def _has_wide_crc() -> bool:
    """Of the processor, by what the kernel saves of it on a switch of tasks."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags is not None and set(flags[1].split()) >= _WIDE_CRC_FLAGS


def _crc(handle: ctypes.CDLL, name: str) -> Any:
    """A CRC, the one for this processor: ISA-L 2.32 does not find it itself. Its dispatcher puts the address of the AVX2
    function into EBX, where the processor's features are, before it looks there for AVX-512; so it stays with AVX2: 27 GB/s from
    the L2 cache, where the one that it passes over does 52."""
    wide = getattr(handle, name + _WIDE_CRC, None) if _has_wide_crc() else None
    return wide or getattr(handle, name)


class _Library:
    """The functions with their types; `held` keeps the GIL, `free` gives it up."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.free: ctypes.CDLL = ctypes.CDLL(path)
            self.held: ctypes.CDLL = ctypes.PyDLL(path)
        except OSError as error:
            raise ConfigurationError(f"ISA-L at {path} cannot be loaded: {error}") from error
        pointer, number, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
        self.free_crc32c, self.held_crc32c = _crc(self.free, "crc32_iscsi"), _crc(self.held, "crc32_iscsi")
        for crc32c in (self.free_crc32c, self.held_crc32c):
            crc32c.argtypes = [pointer, number, unsigned]
            crc32c.restype = unsigned
        self.free_crc64, self.held_crc64 = (
            _crc(self.free, "crc64_rocksoft_refl"),
            _crc(self.held, "crc64_rocksoft_refl"),
        )
        for crc64 in (self.free_crc64, self.held_crc64):
            crc64.argtypes = [ctypes.c_uint64, pointer, ctypes.c_uint64]
            crc64.restype = ctypes.c_uint64
        for handle in (self.free, self.held):
            handle.gf_gen_cauchy1_matrix.argtypes = [pointer, number, number]
            handle.gf_gen_cauchy1_matrix.restype = None
            handle.gf_invert_matrix.argtypes = [pointer, pointer, number]
            handle.gf_mul.argtypes = [ctypes.c_ubyte, ctypes.c_ubyte]
            handle.gf_mul.restype = ctypes.c_ubyte
            handle.ec_init_tables.argtypes = [number, number, pointer, pointer]
            handle.ec_init_tables.restype = None
            handle.ec_encode_data.argtypes = [number, number, number, pointer, pointer, pointer]
            handle.ec_encode_data.restype = None


@lru_cache(maxsize=1)
def _library() -> _Library:
    path = _library_path()
    if path is None:
        raise ConfigurationError("ISA-L not found: install pyeclib from its wheel (pip install 'pyeclib>=1.8')")
    return _Library(path)


@lru_cache(maxsize=1)
def _library_or_none() -> _Library | None:
    try:
        return _library()
    except ConfigurationError:
        return None


def library_path() -> str:
    """Where ISA-L was found. Raises ConfigurationError."""
    return _library().path


# ---- memory ----------------------------------------------------------------------------------------------------------


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of the C API, for the address of read-only memory, which `from_buffer` refuses."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_release_buffer.restype = None


@contextmanager
def pinned(view: View) -> Iterator[int]:
    """The address of a contiguous buffer's first byte, which stays put inside the `with`."""
    raw = _PyBuffer()
    _get_buffer(view, ctypes.byref(raw), 0)  # PyBUF_SIMPLE: contiguous bytes; raises BufferError otherwise
    try:
        yield raw.buf or 0
    finally:
        _release_buffer(ctypes.byref(raw))


def address_of(view: memoryview) -> int:
    """The address now; for judging alignment."""
    with pinned(view) as address:
        return address


# ---- CRC32C ----------------------------------------------------------------------------------------------------------


def crc32c(view: View, seed: int = 0) -> int:
    """CRC32C (Castagnoli) of `view`, continuing from `seed`, the CRC32C of what came before."""
    library = _library_or_none()
    if library is None:
        return int(google_crc32c.extend(seed, bytes(view)))
    size = len(view)
    core = library.held_crc32c if size <= _GIL_HELD_BYTES_MAX else library.free_crc32c
    if size and type(view) is memoryview and not view.readonly:  # a third of the time, where a view is of some KiB
        first = ctypes.c_char.from_buffer(view)
        return int(core(ctypes.byref(first), size, ~seed & _ALL_ONES)) ^ _ALL_ONES
    with pinned(view) as address:
        return int(core(address, size, ~seed & _ALL_ONES)) ^ _ALL_ONES


def crc64_nvme(view: View, seed: int = 0) -> int:
    """CRC64 of NVMe (Rocksoft's, reflected) of `view`, continuing from `seed`. Raises ConfigurationError without ISA-L."""
    library = _library()
    core = library.held_crc64 if len(view) <= _GIL_HELD_BYTES_MAX else library.free_crc64
    with pinned(view) as address:
        return int(core(seed, address, len(view)))


def cell_crcs(view: View, cell_bytes: int) -> bytes:
    """The CRC32C of each `cell_bytes` of `view` (the last cell may be short), as little-endian u32."""
    size = len(view)
    library = _library_or_none()
    if library is None:
        whole = memoryview(view)
        crcs = [int(google_crc32c.value(bytes(whole[at : at + cell_bytes]))) for at in range(0, size, cell_bytes)]
    else:
        core = library.held_crc32c
        with pinned(view) as start:
            full = size - size % cell_bytes
            crcs = [core(start + at, cell_bytes, _ALL_ONES) ^ _ALL_ONES for at in range(0, full, cell_bytes)]
            if full < size:
                crcs.append(core(start + full, size - full, _ALL_ONES) ^ _ALL_ONES)
    return b"".join([crc.to_bytes(4, "little") for crc in crcs])


# ---- Reed-Solomon ----------------------------------------------------------------------------------------------------


class _Tables:
    """What `ec_encode_data` needs for `row_count` outputs over `source_count` inputs."""

    __slots__ = ("row_count", "source_count", "tables")

    def __init__(self, source_count: int, rows: bytes) -> None:
        self.source_count = source_count
        self.row_count = len(rows) // source_count
        self.tables = ctypes.create_string_buffer(_TABLE_BYTES_PER_COEFFICIENT * len(rows))
        _library().held.ec_init_tables(source_count, self.row_count, rows, self.tables)

    def apply(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        assert len(sources) == self.source_count
        assert len(targets) == self.row_count
        _library().free.ec_encode_data(
            length,
            self.source_count,
            self.row_count,
            self.tables,
            (ctypes.c_void_p * self.source_count)(*sources),
            (ctypes.c_void_p * self.row_count)(*targets),
        )


class Encoder:
    """Reed-Solomon over GF(2^8) with ISA-L's Cauchy matrix: any k of the k + m chunks give the others.

    The matrix is part of the format: row i < k is the identity, row k + j has 1 / ((k + j) xor c) in column c.
    Pointers are addresses of `length` bytes each; sources and targets do not overlap. Safe from any
    thread.
    """

    def __init__(self, data_count: int, parity_count: int) -> None:
        assert data_count > 0
        assert parity_count > 0
        assert data_count + parity_count <= CODE_WIDTH_MAX
        self.data_count = data_count
        self.parity_count = parity_count
        width = data_count + parity_count
        matrix = ctypes.create_string_buffer(width * data_count)
        _library().held.gf_gen_cauchy1_matrix(matrix, width, data_count)
        self._matrix = matrix.raw
        self._encode = _Tables(data_count, self._matrix[data_count * data_count :])
        self._decoders: OrderedDict[tuple[tuple[int, ...], tuple[int, ...]], _Tables] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, data_pointers: Sequence[int], parity_pointers: Sequence[int], length: int) -> None:
        """Fill the parity chunks from the data chunks."""
        self._encode.apply(data_pointers, parity_pointers, length)

    def decode(
        self,
        sources: Sequence[int],
        source_pointers: Sequence[int],
        wanted: Sequence[int],
        target_pointers: Sequence[int],
        length: int,
    ) -> None:
        """Fill chunks `wanted` from k chunks `sources` (indexes, data and parity alike)."""
        self._decoder(tuple(sources), tuple(wanted)).apply(source_pointers, target_pointers, length)

    def _decoder(self, sources: tuple[int, ...], wanted: tuple[int, ...]) -> _Tables:
        key = (sources, wanted)
        with self._lock:
            known = self._decoders.get(key)
            if known is not None:
                self._decoders.move_to_end(key)
                return known
        made = _Tables(self.data_count, self._decode_rows(sources, wanted))
        with self._lock:
            self._decoders[key] = made
            if len(self._decoders) > _DECODERS_MAX:
                self._decoders.popitem(last=False)
        return made

    def _row(self, index: int) -> bytes:
        return self._matrix[index * self.data_count : (index + 1) * self.data_count]

    def _decode_rows(self, sources: tuple[int, ...], wanted: tuple[int, ...]) -> bytes:
        """Row w of the code's matrix times the inverse of the sources' rows: chunk w in terms of the sources."""
        k = self.data_count
        assert len(set(sources)) == len(sources) == k
        library = _library().held
        square = ctypes.create_string_buffer(b"".join(map(self._row, sources)), k * k)
        inverse = ctypes.create_string_buffer(k * k)
        singular = library.gf_invert_matrix(square, inverse, k)
        assert singular == 0, "every square submatrix of a Cauchy code is invertible"
        return b"".join(self._times(library, self._row(index), inverse.raw) for index in wanted)

    def _times(self, library: ctypes.CDLL, row: bytes, square: bytes) -> bytes:
        k = self.data_count
        product = bytearray(k)
        for column in range(k):
            for at, coefficient in enumerate(row):
                product[column] ^= library.gf_mul(coefficient, square[at * k + column])
        return bytes(product)


@lru_cache(maxsize=64)
def encoder(data_count: int, parity_count: int) -> Encoder:
    """The one encoder of a code in this process."""
    return Encoder(data_count, parity_count)
