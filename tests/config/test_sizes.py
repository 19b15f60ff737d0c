"""Sizes and durations: what is right round-trips, what is wrong is refused with a word of what would be right."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.config import format_duration, format_size, parse_duration, parse_size
from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError
from tieredfs.limits import GIB, MIB, TIB

SIZES = [
    ("0", 0),
    ("4096", 4096),
    ("512M", 512 * MIB),
    ("512m", 512 * MIB),
    ("10GiB", 10 * GIB),
    ("10 GiB", 10 * GIB),
    ("10g", 10 * GIB),
    ("1.5T", 3 * TIB // 2),
    ("7B", 7),
    (" 1k ", 1024),
    ("0.1K", 102),
]


@pytest.mark.parametrize(("text", "size_bytes"), SIZES)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "like 512M"),
        ("ten", "like 512M"),
        ("-5G", "like 512M"),
        ("1e9", "like 512M"),
        ("10GB", "10GiB"),
        ("5iB", "like 512M"),
        ("1.5", "1.5G"),
        ("99999999P", "at most"),
        ("\u0661\u0660G", "like 512M"),
        ("0x10", "like 512M"),
        ("9" * 5000, "like 512M"),
    ],
)
def test_bad_sizes(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_size(text)


def test_a_size_that_must_not_be_zero() -> None:
    assert parse_positive_size("1") == 1
    with pytest.raises(ConfigurationError, match="10GiB"):
        parse_positive_size("0G")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 * GIB // 2, "1.50 GiB"), (64 * MIB, "64.0 MiB"),
     (-2048, "-2.00 KiB"), (1023 * MIB, "1.00 GiB"), (5000 << 50, "5000 PiB")],
)  # fmt: skip
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1 << 62))
def test_formatted_sizes_parse_back_within_three_digits(size_bytes: int) -> None:
    assert abs(parse_size(format_size(size_bytes)) - size_bytes) <= size_bytes * 0.0051 + 1


@given(st.integers(0, 1 << 40))
def test_plain_bytes_round_trip(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_configuration_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("30", 30), ("1.5s", 1.5), ("200ms", 0.2), ("10m", 600), ("10 min", 600), ("2h", 7200), ("1D", 86400)],
)  # fmt: skip
def test_durations(text: str, duration_s: float) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1w", "1h30m", "nan", "inf"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigurationError, match="like 200ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.25, "0.2 s"), (42, "42 s"), (200, "3 m 20 s"), (7500, "2 h 5 m"), (3600, "1 h"), (273600, "3 d 4 h")],
)  # fmt: skip
def test_durations_for_people(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


@given(st.integers(10, 59))
def test_formatted_seconds_parse_back(duration_s: int) -> None:
    assert parse_duration(format_duration(duration_s)) == duration_s
