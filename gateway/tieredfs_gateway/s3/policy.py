"""Bucket policies: a subset of AWS's language, read strictly and evaluated by its rules. Pure.

There are Version, Id, and statements with Sid, Effect, Principal, Action, Resource and Condition. Principal is `*`, `{"AWS":
"*"}`, or access key ids (bare, or at the end of an ARN); actions and resources may have `*` and `?`; conditions are on
the keys below. Whatever else a policy says (NotPrincipal,
NotAction, other keys) would be a condition that is not checked, so the whole policy is refused with MalformedPolicy.

A Deny that matches decides; else an Allow that matches; else the policy says nothing.
"""

import enum
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from tieredfs_gateway.s3.errors import S3Error

POLICY_BYTES_MAX: Final = 20 * 1024
_ARN: Final = "arn:aws:s3:::"
_VERSIONS: Final = ("2012-10-17", "2008-10-17")
_STATEMENT: Final = frozenset(["Sid", "Effect", "Principal", "Action", "Resource", "Condition"])
_PRINCIPAL: Final = re.compile(r"(?:arn:aws:iam::\d*:user/(?:[^/]+/)*)?([A-Za-z0-9]{1,128})", re.ASCII)
ANYBODY: Final = "*"


class Verdict(enum.Enum):
    ALLOWED = "allowed"
    DENIED = "denied"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Question:
    """`principal` empty: anonymous. `resource`: `bucket` or `bucket/key`. `context`: the condition keys that the request has."""

    principal: str
    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    operator: str
    key: str
    values: tuple[str, ...]
    if_exists: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    allows: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...] = ()

    def judge(self, question: Question) -> Verdict:
        matching = [statement for statement in self.statements if _matches(statement, question)]
        if any(not statement.allows for statement in matching):
            return Verdict.DENIED
        return Verdict.ALLOWED if matching else Verdict.SILENT

    def is_public(self) -> bool:
        """Whether anybody is allowed something, other than from fixed addresses."""
        return any(
            statement.allows
            and ANYBODY in statement.principals
            and not any(condition.operator == "IpAddress" for condition in statement.conditions)
            for statement in self.statements
        )


NO_POLICY: Final = Policy()
DENY_ALL: Final = Policy((Statement(False, (ANYBODY,), ("s3:*",), ("*",)),))
"""Of a policy that cannot be read any more."""


# ---- evaluating ------------------------------------------------------------------------------------------------------


def _matches(statement: Statement, question: Question) -> bool:
    return (
        any(principal in (ANYBODY, question.principal) for principal in statement.principals)
        and any(matches_pattern(pattern.lower(), question.action.lower()) for pattern in statement.actions)
        and any(matches_pattern(pattern, question.resource) for pattern in statement.resources)
        and all(_holds(condition, question.context) for condition in statement.conditions)
    )


def matches_pattern(pattern: str, text: str) -> bool:
    """`*` is any text, `?` any one character. Linear in both, whatever the pattern."""
    return _compiled(pattern)(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Callable[[str], "re.Match[str] | None"]:
    """Each `*` but the last takes as little as it can and never more (an atomic group): no backtracking over others."""
    pieces = [re.escape(piece).replace(r"\?", ".") for piece in re.split(r"\*+", pattern)]
    if len(pieces) == 1:
        return re.compile(pieces[0], re.DOTALL).fullmatch
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1])
    return re.compile(f"{pieces[0]}{middle}.*{pieces[-1]}", re.DOTALL).fullmatch


def _equals(value: str, text: str) -> bool:
    return value == text


def _equals_whatever_case(value: str, text: str) -> bool:
    return value.lower() == text.lower()


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1


def _in_network(value: str, text: str) -> bool:
    try:
        return ipaddress.ip_address(text) in ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False


_TESTS: Final[dict[str, Callable[[str, str], bool]]] = {
    "StringEquals": _equals,
    "StringEqualsIgnoreCase": _equals_whatever_case,
    "StringLike": matches_pattern,
    "NumericEquals": lambda value, text: _number(text) == _number(value),
    "NumericLessThan": lambda value, text: 0 <= _number(text) < _number(value),
    "NumericLessThanEquals": lambda value, text: 0 <= _number(text) <= _number(value),
    "Bool": _equals_whatever_case,
    "IpAddress": _in_network,
}
_OPPOSITES: Final = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "NotIpAddress": "IpAddress",
}
_KEYS: Final = {
    "s3:prefix": "String",
    "s3:delimiter": "String",
    "s3:max-keys": "Numeric",
    "s3:versionid": "String",
    "s3:x-amz-acl": "String",
    "s3:x-amz-copy-source": "String",
    "s3:x-amz-grant-full-control": "String",
    "s3:x-amz-grant-read": "String",
    "s3:x-amz-grant-read-acp": "String",
    "s3:x-amz-grant-write": "String",
    "s3:x-amz-grant-write-acp": "String",
    "s3:x-amz-metadata-directive": "String",
    "s3:x-amz-server-side-encryption": "String",
    "aws:referer": "String",
    "aws:useragent": "String",
    "aws:securetransport": "Bool",
    "aws:sourceip": "Ip",
}
"""Condition keys, and what their operators' names contain."""


def _holds(condition: Condition, context: Mapping[str, str]) -> bool:
    text = context.get(condition.key)
    if condition.operator == "Null":
        return ("true" if text is None else "false") in condition.values
    opposite = _OPPOSITES.get(condition.operator)
    if text is None:
        return condition.if_exists or opposite is not None
    found = any(_TESTS[opposite or condition.operator](value, text) for value in condition.values)
    return found != (opposite is not None)


# ---- reading ---------------------------------------------------------------------------------------------------------


def malformed(message: str) -> S3Error:
    return S3Error("MalformedPolicy", message)


def parse_policy(document: bytes, bucket: str) -> Policy:
    """Raises S3Error MalformedPolicy."""
    if len(document) > POLICY_BYTES_MAX:
        raise malformed(f"The policy is larger than {POLICY_BYTES_MAX} bytes")
    try:
        tree = json.loads(document, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise malformed("Policies must be valid JSON and the first byte must be '{'") from error
    if not isinstance(tree, dict):
        raise malformed("Policies must be valid JSON and the first byte must be '{'")
    if unknown := set(tree) - {"Version", "Id", "Statement"}:
        raise malformed(f"Unknown field {min(unknown)[:64]}")
    if tree.get("Version", _VERSIONS[1]) not in _VERSIONS:
        raise malformed("The policy must contain a valid version string")
    statements = tree.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements:
        raise malformed("Missing required field Statement")
    return Policy(tuple(_statement(statement, bucket) for statement in statements))


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise malformed("A field is there twice")
    return dict(pairs)


def _statement(tree: Any, bucket: str) -> Statement:
    if not isinstance(tree, dict):
        raise malformed("A statement is an object")
    if unknown := set(tree) - _STATEMENT:
        raise malformed(f"{min(unknown)[:64]} is not supported in a statement here")
    for name in ("Effect", "Principal", "Action", "Resource"):
        if name not in tree:
            raise malformed(f"Missing required field {name}")
    if tree["Effect"] not in ("Allow", "Deny"):
        raise malformed(f"Invalid effect: {str(tree['Effect'])[:64]}")
    return Statement(
        tree["Effect"] == "Allow",
        _principals(tree["Principal"]),
        tuple(_action(text) for text in _texts(tree["Action"], "Action")),
        tuple(_resource(text, bucket) for text in _texts(tree["Resource"], "Resource")),
        _conditions(tree.get("Condition", {})),
    )


def _texts(value: Any, name: str) -> list[str]:
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(text, str) and text for text in several):
        raise malformed(f"Policy has invalid {name.lower()}")
    return several


def _principals(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        if set(value) != {"AWS"}:
            raise malformed("Invalid principal in policy: only AWS principals are known here")
        value = value["AWS"]
    elif value != ANYBODY:
        raise malformed("Invalid principal in policy")
    return tuple(_principal(text) for text in _texts(value, "principal"))


def _principal(text: str) -> str:
    match = _PRINCIPAL.fullmatch(text)
    if text != ANYBODY and match is None:
        raise malformed("Invalid principal in policy: * and access key ids are known here")
    return text if match is None else match[1]


def _action(text: str) -> str:
    if text == "*":
        return "s3:*"
    if not re.fullmatch(r"s3:[A-Za-z0-9*?]{1,128}", text, re.ASCII):
        raise malformed("Policy has invalid action")
    return text


def _resource(text: str, bucket: str) -> str:
    if text == "*":
        return text
    resource = text.removeprefix(_ARN)
    if not text.startswith(_ARN) or not matches_pattern(resource.partition("/")[0], bucket):
        raise malformed("Policy has invalid resource")
    if "${" in resource:
        raise malformed("Policy variables are not supported here")
    return resource


def _conditions(tree: Any) -> tuple[Condition, ...]:
    if not isinstance(tree, dict) or not all(isinstance(keys, dict) and keys for keys in tree.values()):
        raise malformed("Invalid Condition type")
    return tuple(_condition(operator, key, value) for operator, keys in tree.items() for key, value in keys.items())


def _condition(operator: str, key: str, value: Any) -> Condition:
    plain = operator.removesuffix("IfExists")
    kind = _KEYS.get(key.lower())
    if plain not in _TESTS and plain not in _OPPOSITES and operator != "Null":
        raise malformed(f"Invalid Condition type : {operator[:64]}")
    if kind is None or (kind not in plain and plain != "Null"):
        raise malformed(f"Policy has an invalid condition key - {key[:64]}")
    several = value if isinstance(value, list) else [value]
    texts = tuple(str(text).lower() if isinstance(text, bool) else str(text) for text in several)
    if not texts or not all(isinstance(text, str | int | bool) for text in several):
        raise malformed("Invalid Condition value")
    if plain == "Null" and not set(texts) <= {"true", "false"}:
        raise malformed("Invalid Condition value")
    if kind == "Ip" and plain != "Null" and not all(_is_network(text) for text in texts):
        raise malformed("Invalid network in Condition")
    return Condition(plain, key.lower(), texts, operator != plain)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True
