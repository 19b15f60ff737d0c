"""The text of a filter, parsed: never evaluated as code, and every complaint says where. Pure.

    expression := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation   := "not" negation | "(" expression ")" | test
    test       := name comparison literal | literal comparison name | name comparison name
                | name ["not"] "in" "(" literal ("," literal)* ")"
                | name ["not"] "between" literal "and" literal
                | name "is" ["not"] "null"
                | name                                            (a boolean column)
    comparison := "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    name       := word ("." word)* | "`" any text "`"
    literal    := number | "text" | 'text' | true | false | null

Words are the same in either case. A text literal beside a date or timestamp column is read as ISO 8601.
"""

import enum
import re
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import ConfigurationError

TEXT_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 100
LITERALS_MAX: Final = 10_000
_WHOLE_DIGITS_MAX: Final = 400
"""Of a whole number; a longer one is infinite: no column has such values."""

Value = int | float | str | bool | None


class Comparison(enum.Enum):
    """Of a column with a literal or a column."""

    EQUAL = "="
    DIFFERENT = "!="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="


_COMPARISONS: Final = {
    "=": Comparison.EQUAL,
    "==": Comparison.EQUAL,
    "!=": Comparison.DIFFERENT,
    "<>": Comparison.DIFFERENT,
    "<": Comparison.LESS,
    "<=": Comparison.AT_MOST,
    ">": Comparison.GREATER,
    ">=": Comparison.AT_LEAST,
}
MIRRORED: Final = {
    Comparison.EQUAL: Comparison.EQUAL,
    Comparison.DIFFERENT: Comparison.DIFFERENT,
    Comparison.LESS: Comparison.GREATER,
    Comparison.AT_MOST: Comparison.AT_LEAST,
    Comparison.GREATER: Comparison.LESS,
    Comparison.AT_LEAST: Comparison.AT_MOST,
}


@dataclass(frozen=True, slots=True)
class Name:
    """A column, and where the text says so."""

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Literal:
    """`text`: of a number, for those that a float cannot hold."""

    value: Value
    at: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Compare:
    left: Name
    how: Comparison
    right: Name | Literal


@dataclass(frozen=True, slots=True)
class IsIn:
    name: Name
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    name: Name


@dataclass(frozen=True, slots=True)
class IsTrue:
    name: Name


@dataclass(frozen=True, slots=True)
class Not:
    inner: "Node"


@dataclass(frozen=True, slots=True)
class And:
    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    parts: "tuple[Node, ...]"


Node = Compare | IsIn | IsNull | IsTrue | Not | And | Or


def bad_filter(text: str, at: int, problem: str) -> ConfigurationError:
    """Points at the place: the text around it, and a caret below."""
    start, end = max(0, at - 40), min(len(text), at + 40)
    around = text[start:end].replace("\n", " ")
    return ConfigurationError(f"filter, at character {at + 1}: {problem}\n  {around}\n  {' ' * (at - start)}^")


# ---- tokens ----------------------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?)(?![\w.])
  | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<quoted>`[^`]+`)
  | (?P<word>[^\W\d]\w*)
  | (?P<sign><=|>=|==|!=|<>|[=<>(),.])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_RESERVED: Final = {"and", "or", "not", "in", "is", "null", "between", "true", "false"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text.lower() == word


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            hint = "this text has no closing quote" if text[at] in "\"'`" else f"{text[at]!r} means nothing here"
            raise bad_filter(text, at, hint)
        if match.lastgroup != "space":
            found.append(_Token(match.lastgroup or "", match.group(), at))
        at = match.end()
    found.append(_Token("end", "", len(text)))
    return found


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text[1:-1], flags=re.DOTALL)


# ---- grammar ---------------------------------------------------------------------------------------------------------


def parse(text: str) -> Node:
    """Raises ConfigurationError with the place and a hint."""
    if len(text) > TEXT_MAX:
        raise ConfigurationError(f"the filter has {len(text)} characters; {TEXT_MAX} are the most")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def whole(self) -> Node:
        if self._peek().kind == "end":
            raise bad_filter(self._text, 0, "there is nothing in it")
        node = self._disjunction()
        if self._peek().kind != "end":
            raise self._wrong("`and`, `or` or the end was expected")
        return node

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _took_word(self, word: str) -> bool:
        if self._peek().is_word(word):
            self._next += 1
            return True
        return False

    def _took_sign(self, sign: str) -> bool:
        if self._peek().kind == "sign" and self._peek().text == sign:
            self._next += 1
            return True
        return False

    def _wrong(self, problem: str) -> ConfigurationError:
        return bad_filter(self._text, self._peek().at, problem)

    def _disjunction(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._wrong(f"more than {DEPTH_MAX} levels")
        parts = [self._conjunction()]
        while self._took_word("or"):
            parts.append(self._conjunction())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self) -> Node:
        parts = [self._negation()]
        while self._took_word("and"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _negation(self) -> Node:
        if self._took_word("not"):
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise self._wrong(f"more than {DEPTH_MAX} levels")
            node = Not(self._negation())
            self._depth -= 1
            return node
        if self._took_sign("("):
            node_inside = self._disjunction()
            self._closed()
            return node_inside
        return self._test()

    def _closed(self) -> None:
        if not self._took_sign(")"):
            raise self._wrong("`)` was expected")

    def _test(self) -> Node:
        if self._is_literal():
            return self._reversed()
        name = self._name()
        if self._peek().text in _COMPARISONS and self._peek().kind == "sign":
            how = _COMPARISONS[self._take().text]
            return Compare(name, how, self._literal() if self._is_literal() else self._name())
        if self._took_word("is"):
            return self._null_test(name)
        negated = self._took_word("not")
        if self._took_word("in"):
            node: Node = IsIn(name, self._list())
        elif self._took_word("between"):
            node = self._range(name)
        elif negated:
            raise self._wrong("`in` or `between` was expected after `not`")
        else:
            return IsTrue(name)
        return Not(node) if negated else node

    def _reversed(self) -> Node:
        """`3 < x`."""
        literal = self._literal()
        if not (self._peek().kind == "sign" and self._peek().text in _COMPARISONS):
            raise self._wrong("a comparison was expected after a literal")
        how = _COMPARISONS[self._take().text]
        return Compare(self._name(), MIRRORED[how], literal)

    def _null_test(self, name: Name) -> Node:
        negated = self._took_word("not")
        if not self._took_word("null"):
            raise self._wrong("`null` or `not null` was expected after `is`")
        return Not(IsNull(name)) if negated else IsNull(name)

    def _range(self, name: Name) -> Node:
        low = self._literal()
        if not self._took_word("and"):
            raise self._wrong("`and` was expected: `between 1 and 2`")
        high = self._literal()
        return And((Compare(name, Comparison.AT_LEAST, low), Compare(name, Comparison.AT_MOST, high)))

    def _list(self) -> tuple[Literal, ...]:
        if not self._took_sign("("):
            raise self._wrong('`(` was expected: `in ("a", "b")`')
        values = [self._literal()]
        while self._took_sign(",") and not (self._peek().kind == "sign" and self._peek().text == ")"):
            values.append(self._literal())
            if len(values) > LITERALS_MAX:
                raise self._wrong(f"more than {LITERALS_MAX} values")
        self._closed()
        return tuple(values)

    def _is_literal(self) -> bool:
        token = self._peek()
        return token.kind in {"number", "text"} or any(token.is_word(word) for word in ("true", "false", "null"))

    def _literal(self) -> Literal:
        if not self._is_literal():
            raise self._wrong("a number, a text in quotes, true, false or null was expected")
        token = self._take()
        if token.kind == "number":
            whole = len(token.text) <= _WHOLE_DIGITS_MAX and re.fullmatch(r"[-+]?\d+", token.text)
            return Literal(int(token.text) if whole else float(token.text), token.at, token.text)
        if token.kind == "text":
            return Literal(_unquoted(token.text), token.at)
        return Literal({"true": True, "false": False, "null": None}[token.text.lower()], token.at)

    def _name(self) -> Name:
        token = self._peek()
        if token.kind == "quoted":
            self._next += 1
            return Name(token.text[1:-1], token.at)
        if token.kind != "word" or token.text.lower() in _RESERVED:
            raise self._wrong("the name of a column was expected (in backquotes if it is not a plain word)")
        self._next += 1
        parts = [token.text]
        while self._took_sign("."):
            part = self._take()
            if part.kind != "word":
                raise bad_filter(self._text, part.at, "the name of a field was expected after `.`")
            parts.append(part.text)
        return Name(".".join(parts), token.at)
