"""What a bucket may be called, and what a client is told when none is. Pure."""

from functools import lru_cache
from typing import Final

from tieredfs_gateway.s3.errors import S3Error

_BUCKET_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789.-")


@lru_cache(maxsize=1024)
def is_bucket_name(name: bytes) -> bool:
    """S3's rules: 3 to 63 of a-z 0-9 . -, between dots a letter or digit at both ends, not the look of an IPv4 address.

    Of each request it is asked several times."""
    if not 3 <= len(name) <= 63 or not set(name) <= _BUCKET_BYTES:
        return False
    parts = name.split(b".")
    if any(not part or part.startswith(b"-") or part.endswith(b"-") for part in parts):
        return False
    return not (len(parts) == 4 and all(part.isdigit() for part in parts))


def check_bucket_name(name: bytes) -> None:
    """Raises S3Error InvalidBucketName."""
    if not is_bucket_name(name):
        raise S3Error("InvalidBucketName", fields={"BucketName": name.decode("utf-8", "replace")[:100]})


def no_such_bucket(name: bytes) -> S3Error:
    return S3Error("NoSuchBucket", fields={"BucketName": name.decode()})
