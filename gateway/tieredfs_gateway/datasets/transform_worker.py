"""A process that runs transforms: `python -m tieredfs_gateway.datasets.transform_worker`, started by `transform_pool`.

Standard input: the allowed transforms as one JSON line, then requests. Standard output: answers. A message is a head (two
big-endian lengths), a JSON document, and a body: an Arrow IPC stream. For a request `{"names": [...]}` the answers are
`{"at": name}` before each transform, then `{"seconds": {...}, "memory_bytes": n}` with the batch, or `{"failed": name,
"error": text}`. What a transform prints goes to standard error.
"""

import importlib
import io
import json
import os
import re
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final

import pyarrow as pa

HEAD: Final = struct.Struct(">IQ")
_PAGE_BYTES: Final = resource.getpagesize()
Apply = Callable[[pa.RecordBatch], pa.RecordBatch]


def send(stream: BinaryIO, document: Mapping[str, Any], body: Any = b"") -> None:
    text = json.dumps(document).encode()
    stream.write(HEAD.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def packed(rows: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue()


def unpacked(body: Any) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.py_buffer(body)).read_next_batch()


# ---- the kinds ---------------------------------------------------------------------------------------------------------


def build(kind: str, options: Mapping[str, Any]) -> Apply:
    return {"project": _project, "cast": _cast, "image": _image, "tokenize": _tokenize, "function": _function}[kind](
        options
    )


def _project(options: Mapping[str, Any]) -> Apply:
    return lambda rows: rows.select(list(options["columns"]))


def _cast(options: Mapping[str, Any]) -> Apply:
    types = {name: pa.type_for_alias(text) for name, text in options["types"].items()}

    def apply(rows: pa.RecordBatch) -> pa.RecordBatch:
        for name, kind in types.items():
            at = rows.schema.names.index(name)
            rows = rows.set_column(at, rows.schema.field(at).with_type(kind), rows.column(at).cast(kind))
        return rows

    return apply


def _image(options: Mapping[str, Any]) -> Apply:
    from PIL import Image

    size, mode = (int(options["width"]), int(options["height"])), str(options.get("mode", "RGB"))
    length = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())

    def decode(raw: bytes) -> bytes:
        with Image.open(io.BytesIO(raw)) as image:
            image.draft(mode, size)
            return image.convert(mode).resize(size, Image.Resampling.BILINEAR).tobytes()

    def apply(rows: pa.RecordBatch) -> pa.RecordBatch:
        at = rows.schema.names.index(options["column"])
        found = [value.as_py() for value in rows.column(at)]
        pixels = b"".join(bytes(length) if raw is None else decode(raw) for raw in found)
        values = pa.Array.from_buffers(pa.uint8(), len(pixels), [None, pa.py_buffer(pixels)])
        mask = pa.array([raw is None for raw in found], pa.bool_()) if None in found else None
        images = pa.FixedSizeListArray.from_arrays(values, length, mask=mask)
        return rows.set_column(at, pa.field(options["column"], images.type), images)

    return apply


def _tokenize(options: Mapping[str, Any]) -> Apply:
    pattern = re.compile(options["pattern"]) if "pattern" in options else None
    vocabulary = int(options.get("vocabulary", 1 << 16))

    def tokens(text: str) -> list[int]:
        if pattern is None:
            return list(text.encode())
        return [zlib.crc32(match.group().encode()) % vocabulary for match in pattern.finditer(text)]

    def apply(rows: pa.RecordBatch) -> pa.RecordBatch:
        column = rows.column(rows.schema.names.index(options["column"]))
        found = [None if value is None else tokens(value) for value in column.to_pylist()]
        made = pa.array(found, pa.list_(pa.int32()))
        if options["into"] in rows.schema.names:
            return rows.set_column(rows.schema.names.index(options["into"]), options["into"], made)
        return rows.append_column(options["into"], made)

    return apply


def _function(options: Mapping[str, Any]) -> Apply:
    module, _, name = str(options["path"]).partition(":")
    function = getattr(importlib.import_module(module), name)
    given = dict(options.get("options", {}))

    def apply(rows: pa.RecordBatch) -> pa.RecordBatch:
        made = function(rows, **given)
        if not isinstance(made, pa.RecordBatch):
            raise TypeError(f"{options['path']} gave a {type(made).__name__}, not a pyarrow.RecordBatch")
        return made

    return apply


# ---- the process -------------------------------------------------------------------------------------------------------


def main() -> None:
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    setup = json.loads(requests.readline())
    limit = int(setup["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path[:0] = setup["path"]
    allowed = {one["name"]: one for one in setup["transforms"]}
    ready: dict[str, Apply] = {}
    while head := requests.read(HEAD.size):
        text_bytes, body_bytes = HEAD.unpack(head)
        document = json.loads(requests.read(text_bytes))
        answer(answers, document["names"], unpacked(requests.read(body_bytes)), allowed, ready)


def answer(
    answers: BinaryIO,
    names: list[str],
    rows: pa.RecordBatch,
    allowed: Mapping[str, Mapping[str, Any]],
    ready: dict[str, Apply],
) -> None:
    seconds, pid = {}, os.getpid()
    for name in names:
        send(answers, {"at": name})
        began_s = time.perf_counter()
        try:
            if name not in ready:
                ready[name] = build(allowed[name]["kind"], allowed[name]["options"])
            rows = ready[name](rows)
        except Exception as error:  # noqa: BLE001 - somebody's function: its error is told with its name
            if os.getpid() == pid:
                send(answers, {"failed": name, "error": f"{type(error).__name__}: {error}"})
                return
        if (
            os.getpid() != pid
        ):  # it forked and came back twice: a second answer would be taken for that of the next request
            os._exit(0)
        seconds[name] = time.perf_counter() - began_s
    send(answers, {"seconds": seconds, "memory_bytes": _resident_bytes()}, packed(rows))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    main()
