"""Codes, durabilities and names: round trips, limits, and errors that say what would be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.config import parse_code, parse_durability, parse_volume_name, volume_name_from
from tieredfs.errors import ConfigurationError
from tieredfs.limits import CODE_WIDTH_MAX
from tieredfs.model import Code, CodeKind, Durability

CODES = st.one_of(
    st.integers(0, CODE_WIDTH_MAX - 1).map(lambda parity: Code(CodeKind.REPLICA, 1, parity)),
    st.integers(1, CODE_WIDTH_MAX - 1).flatmap(
        lambda data: st.integers(1, CODE_WIDTH_MAX - data).map(lambda parity: Code(CodeKind.REED_SOLOMON, data, parity))
    ),
)


@given(CODES)
def test_every_code_round_trips(code: Code) -> None:
    assert parse_code(str(code)) == code


def test_codes_are_what_they_say() -> None:
    assert parse_code("rs:4+2") == Code(CodeKind.REED_SOLOMON, 4, 2)
    assert parse_code(" REPLICA:3 ") == Code(CodeKind.REPLICA, 1, 2)
    assert parse_code("replica:1").width == 1


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "rs:4\\+2"),
        ("4+2", "rs:4\\+2"),
        ("rs:4", "rs:4\\+2"),
        ("rs:4+2+1", "rs:4\\+2"),
        ("rs:0+2", "at least one data chunk"),
        ("rs:4+0", "rs:4\\+1 or more"),
        ("rs:30+3", "32 at most"),
        ("rs:-4+2", "rs:4\\+2"),
        ("replica:0", "1 to 32"),
        ("replica:33", "1 to 32"),
        ("mirror:2", "replica:3"),
        ("rs:٤+2", "rs:4\\+2"),
    ],
)
def test_bad_codes(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_code(text)


def test_durabilities() -> None:
    assert parse_durability("ssd") is Durability.SSD
    assert parse_durability(" Store ") is Durability.STORE
    for text in ("", "disk", "2"):
        with pytest.raises(ConfigurationError, match="ssd or store"):
            parse_durability(text)


@given(st.text(max_size=100))
def test_any_text_has_a_nearest_volume_name(text: str) -> None:
    name = volume_name_from(text)
    assert parse_volume_name(name) == name


@pytest.mark.parametrize("text", ["", "a b", "a:b", "ünder", ".hidden", "a" * 64, "a\n", "a/b"])
def test_bad_names(text: str) -> None:
    with pytest.raises(ConfigurationError, match="beginning with a letter or digit"):
        parse_volume_name(text)
