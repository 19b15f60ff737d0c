"""What a gateway may do to batches before it hands them over: named in its configuration, never in a request.

    [transforms.thumbnails]           # the name that `transforms=["thumbnails"]` asks for
    kind = "image"                    # decode, resize; see below
    column = "png"
    width = 32
    height = 32

    [transforms.mine]
    kind = "function"                 # my_package.features.normalise(rows: RecordBatch, **options) -> RecordBatch
    path = "my_package.features:normalise"
    options = { scale = 2.0 }
    time_limit_s = 10

| kind | options |
|---|---|
| `project` | `columns`: these, in this order |
| `cast` | `types`: column to Arrow type (`float32`, `int64`, `string` ...); what does not fit is an error |
| `image` | `column` of encoded images; `width`, `height`, `mode` (`RGB`, `L`); becomes fixed-size lists of uint8, null stays null |
| `tokenize` | `column` of text; `into` a column of lists of int32: `bytes`, or crc32 of what `pattern` finds, modulo `vocabulary` |
| `function` | `path` (`module:name`) and `options`, which it gets as keyword arguments |

A transform sees one batch and gives one with the same number of rows, or fewer; the same rows give the same result, whoever
reads them. This module is pure: it reads values and says what is wrong with them; `transform_worker` runs transforms,
`transform_pool` keeps workers.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.errors import Refusal

TIME_LIMIT_S: Final = 30.0
TIME_LIMIT_MAX_S: Final = 3600.0
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_PATH: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_OPTIONS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "project": (frozenset({"columns"}), frozenset()),
    "cast": (frozenset({"types"}), frozenset()),
    "image": (frozenset({"column", "width", "height"}), frozenset({"mode"})),
    "tokenize": (frozenset({"column", "into"}), frozenset({"pattern", "vocabulary"})),
    "function": (frozenset({"path"}), frozenset({"options"})),
}
"""Per kind: what must be there, what may be there."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One that the configuration allows."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    time_limit_s: float = TIME_LIMIT_S
    """For one batch."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def parse_transforms(text: str) -> dict[str, Transform]:
    """A configuration file. Raises ConfigurationError, saying where and what."""
    try:
        tables = tomllib.loads(text).get("transforms", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the configuration of the transforms is not TOML: {error}") from error
    if not isinstance(tables, dict):
        raise ConfigurationError("transforms: a table [transforms.NAME] for each")
    return {name: _transform(name, table) for name, table in tables.items()}


def _transform(name: str, table: Any) -> Transform:
    where = f"[transforms.{name}]"
    if not _NAME.match(name) or not isinstance(table, dict):
        raise ConfigurationError(f"{where}: a table, its name of letters, digits, `_`, `.` and `-`")
    options = dict(table)
    kind, limit_s = options.pop("kind", None), options.pop("time_limit_s", TIME_LIMIT_S)
    if kind not in _OPTIONS:
        raise ConfigurationError(f"{where}: kind is {kind!r}; it is one of {', '.join(_OPTIONS)}")
    if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or not 0 < limit_s <= TIME_LIMIT_MAX_S:
        raise ConfigurationError(f"{where}: time_limit_s is {limit_s!r}; more than 0, at most {TIME_LIMIT_MAX_S:.0f}")
    needed, allowed = _OPTIONS[kind]
    missing, extra = sorted(needed - options.keys()), sorted(options.keys() - needed - allowed)
    if missing or extra:
        raise ConfigurationError(f"{where}: missing {missing or 'nothing'}, not known {extra or 'nothing'}")
    if kind == "function" and not _PATH.match(str(options["path"])):
        raise ConfigurationError(f"{where}: path is {options['path']!r}; it is package.module:function")
    return Transform(name, kind, options, float(limit_s))


def check_names(names: Sequence[str], allowed: Mapping[str, Transform]) -> None:
    """Raises Refusal `transform_unknown`."""
    unknown = [name for name in names if name not in allowed]
    if unknown:
        known = ", ".join(sorted(allowed)) or "none"
        raise Refusal(
            "transform_unknown", f"transforms {unknown} are not in the gateway's configuration; it has: {known}"
        )
