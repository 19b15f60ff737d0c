"""Lifecycle rules: reading them as S3 validates them, and deciding what is due. Pure; time is an argument.

What is to expire N days after its day began to count is due at the midnight (UTC) after those days are over. A version
becomes noncurrent when the next newer one is made. Transitions are refused: there is one storage class.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.tagging import checked_tags
from tieredfs_gateway.s3.xml import Element

RULES_MAX: Final = 1000
DAY_NS: Final = 86_400 * 1_000_000_000
LAST_NS: Final = (date(9999, 12, 31) - date(1970, 1, 1)).days * DAY_NS
"""A date that a header can say."""
_ACTIONS: Final = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_TRANSITIONS: Final = ("Transition", "NoncurrentVersionTransition")


@dataclass(frozen=True, slots=True)
class Filter:
    prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    larger_than: int | None = None
    smaller_than: int | None = None

    def matches(self, key: str, size_bytes: int, tags: Mapping[str, str]) -> bool:
        return (
            key.startswith(self.prefix)
            and (self.larger_than is None or size_bytes > self.larger_than)
            and (self.smaller_than is None or size_bytes < self.smaller_than)
            and all(tags.get(name) == value for name, value in self.tags)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What is None is not asked for."""

    rule_id: str
    enabled: bool
    filter: Filter
    days: int | None = None
    at_ns: int | None = None
    lone_markers: bool = False
    noncurrent_days: int | None = None
    noncurrent_kept: int = 0
    abort_days: int | None = None


# ---- deciding --------------------------------------------------------------------------------------------------------


def midnight_after(since_ns: int, days: int) -> int:
    """The first midnight that is not before `days` after, or the last of the calendar."""
    return min(-(-(since_ns + days * DAY_NS) // DAY_NS) * DAY_NS, LAST_NS)


def expires(
    rules: Iterable[Rule], key: str, size_bytes: int, tags: Mapping[str, str], made_ns: int
) -> tuple[int, str] | None:
    """When the current version is due, and by which rule: the earliest."""
    due = []
    for rule in rules:
        if not rule.enabled or not rule.filter.matches(key, size_bytes, tags):
            continue
        if rule.days is not None:
            due.append((midnight_after(made_ns, rule.days), rule.rule_id))
        elif rule.at_ns is not None:
            due.append((rule.at_ns, rule.rule_id))
    return min(due, default=None)


def noncurrent_is_due(
    rules: Iterable[Rule], key: str, size_bytes: int, tags: Mapping[str, str], since_ns: int, newer: int, now_ns: int
) -> bool:
    """`newer`: how many noncurrent versions are newer than this one."""
    return any(
        rule.enabled
        and rule.noncurrent_days is not None
        and newer >= rule.noncurrent_kept
        and rule.filter.matches(key, size_bytes, tags)
        and midnight_after(since_ns, rule.noncurrent_days) <= now_ns
        for rule in rules
    )


def lone_marker_is_due(rules: Iterable[Rule], key: str, made_ns: int, now_ns: int) -> bool:
    """A delete marker that is the only version of its key: an expiration by days takes it away, too."""
    return any(
        rule.enabled
        and key.startswith(rule.filter.prefix)
        and not rule.filter.tags
        and (rule.lone_markers or (rule.days is not None and midnight_after(made_ns, rule.days) <= now_ns))
        for rule in rules
    )


def upload_is_due(rules: Iterable[Rule], key: str, begun_ns: int, now_ns: int) -> bool:
    return any(
        rule.enabled
        and rule.abort_days is not None
        and key.startswith(rule.filter.prefix)
        and midnight_after(begun_ns, rule.abort_days) <= now_ns
        for rule in rules
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse_lifecycle(document: Element) -> tuple[Rule, ...]:
    """Raises S3Error MalformedXML, InvalidArgument, InvalidRequest, NotImplemented."""
    elements = document.all("Rule")
    if not 1 <= len(elements) <= RULES_MAX:
        raise S3Error("MalformedXML", f"From 1 to {RULES_MAX} rules.")
    rules = tuple(_rule(element, number) for number, element in enumerate(elements, 1))
    if len({rule.rule_id for rule in rules}) != len(rules):
        raise S3Error("InvalidArgument", "Rule ID must be unique. Found same ID for more than one rule")
    return rules


def _rule(element: Element, number: int) -> Rule:
    rule_id = element.get("ID") or f"rule-{number}"
    if len(rule_id) > 255:
        raise S3Error("InvalidArgument", "ID length should not exceed allowed limit of 255")
    if element.need("Status") not in ("Enabled", "Disabled"):
        raise S3Error("MalformedXML", "Status is Enabled or Disabled.")
    transitions = [transition for name in _TRANSITIONS for transition in element.all(name)]
    for transition in transitions:
        _midnight(transition.get("Date") or "1970-01-01")
    if transitions:
        raise S3Error("NotImplemented", "Transitions are not implemented: there is one storage class.")
    if not any(element.all(name) for name in _ACTIONS):
        raise S3Error("InvalidRequest", "At least one action needs to be specified in a rule.")
    chosen = _filter(element)
    days, at_ns, lone_markers = _expiration(_only(element, "Expiration"), chosen)
    old, uploads = _only(element, "NoncurrentVersionExpiration"), _only(element, "AbortIncompleteMultipartUpload")
    if uploads is not None and (chosen.tags or chosen.larger_than is not None or chosen.smaller_than is not None):
        raise S3Error("InvalidRequest", "AbortIncompleteMultipartUpload cannot be specified with Tags or sizes.")
    return Rule(
        rule_id,
        element.need("Status") == "Enabled",
        chosen,
        days,
        at_ns,
        lone_markers,
        None if old is None else _positive(old.need("NoncurrentDays"), "NoncurrentDays"),
        0 if old is None else _number(old.get("NewerNoncurrentVersions") or "0", "NewerNoncurrentVersions"),
        None if uploads is None else _positive(uploads.need("DaysAfterInitiation"), "DaysAfterInitiation"),
    )


def _only(element: Element, name: str) -> Element | None:
    found = element.all(name)
    if len(found) > 1:
        raise S3Error("MalformedXML", f"{name} is there more than once.")
    return found[0] if found else None


def _filter(element: Element) -> Filter:
    chosen = _only(element, "Filter")
    if chosen is None:
        prefix = element.exact("Prefix")
        if prefix is None:
            raise S3Error("MalformedXML", "A rule needs a Filter or a Prefix.")
        return Filter(prefix)
    if element.all("Prefix") or len(chosen.children) > 1:
        raise S3Error("MalformedXML", "A Filter has one condition, or And.")
    both = _only(chosen, "And")
    return _conditions(chosen if both is None else both)


def _conditions(element: Element) -> Filter:
    tags = [(tag.exact("Key") or "", tag.exact("Value") or "") for tag in element.all("Tag")]
    sizes = [element.get(name) for name in ("ObjectSizeGreaterThan", "ObjectSizeLessThan")]
    larger, smaller = (None if text is None else _number(text, "ObjectSize") for text in sizes)
    return Filter(element.exact("Prefix") or "", tuple(checked_tags(tags).items()), larger, smaller)


def _expiration(element: Element | None, chosen: Filter) -> tuple[int | None, int | None, bool]:
    if element is None:
        return None, None, False
    if len(element.children) != 1:
        raise S3Error("MalformedXML", "An Expiration has Days, Date or ExpiredObjectDeleteMarker.")
    days, date, marker = (element.get(name) for name in ("Days", "Date", "ExpiredObjectDeleteMarker"))
    if days is not None:
        return _positive(days, "'Days' for Expiration action"), None, False
    if date is not None:
        return None, _midnight(date), False
    if marker not in ("true", "false"):
        raise S3Error("MalformedXML")
    if chosen.tags:
        raise S3Error("InvalidRequest", "ExpiredObjectDeleteMarker cannot be specified with Tags.")
    return None, None, marker == "true"


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise S3Error("MalformedXML", f"{name} is a number.")
    return int(text)


def _positive(text: str, name: str) -> int:
    if re.fullmatch(r"-\d{1,9}", text, re.ASCII) or _number(text, name) == 0:
        raise S3Error("InvalidArgument", f"{name} must be a positive integer")
    return int(text)


def _midnight(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text if "-" in text else "")  # S3 does not know 20300101
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise S3Error("MalformedXML", "Date is an ISO 8601 date.") from error
    at_ns = int(moment.timestamp()) * 1_000_000_000
    if at_ns % DAY_NS or moment.microsecond:
        raise S3Error("InvalidArgument", "'Date' must be at midnight GMT")
    return at_ns


def with_ids(document: Element, rules: Sequence[Rule]) -> None:
    """Give the rules of a document the ids that they were read with."""
    for element, rule in zip(document.all("Rule"), rules, strict=True):
        if not element.get("ID"):
            element.children = [child for child in element.children if child.name != "ID"]
            added = Element("ID")
            added.text = rule.rule_id
            element.children.insert(0, added)
