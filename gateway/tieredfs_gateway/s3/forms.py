"""POST uploads from a browser: a form with a signed policy, and a file as its last field. Pure.

`FormDecoder` takes the body as it comes: fields are small and are kept; the bytes of the file pass through, but for the
few that may be the beginning of the boundary behind it. `check_policy` holds the fields against the conditions that the
signer laid down: every field must be named by one, and the file must have a size within `content-length-range`.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tieredfs_gateway.s3 import sigv4
from tieredfs_gateway.s3.errors import S3Error

FIELDS_BYTES_MAX: Final = 64 * 1024
"""All fields but the file; a policy alone may have 20 KiB."""
_HEAD_BYTES_MAX: Final = 16 * 1024
_BOUNDARY: Final = re.compile(
    r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^;,\s"]{1,70})(?=[;,\s]|$))', re.I | re.S
)
_DISPOSITION: Final = re.compile(rb"content-disposition:\s*form-data\s*;(.*)", re.I | re.S)
_PARAMETER: Final = re.compile(r';?\s*([a-zA-Z*]+)="((?:[^"\\]|\\.)*)"')
_UNCHECKED: Final = frozenset(["policy", "x-amz-signature", "signature", "awsaccesskeyid", "file"])
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_CREDENTIAL: Final = re.compile(r"([^/\s]{1,128})/(\d{8})/([^/\s]{1,64})/s3/aws4_request", re.ASCII)


def malformed(message: str | None = None) -> S3Error:
    return S3Error("MalformedPOSTRequest", message)


def parse_boundary(content_type: str | None) -> bytes:
    """Raises S3Error MalformedPOSTRequest, PreconditionFailed as S3 does for a POST that is no form."""
    match = _BOUNDARY.match(content_type or "")
    if match is None:
        raise S3Error("PreconditionFailed", "Bucket POST must be of the enclosure-type multipart/form-data")
    return (match[1] or match[2]).encode("utf-8", "replace")


class FormDecoder:
    """A body of multipart/form-data. `fields`: names in lower case. For one thread at a time."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self.file_begun = False
        self.ended = False
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary has no line before it
        self._fields_bytes = 0
        self._in_headers = False

    def feed(self, piece: bytes) -> list[memoryview]:
        """The bytes of the file that are certain now. Raises S3Error MalformedPOSTRequest, MaxMessageLengthExceeded."""
        if self.ended:
            return []  # fields behind the file do not count
        self._buffer += piece
        while not self.file_begun:
            if not self._take_field():
                return []
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            self.ended = True
            content = bytes(self._buffer[:at])
            self._buffer.clear()
            return [memoryview(content)]
        sure = max(0, len(self._buffer) - len(self._delimiter))
        content = bytes(self._buffer[:sure])
        del self._buffer[:sure]
        return [memoryview(content)] if content else []

    def finish(self) -> Mapping[str, str]:
        """Raises S3Error MalformedPOSTRequest when the file's end is missing."""
        if not self.file_begun:
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.")
        if not self.ended:
            raise S3Error("IncompleteBody", "The form has no end.")
        return {}

    def _take_field(self) -> bool:
        """One field out of the buffer, or the head of the file; False when it is not there whole."""
        delimiter, buffer = self._delimiter, self._buffer
        if not buffer.startswith(delimiter[: len(buffer)]):
            raise malformed()
        if buffer.startswith(delimiter + b"--"):
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.")
        end = buffer.find(b"\r\n\r\n", len(delimiter))
        after = buffer.find(delimiter, end + 2) if end >= 0 else -1
        if self._fields_bytes > FIELDS_BYTES_MAX or (end < 0 and len(buffer) > _HEAD_BYTES_MAX):
            raise S3Error("MaxPostPreDataLengthExceededError")
        if end < 0:
            return False
        name, file_name = _parse_head(bytes(self._buffer[len(delimiter) : end]))
        if name == "file":
            self.file_begun, self.file_name = True, file_name or ""
            del buffer[: end + 4]
            return True
        if after < 0:
            if len(buffer) > FIELDS_BYTES_MAX:
                raise S3Error("MaxPostPreDataLengthExceededError")
            return False
        self._keep(name, bytes(buffer[end + 4 : after]))
        self._fields_bytes += after
        del buffer[:after]
        return True

    def _keep(self, name: str, value: bytes) -> None:
        if name in self.fields:
            raise malformed(f"The field {name[:64]} is there twice.")
        try:
            self.fields[name] = value.decode()
        except UnicodeDecodeError as error:
            raise malformed("A field is not UTF-8.") from error


def _parse_head(head: bytes) -> tuple[str, str | None]:
    for line in head.split(b"\r\n"):
        match = _DISPOSITION.fullmatch(line.strip())
        if match is None:
            continue
        try:
            found = {name.lower(): value for name, value in _PARAMETER.findall(match[1].decode())}
        except UnicodeDecodeError as error:
            raise malformed() from error
        if "name" in found:
            name = found.get("filename")
            return found["name"].lower(), None if name is None else re.sub(r"\\(.)", r"\1", name)
    raise malformed("A field has no name.")


# ---- who signed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signed:
    """What a form says of its signature: version 4 with its scope, or version 2."""

    access_key_id: str
    policy: str
    signature: str
    date: str = ""
    region: str = ""

    def is_true(self, secret: str) -> bool:
        if not self.date:
            digest = hmac.new(secret.encode(), self.policy.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(base64.b64encode(digest), self.signature.encode("utf-8", "replace"))
        key = sigv4.derived_key(secret, self.date, self.region)
        expected = hmac.new(key, self.policy.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected.encode(), self.signature.encode("utf-8", "replace"))


def read_signature(fields: Mapping[str, str]) -> Signed | None:
    """None: anonymous. Raises S3Error AccessDenied, InvalidArgument."""
    policy = "".join(fields.get("policy", "").split())
    if "x-amz-signature" in fields or "x-amz-credential" in fields:
        match = _CREDENTIAL.fullmatch(fields.get("x-amz-credential", ""))
        if match is None or fields.get("x-amz-algorithm") != sigv4.ALGORITHM or "x-amz-date" not in fields:
            raise S3Error("InvalidArgument", "The form's x-amz-algorithm, x-amz-credential or x-amz-date is wrong.")
        signed = Signed(match[1], policy, fields.get("x-amz-signature", ""), match[2], match[3])
    elif "awsaccesskeyid" in fields:
        if "signature" not in fields:
            raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'signature'.")
        signed = Signed(fields["awsaccesskeyid"], policy, fields["signature"])
    else:
        return None
    if not policy:
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'policy'.")
    return signed


# ---- what the policy wants -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sizes:
    least: int
    most: int


def check_policy(policy: str, bucket: str, fields: Mapping[str, str], now: datetime, most: int) -> Sizes:
    """The sizes that the file may have. Raises S3Error InvalidPolicyDocument, AccessDenied (expired, or a condition fails)."""
    document = _decoded(policy)
    expiration, conditions = document.get("expiration"), document.get("conditions")
    if not isinstance(expiration, str) or not isinstance(conditions, list):
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: expiration and conditions are needed.")
    if now > _moment(expiration):
        raise S3Error("AccessDenied", "Invalid according to Policy: Policy expired.")
    given = {**fields, "bucket": bucket}
    named, sizes = set[str](), Sizes(0, most)
    for condition in conditions:
        for operator, name, value in _conditions(condition):
            if operator == "content-length-range":
                sizes = Sizes(max(sizes.least, _size(name)), min(sizes.most, _size(value)))
                continue
            named.add(name)
            if not _holds(operator, given.get(name, ""), value):
                text = json.dumps([operator, f"${name}", value])
                raise S3Error("AccessDenied", f"Invalid according to Policy: Policy Condition failed: {text}")
    for name in given:
        if name not in named and name not in _UNCHECKED and not name.startswith("x-ignore-"):
            raise S3Error("AccessDenied", f"Invalid according to Policy: Extra input fields: {name[:128]}")
    return sizes


def _decoded(policy: str) -> dict[str, Any]:
    try:
        document = json.loads(base64.b64decode(policy, validate=True))
    except (ValueError, RecursionError) as error:
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid JSON.") from error
    if not isinstance(document, dict):
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid JSON.")
    return document


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text) if _MOMENT.fullmatch(text) else None
    except ValueError:
        moment = None
    if moment is None:
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid 'expiration' value.")
    return moment


def _conditions(condition: Any) -> Sequence[tuple[str, Any, Any]]:
    if isinstance(condition, dict) and condition:
        found: list[tuple[str, Any, Any]] = [("eq", name.lower(), value) for name, value in condition.items()]
    elif isinstance(condition, list) and len(condition) == 3 and isinstance(condition[0], str):
        operator, name, value = condition[0].lower(), condition[1], condition[2]
        if operator == "content-length-range":
            return [(operator, name, value)]
        if operator not in ("eq", "starts-with") or not isinstance(name, str) or not name.startswith("$"):
            raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid condition.")
        found = [(operator, name[1:].lower(), value)]
    else:
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid condition.")
    if not all(isinstance(value, str) for _, _, value in found):
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid condition value.")
    return found


def _size(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value, re.ASCII):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60:
        return value
    raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid content-length-range.")


def _holds(operator: str, text: str, value: str) -> bool:
    return text == value if operator == "eq" else text.startswith(value)
