"""Lossless compression that suits floats: a piece of a tensor as planes of bytes, each a zstd frame if that makes it shorter.

The bytes of floats look random when they follow one another; sign and exponent alone, one byte of each element after the other, do
not: of the weights of a network they take about a third of their room, and the mantissas do not shrink. A packed piece is

    length of each plane as it is stored (u32, little-endian, `width` of them) | the planes, from the least significant byte

A plane as long as its elements are many is stored as it is, any other is one zstd frame; and a piece that would not get
shorter is stored as it was, all of it. So what is stored is never longer than what it stands for, and lengths alone say how
to read it.

zstd is set up to code entropy and to look for matches only along the way (a table of 64 entries, matches from 7 bytes):
there are hardly any in an exponent, and each that is found costs more than it saves. Of the exponents of normally distributed
weights this makes 0.340 at 911 MB/s and core; levels 1 and 3 make 0.369 at 329 MB/s, and 0.422 at 155 MB/s.

Planes are split and joined with shifts, in tiles that stay in the cache (bf16 15 and 10 GB/s, fp32 6.0 and 3.9 GB/s on one core;
copying strided bytes: 3.6). Everything that is long gives up the GIL. numpy and zstandard are imported when they are
needed. A `Packer` and an `Unpacker` are for one thread each.
"""

import importlib
import struct
from collections.abc import Sequence
from typing import Any, Final

from tieredfs.errors import CorruptError, NotSupportedError

CODEC: Final = "planes-zstd"
"""In manifests. What cannot be read by this description gets another name."""
WIDTHS: Final = (1, 2, 4, 8)
LEVEL_MAX: Final = 19
_TILE_BYTES: Final = 512 << 10
"""With 64 KiB of bf16 and 128 KiB of fp32, four threads on two cores pass the GIL around so often that they unpack at 3.5 and
3.1 GB/s; with 512 KiB at 5.6 and 4.4."""
_HALVES: Final = {"C64": 4, "C128": 8}
_INSTALL: Final = "pip install 'tieredfs[torch]'"


def width_of(dtype: str, item_bytes: int) -> int:
    """How many planes: the bytes of a number. Anything else (strings, records) is one plane."""
    width = _HALVES.get(dtype, item_bytes)
    return width if width in WIDTHS else 1


def _libraries() -> tuple[Any, Any]:
    """numpy and zstandard. Raises NotSupportedError."""
    try:
        return importlib.import_module("numpy"), importlib.import_module("zstandard")
    except ImportError as error:
        raise NotSupportedError(f"compressed tensors need {error.name}: {_INSTALL}") from error


def check_installed() -> None:
    """Raises NotSupportedError where the libraries are not."""
    _libraries()


class Packer:
    """Planes to frames. `level`: of zstd, tried besides, and taken where it makes less (None: not tried)."""

    def __init__(self, level: int | None = None) -> None:
        self._numpy, zstandard = _libraries()
        entropy = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            target_length=0,
            hash_log=6,
            chain_log=6,
            window_log=17,
            write_content_size=1,
        )
        self._compressors = [zstandard.ZstdCompressor(compression_params=entropy)]
        self._shifted = bytearray(_TILE_BYTES)
        if level is not None:
            self._compressors.append(zstandard.ZstdCompressor(level=level))

    def pack(self, piece: memoryview, width: int, scratch: memoryview) -> list[Any]:
        """The piece as it is stored: buffers that follow one another. `scratch`, as long as the piece, may be among them."""
        assert len(piece) % width == 0
        count = len(piece) // width
        if not count:
            return [piece]
        planes = [self._shortest(plane) for plane in self._split(piece, width, count, scratch)]
        lengths = [len(plane) for plane in planes]
        if 4 * width + sum(lengths) >= len(piece):
            return [piece]
        return [struct.pack(f"<{width}I", *lengths), *planes]

    def _split(self, piece: memoryview, width: int, count: int, scratch: memoryview) -> Sequence[Any]:
        if width == 1:
            return [piece]
        numpy = self._numpy
        items = numpy.frombuffer(piece, f"<u{width}")
        step = _TILE_BYTES // width
        shifted = numpy.frombuffer(self._shifted, items.dtype)
        planes = numpy.frombuffer(scratch, numpy.uint8, width * count).reshape(width, count)
        for at in range(0, count, step):
            tile = items[at : at + step]
            numpy.copyto(planes[0, at : at + step], tile, casting="unsafe")
            for number in range(1, width):
                numpy.right_shift(tile, 8 * number, out=shifted[: len(tile)])
                numpy.copyto(planes[number, at : at + step], shifted[: len(tile)], casting="unsafe")
        return [scratch[number * count : (number + 1) * count] for number in range(width)]

    def _shortest(self, plane: Any) -> Any:
        return min([plane, *(compressor.compress(plane) for compressor in self._compressors)], key=len)


class Unpacker:
    """Frames to planes to elements."""

    def __init__(self) -> None:
        self._numpy, self._zstandard = _libraries()
        self._decompressor = self._zstandard.ZstdDecompressor()

    def unpack(self, stored: memoryview, width: int, target: memoryview) -> None:
        """A stored piece into the memory of its elements, whose length is known. Raises CorruptError, having allocated no more
        than that length, whatever the frames say of themselves."""
        if len(stored) == len(target):
            target[:] = stored
            return
        count, header = len(target) // width, struct.Struct(f"<{width}I")
        lengths = header.unpack_from(stored) if len(stored) >= header.size else ()
        if header.size + sum(lengths) != len(stored) or len(target) % width or max(lengths, default=0) > count:
            raise CorruptError("a packed piece whose planes do not make up its length")
        planes, at = [], header.size
        for length in lengths:
            planes.append(self._plane(stored[at : at + length], count))
            at += length
        self._join(planes, width, count, target)

    def _plane(self, stored: memoryview, count: int) -> Any:
        if len(stored) == count:
            return stored
        try:
            if self._zstandard.frame_content_size(stored) != count:
                raise CorruptError("a frame that says to be of another length than its plane")
            return self._decompressor.decompress(stored, allow_extra_data=False)
        except self._zstandard.ZstdError as error:
            raise CorruptError(f"a frame that cannot be decompressed: {error}") from error

    def _join(self, planes: Sequence[Any], width: int, count: int, target: memoryview) -> None:
        numpy = self._numpy
        rows = [numpy.frombuffer(plane, numpy.uint8, count) for plane in planes]
        items = numpy.frombuffer(target, f"<u{width}")
        step = _TILE_BYTES // width
        for at in range(0, count, step):
            tile = items[at : at + step]
            numpy.copyto(tile, rows[-1][at : at + step])
            for row in reversed(rows[:-1]):
                numpy.left_shift(tile, 8, out=tile)
                numpy.bitwise_or(tile, row[at : at + step], out=tile)
