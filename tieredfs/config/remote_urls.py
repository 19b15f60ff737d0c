"""Where chunks go off this machine: `s3://bucket/prefix?endpoint=...` and `node://host:port/path`.

Neither has a secret in it, because URLs are stored in metadata and shown by `status`: a bucket's credentials come from where
its SDK looks for them, a node's secret from the environment or a file. Settings follow a `?`, joined by `&`, taken literally.
"""

import re
from dataclasses import dataclass
from typing import Final

from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError
from tieredfs.limits import PATH_BYTES_MAX

BUCKET_EXAMPLE: Final = "s3://bucket/prefix?region=eu-central-1"
NODE_EXAMPLE: Final = "node://host:9400/mnt/ssd0/tieredfs"
KEY_PREFIX_BYTES_MAX: Final = 900
"""S3's keys have 1,024 bytes; ours need 30 behind the prefix."""

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_ENDPOINT: Final = re.compile(
    r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?", re.ASCII
)
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,45}\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """Objects below `prefix` of a bucket. `endpoint` and `region`: empty where the SDK decides. `capacity`: as it was written."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    capacity: str = ""

    @property
    def place(self) -> str:
        """The same for two URLs only if they are the same objects."""
        return f"s3://{self.endpoint.removeprefix('http://')}/{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def domain(self) -> str:
        """What fails together with it: the bucket, wherever the prefix."""
        return f"bucket-{self.bucket}"

    @property
    def capacity_bytes(self) -> int | None:
        return parse_positive_size(self.capacity) if self.capacity else None

    def __str__(self) -> str:
        settings = {"endpoint": self.endpoint, "region": self.region, "capacity": self.capacity}
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + _query(settings)


@dataclass(frozen=True, slots=True)
class NodeUrl:
    """A directory that `tieredfs node` serves at `host`:`port`; `path` is its path there. `tls`: by HTTPS."""

    host: str
    port: int
    path: str
    tls: bool = False

    @property
    def place(self) -> str:
        return f"node://{self.host}:{self.port}{self.path}"

    @property
    def domain(self) -> str:
        """What fails together with it: the node."""
        return f"node-{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.place + _query({"tls": "on" if self.tls else ""})


def parse_bucket_url(text: str) -> BucketUrl:
    """Raises ConfigurationError."""
    rest, settings = _settings(text, "s3", {"endpoint", "region", "capacity"}, BUCKET_EXAMPLE)
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigurationError(f"{text!r}: {bucket!r} is no name of a bucket; write one like {BUCKET_EXAMPLE}")
    parts = [part for part in prefix.split("/") if part]
    if (
        "\0" in prefix
        or {".", ".."} & set(parts)
        or len(prefix.encode(errors="surrogateescape")) > KEY_PREFIX_BYTES_MAX
    ):
        raise ConfigurationError(
            f"{text[:80]!r}: that is no prefix (a NUL byte, `.` or `..`, or over {KEY_PREFIX_BYTES_MAX} bytes)"
        )
    endpoint, region = settings.get("endpoint", "").rstrip("/"), settings.get("region", "")
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise ConfigurationError(f"{text!r}: endpoint is http(s)://HOST[:PORT], and has no credentials in it")
    if region and not _REGION.fullmatch(region):
        raise ConfigurationError(f"{text!r}: {region!r} is no region")
    found = BucketUrl(bucket, "/".join(parts), endpoint, region, settings.get("capacity", ""))
    assert found.capacity_bytes is None or found.capacity_bytes > 0, "or ConfigurationError, from here"
    return found


def parse_node_url(text: str) -> NodeUrl:
    """Raises ConfigurationError."""
    rest, settings = _settings(text, "node", {"tls"}, NODE_EXAMPLE)
    address, slash, path = rest.partition("/")
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) < 1 << 16:
        raise ConfigurationError(f"{text!r}: {address!r} is no HOST:PORT; write one like {NODE_EXAMPLE}")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if (
        not slash
        or not parts
        or ".." in parts
        or "\0" in path
        or len(path.encode(errors="surrogateescape")) >= PATH_BYTES_MAX
    ):
        raise ConfigurationError(f"{text[:80]!r} names no directory of the node; write one like {NODE_EXAMPLE}")
    if settings.get("tls", "on") not in {"on", "off"}:
        raise ConfigurationError(f"{text!r}: tls is on or off")
    return NodeUrl(host, int(port), "/" + "/".join(parts), settings.get("tls") == "on")


def _settings(text: str, scheme: str, known: set[str], example: str) -> tuple[str, dict[str, str]]:
    """What follows the scheme, and the settings behind it."""
    rest, mark, query = text.removeprefix(f"{scheme}://").partition("?")
    settings: dict[str, str] = {}
    for item in query.split("&") if mark else ():
        name, equals, value = item.partition("=")
        if name not in known or not equals or not value or name in settings:
            raise ConfigurationError(
                f"{text!r}: {item!r} is no setting here ({', '.join(sorted(known))}); write one like {example}"
            )
        settings[name] = value
    return rest, settings


def _query(settings: dict[str, str]) -> str:
    given = "&".join(f"{name}={value}" for name, value in settings.items() if value)
    return f"?{given}" if given else ""
