"""URLs: what is right round-trips, braces expand as in a shell, and what is wrong is told what would be right."""

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.config import DiskUrl, SqliteUrl, expand_braces, parse_data_url, parse_data_urls, parse_meta_url
from tieredfs.errors import ConfigurationError

SEGMENTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda segment: segment not in {".", ".."}
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=5).map(lambda segments: "/" + "/".join(segments))


@given(PATHS)
def test_urls_round_trip(path: str) -> None:
    assert parse_meta_url(str(SqliteUrl(path))) == SqliteUrl(path)
    assert parse_data_url(str(DiskUrl(path))) == DiskUrl(path)


def test_one_volume_has_one_url() -> None:
    assert str(parse_meta_url("sqlite:////a//b/../volume.db/")) == "sqlite:///a/volume.db"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "like sqlite:///path/volume.db"),
        ("/a/volume.db", "did you mean sqlite:///a/volume.db"),
        ("volume.db", "like sqlite:///path/volume.db"),
        ("sqlite://volume.db", "three slashes: sqlite:///volume.db"),
        ("redis://localhost/1", "'redis' is no scheme"),
        ("disk:///a", "'disk' is no scheme"),
        ("sqlite:///", "root directory"),
        ("sqlite:///a/\0b", "no path"),
        ("sqlite:///" + "a/" * 3000, "no path"),
    ],
)
def test_bad_metadata_urls(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_meta_url(text)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("d{0..2}", ["d0", "d1", "d2"]),
        ("d{08..10}", ["d08", "d09", "d10"]),
        ("d{9..11}", ["d9", "d10", "d11"]),
        ("{a,b}/d{0..1}", ["a/d0", "a/d1", "b/d0", "b/d1"]),
        ("plain", ["plain"]),
        ("d{5..5}", ["d5"]),
    ],
)
def test_braces(text: str, expanded: list[str]) -> None:
    assert expand_braces(text) == expanded


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 120), st.integers(0, 12), st.lists(st.sampled_from("abcxyz"), min_size=2, max_size=4))
def test_braces_expand_as_in_the_shell(first: int, count: int, items: list[str]) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash to compare with")
    text = f"/p/{{{','.join(items)}}}/d{{{first}..{first + count}}}"
    out = subprocess.run([shell, "-c", f"echo {text}"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert expand_braces(text) == out.split()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("d{0..", "do not match"),
        ("d0}", "do not match"),
        ("d{{0..1}}", "do not match"),
        ("d{}", "neither a range"),
        ("d{a}", "neither a range"),
        ("d{a,}", "neither a range"),
        ("d{5..0}", "write {0..5}"),
        ("d{0..99999999}", "too long"),
        ("d{0..999}{0..999}", "at most 65535"),
    ],
)
def test_bad_braces(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        expand_braces(text)


def test_data_urls_expand_in_order() -> None:
    urls = parse_data_urls(["disk:///a/d{0..1}", "disk:///b"])
    assert urls == [DiskUrl("/a/d0"), DiskUrl("/a/d1"), DiskUrl("/b")]


@pytest.mark.parametrize(
    ("texts", "advice"),
    [
        ([], "at least one"),
        (["disk:///a", "disk:///a/"], "named twice"),
        (["disk:///a", "disk:///a/b/c"], "inside disk:///a"),
        (["file:///a"], "'file' is no scheme"),
        (["/a/b"], "did you mean disk:///a/b"),
        (["disk://a"], "disk:///a"),
    ],
)
def test_bad_data_urls(texts: list[str], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_data_urls(texts)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("postgresql://me@db.example/vol", None),
        ("postgres://me@db.example:5432/vol?schema=tieredfs", "postgresql://me@db.example/vol"),
        ("postgresql://a,b:5433/vol?sslmode=verify-full&sslrootcert=/etc/ca.pem&schema=train", None),
        ("postgresql://[::1]:7/vol", None),
        ("postgresql:///vol?host=/run/postgresql", "postgresql://%2Frun%2Fpostgresql/vol"),
        ("postgresql:///?service=prod", None),
        ("postgresql://m%40x@h/a%20b", None),
        ("postgresql://h/vol?passfile=/root/my%20pass", None),
    ],
)
def test_server_urls_have_one_spelling(text: str, canonical: str | None) -> None:
    parsed = parse_meta_url(text)
    if canonical is not None:
        assert str(parsed) == canonical
    else:
        assert {*str(parsed).partition("?")[2].split("&")} == {*text.partition("?")[2].split("&")}
    assert parse_meta_url(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://me:secret@h/vol", "no place for a password"),
        ("postgresql://me@h/vol?password=secret", "no place for a password"),
        ("postgresql://h/vol?options=-c%20secret", "'options' of the metadata URL is none of"),
        ("postgresql://h", "no database"),
        ("postgresql://h:port/vol", "no port"),
        ("postgresql://h:70000/vol", "no port"),
        ("postgresql://h,/vol", "empty host"),
        ("postgresql://h/vol?schema=public", "schema"),
        ("postgresql://h/vol?schema=Bad;drop", "schema"),
        ("postgresql://h/vol?host=/run", "two hosts"),
        ("postgresql://h/vol?sslmode=a&sslmode=b", "twice"),
        ("postgresql://h/vol?sslmode", "no list"),
        ("postgresql://h/a%00b", "control character"),
        ("postgresql://h/%ff", "no UTF-8"),
        ("mysql://me:secret@h/vol", "'mysql' is no scheme"),
    ],
)
def test_server_urls_that_make_no_sense_and_never_a_secret(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_meta_url(text)
    assert "secret" not in str(caught.value)


# ---- off this machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://my-bucket//a//b/", "s3://my-bucket/a/b"),
        (
            "s3://bucket/p?region=us-east-1&endpoint=http://127.0.0.1:9000/&capacity=10TiB",
            "s3://bucket/p?endpoint=http://127.0.0.1:9000&region=us-east-1&capacity=10TiB",
        ),
        ("node://storage-1:9400//mnt/./ssd0/t/", "node://storage-1:9400/mnt/ssd0/t"),
        ("node://[::1]:9400/t?tls=on", "node://[::1]:9400/t?tls=on"),
        ("node://10.0.0.1:9400/t?tls=off", "node://10.0.0.1:9400/t"),
    ],
)
def test_remote_urls_have_one_form(text: str, canonical: str) -> None:
    url = parse_data_url(text)
    assert str(url) == canonical
    assert parse_data_url(canonical) == url


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("s3://", "no name of a bucket"),
        ("s3://B/x", "no name of a bucket"),
        ("s3://bucket/../x", "no prefix"),
        ("s3://bucket/" + "a" * 1000, "no prefix"),
        ("s3://bucket/p?endpoint=ftp://x", "endpoint is http"),
        ("s3://bucket/p?endpoint=http://me:secret@host", "no credentials"),
        ("s3://bucket/p?access_key=AKIA", "no setting here"),
        ("s3://bucket/p?region=", "no setting here"),
        ("s3://bucket/p?region=a&region=b", "no setting here"),
        ("s3://bucket/p?region=$", "no region"),
        ("s3://bucket/p?capacity=lots", "lots"),
        ("node://host/x", "no HOST:PORT"),
        ("node://me:pw@host:1/x", "no HOST:PORT"),
        ("node://host:0/x", "no HOST:PORT"),
        ("node://host:99999/x", "no HOST:PORT"),
        ("node://host:9400", "names no directory"),
        ("node://host:9400/", "names no directory"),
        ("node://host:9400/a/../b", "names no directory"),
        ("node://host:9400/a?tls=maybe", "on or off"),
    ],
)
def test_bad_remote_urls(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_data_url(text)


@pytest.mark.parametrize(
    ("texts", "advice"),
    [
        (["s3://bucket/a", "s3://bucket/a/?region=x"], "named twice"),
        (["s3://bucket/a/b", "s3://bucket/a"], "inside s3://bucket/a"),
        (["s3://bucket", "s3://bucket/a"], "inside s3://bucket"),
        (["node://h:1/a", "node://h:1/a/b"], "inside node://h:1/a"),
        (["node://h:1/a", "node://h:1/a?tls=on"], "named twice"),
    ],
)
def test_remote_stores_do_not_overlap(texts: list[str], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_data_urls(texts)


def test_kinds_of_stores_mix() -> None:
    urls = parse_data_urls(["node://n{1..2}:9400/mnt/ssd{0..1}/t", "disk:///a", "s3://bucket/a", "s3://bucket/ab"])
    assert len({url.place for url in urls}) == 7
