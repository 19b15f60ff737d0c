"""Tags: of objects (at most 10, in a header or a document) and of buckets (50). Kept as a query string. Pure."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode

from tieredfs_gateway.s3 import xml
from tieredfs_gateway.s3.errors import S3Error

TAGS_MAX: Final = 10
BUCKET_TAGS_MAX: Final = 50


def parse_tags(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def checked_tags(pairs: Sequence[tuple[str, str]], limit: int = TAGS_MAX) -> dict[str, str]:
    """Raises S3Error InvalidTag."""
    if len(pairs) > limit:
        raise S3Error("InvalidTag", f"Tags cannot be more than {limit}")
    if len({name for name, _ in pairs}) != len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    if any(not 1 <= len(name) <= 128 or len(value) > 256 for name, value in pairs):
        raise S3Error("InvalidTag", "Names have 1 to 128 characters, values up to 256.")
    if any(name.lower().startswith("aws:") for name, _ in pairs):
        raise S3Error("InvalidTag", "System tags cannot be added/updated by requester")
    return dict(pairs)


def header_tags(text: str | None) -> bytes | None:
    """Of `x-amz-tagging`, by key. One without a value has an empty one. Raises S3Error InvalidArgument, InvalidTag."""
    if not text:
        return None
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise S3Error(
            "InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 URL parameters."
        ) from error
    return urlencode(sorted(checked_tags(pairs).items())).encode()


def parse_tagging(body: bytes, limit: int) -> bytes:
    """Raises S3Error MalformedXML, InvalidTag."""
    return tag_set(xml.parse(body, "Tagging"), limit)


def tag_set(document: xml.Element, limit: int) -> bytes:
    sets = document.all("TagSet")
    if len(sets) != 1:
        raise S3Error("MalformedXML")
    pairs = [(tag.exact("Key") or "", tag.exact("Value") or "") for tag in sets[0].all("Tag")]
    return urlencode(checked_tags(pairs, limit)).encode()


def tags_tree(tags: bytes) -> dict[str, xml.Tree]:
    """What is in a `Tagging` document."""
    return {"TagSet": {"Tag": [{"Key": name, "Value": value} for name, value in parse_tags(tags.decode()).items()]}}
