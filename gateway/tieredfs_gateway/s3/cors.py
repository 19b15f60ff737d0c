"""CORS: which origins may see what, and what a browser is told. Pure.

A rule matches a request by origin and method, and a preflight by the headers it asks for too. The first that matches
decides. `*` stands for any text, at most once in an origin or a header.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.xml import Element

METHODS: Final = ("GET", "PUT", "POST", "DELETE", "HEAD")
RULES_MAX: Final = 100
_VARY: Final = ("vary", "Origin, Access-Control-Request-Headers, Access-Control-Request-Method")
Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CorsRule:
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed: tuple[str, ...]
    max_age_s: int | None


CorsRules = tuple[CorsRule, ...]


def parse_cors(document: Element) -> CorsRules:
    """Raises S3Error MalformedXML, InvalidRequest."""
    rules = tuple(_rule(element) for element in document.all("CORSRule"))
    if not 1 <= len(rules) <= RULES_MAX or len(rules) != len(document.children):
        raise S3Error("MalformedXML", f"From 1 to {RULES_MAX} CORSRule elements.")
    return rules


def _rule(element: Element) -> CorsRule:
    found = {
        name: tuple(child.text.strip() for child in element.all(name))
        for name in ("AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader")
    }
    if not found["AllowedOrigin"] or not found["AllowedMethod"]:
        raise S3Error("MalformedXML", "A CORSRule needs AllowedOrigin and AllowedMethod.")
    for method in found["AllowedMethod"]:
        if method not in METHODS:
            message = f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:32]}"
            raise S3Error("InvalidRequest", message)
    for name, what in (("AllowedOrigin", "AllowedOrigin"), ("AllowedHeader", "AllowedHeader")):
        for text in found[name]:
            if text.count("*") > 1:
                raise S3Error("InvalidRequest", f'{what} "{text[:64]}" can not have more than one wildcard.')
    for text in found["ExposeHeader"]:
        if "*" in text:
            raise S3Error(
                "InvalidRequest", f'ExposeHeader "{text[:64]}" contains wildcard. We currently do not support it.'
            )
    age = element.get("MaxAgeSeconds")
    if age is not None and not (age.isascii() and age.isdigit() and len(age) < 10):
        raise S3Error("MalformedXML", "MaxAgeSeconds is a number.")
    return CorsRule(
        found["AllowedOrigin"],
        found["AllowedMethod"],
        tuple(text.lower() for text in found["AllowedHeader"]),
        found["ExposeHeader"],
        None if age is None else int(age),
    )


def _like(pattern: str, text: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)


def find_rule(rules: Sequence[CorsRule], origin: str, method: str, asked: Sequence[str]) -> CorsRule | None:
    """`asked`: headers of a preflight, in lower case."""
    for rule in rules:
        if (
            method in rule.methods
            and any(_like(pattern, origin) for pattern in rule.origins)
            and all(any(_like(pattern, header) for pattern in rule.headers) for header in asked)
        ):
            return rule
    return None


def preflight(rules: Sequence[CorsRule], headers: Mapping[str, str]) -> Headers:
    """What the answer to OPTIONS says. Raises S3Error InvalidRequest (it is none), AccessForbidden (no rule matches)."""
    origin, method = headers.get("origin"), headers.get("access-control-request-method")
    if not origin:
        raise S3Error("InvalidRequest", "Insufficient information. Origin request header needed.")
    if not method:
        raise S3Error("InvalidRequest", "Invalid Access-Control-Request-Method: null")
    if not rules:
        raise S3Error("AccessForbidden", "CORSResponse: CORS is not enabled for this bucket.")
    listed = headers.get("access-control-request-headers", "")
    asked = [name.strip().lower() for name in listed.split(",") if name.strip()]
    rule = find_rule(rules, origin, method, asked)
    if rule is None:
        raise S3Error(
            "AccessForbidden",
            "CORSResponse: This CORS request is not allowed. This is usually because the evaluation of Origin, request "
            "method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the "
            "resource's CORS spec.",
        )
    return [*_allowed(rule, origin), *([("access-control-allow-headers", ", ".join(asked))] if asked else [])]


def answer(rules: Sequence[CorsRule], method: str, headers: Mapping[str, str]) -> Headers:
    """What the answer to an ordinary request says besides."""
    origin = headers.get("origin")
    if not origin or not rules:
        return []
    rule = find_rule(rules, origin, headers.get("access-control-request-method", method), ())
    return [] if rule is None else _allowed(rule, origin)


def _allowed(rule: CorsRule, origin: str) -> Headers:
    anybody = "*" in rule.origins
    found = [("access-control-allow-origin", "*" if anybody else origin)]
    found.append(("access-control-allow-methods", ", ".join(rule.methods)))
    if rule.max_age_s is not None:
        found.append(("access-control-max-age", str(rule.max_age_s)))
    if not anybody:
        found.append(("access-control-allow-credentials", "true"))
    if rule.exposed:
        found.append(("access-control-expose-headers", ", ".join(rule.exposed)))
    return [*found, _VARY]
