"""Any legal key has a place below its bucket, and every place shows as one key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs_gateway.s3 import keys
from tieredfs_gateway.s3.errors import S3Error

SEGMENTS = st.one_of(
    st.sampled_from(
        [b"", b".", b"..", b"a", b"b.txt", b".%", b".%:", b".%=a", b".%+", b"\0", b"\1", b"\1\2\0", b"x" * 255]
    ),
    st.binary(max_size=6).map(lambda raw: raw.replace(b"/", b"")),
    st.integers(200, 400).map(lambda count: b"y" * count),
)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=6).map(b"/".join)


def key_of(path: bytes) -> bytes:
    """The oracle's way back: name by name."""
    key = b""
    names = path.split(b"/")
    for at, name in enumerate(names):
        shown = keys.shown(name)
        assert shown is not None
        key += shown[0] + (shown[1] if at < len(names) - 1 else b"")
    return key


@given(KEYS)
def test_every_key_comes_back_from_both_of_its_places(key: bytes) -> None:
    own, beside = keys.places(key)
    assert own != beside
    assert key_of(own) == key_of(beside) == key
    for path in (own, beside):
        for name in path.split(b"/"):
            assert 0 < len(name) <= 255
            assert name not in (b".", b"..")
            assert b"\0" not in name


@given(KEYS, KEYS)
def test_no_two_keys_share_a_place(first: bytes, second: bytes) -> None:
    if first != second:
        assert not set(keys.places(first)) & set(keys.places(second))


@given(KEYS, KEYS)
def test_no_object_lies_where_another_needs_a_directory_but_at_its_own_place(first: bytes, second: bytes) -> None:
    assert not keys.places(first)[0].startswith(keys.places(second)[1] + b"/")


@pytest.mark.parametrize(
    "key", [b"a", b"a/b/c.txt", b"dt=2024-01-01/part-0.parquet", "é/ü".encode(), b" a / b ", b"%2F"]
)
def test_ordinary_keys_look_in_the_mount_as_in_s3(key: bytes) -> None:
    assert keys.places(key)[0] == key


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (b"", b".%:"),
        (b"/", b".%:/.%:"),
        (b"dir/", b"dir/.%:"),
        (b"a//b", b"a/.%:/b"),
        (b"../../etc/passwd", b".%:../.%:../etc/passwd"),
        (b"./a", b".%:./a"),
        (b"a\0b", b".%:a\1\1b"),
        (b"x" * 256, b".%+" + b"x" * 120 + b"/" + b"x" * 136),
    ],
)
def test_what_no_file_system_can_name_is_written_as_documented(key: bytes, place: bytes) -> None:
    assert keys.places(key)[0] == place


@pytest.mark.parametrize("name", [b".%", b".%?a", b".%:\1", b".%:\1\3", b".%+short"])
def test_a_name_that_no_key_has_shows_as_none(name: bytes) -> None:
    assert keys.shown(name) is None


def test_keys_are_1024_bytes_of_utf_8_at_most() -> None:
    keys.check_key(b"/" * 1024)
    with pytest.raises(S3Error) as long:
        keys.check_key(b"k" * 1025)
    assert long.value.code == "KeyTooLongError"
    with pytest.raises(S3Error) as broken:
        keys.check_key(b"\xff")
    assert broken.value.code == "InvalidURI"
