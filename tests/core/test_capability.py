"""Tokens allow what they name, for a minute, and nothing else: by values alone."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.core.capability import LIFE_S, SKEW_S, Right, Verb, Verdict, judge, make_token

SECRET = b"sixteen bytes or more"
RIGHTS = st.builds(Right, st.sampled_from(Verb), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))


@given(RIGHTS, st.integers(0, 1 << 40))
def test_a_token_allows_what_it_names(right: Right, now_s: int) -> None:
    assert judge(make_token(SECRET, right, now_s), SECRET, right, now_s) is Verdict.GOOD


@given(RIGHTS, RIGHTS)
def test_a_token_allows_nothing_else(right: Right, wanted: Right) -> None:
    verdict = judge(make_token(SECRET, right, 0), SECRET, wanted, 0)
    assert verdict is (Verdict.GOOD if wanted == right else Verdict.SCOPE)


@pytest.mark.parametrize(
    ("now_s", "verdict"),
    [
        (1000 - SKEW_S, Verdict.GOOD),
        (1000 - SKEW_S - 1, Verdict.EARLY),
        (1000 + LIFE_S, Verdict.GOOD),
        (1000 + LIFE_S + SKEW_S - 1, Verdict.GOOD),
        (1000 + LIFE_S + SKEW_S, Verdict.EXPIRED),
    ],
)
def test_clocks_may_differ_a_little(now_s: int, verdict: Verdict) -> None:
    right = Right(Verb.READ, "v", "d", "c")
    assert judge(make_token(SECRET, right, 1000), SECRET, right, now_s) is verdict


@given(st.binary(max_size=200), st.text(max_size=200))
def test_garbage_is_invalid(raw: bytes, text: str) -> None:
    right = Right(Verb.READ, "v", "d", "c")
    for token in (text, f"v1.{text}", f"v1.{base64.urlsafe_b64encode(raw).decode()}.{text}"):
        assert judge(token, SECRET, right, 0) in {Verdict.INVALID, Verdict.MISSING}


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_token_is_invalid(at: int, change: int) -> None:
    right = Right(Verb.READ, "v", "d", "c")
    token = bytearray(make_token(SECRET, right, 0).encode())
    at %= len(token)
    token[at] ^= change
    assert judge(token.decode("latin-1"), SECRET, right, 0) is not Verdict.GOOD


def test_signed_nonsense_is_invalid() -> None:
    from tieredfs.core import capability

    nonsense: list[object] = [{}, [], ["read"], ["fly", "v", "d", "c", 5], ["read", "v", "d", "c", "soon"]]
    for claims in nonsense:
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        token = f"v1.{body}.{capability._packed(capability._mac(SECRET, body))}"
        assert judge(token, SECRET, Right(Verb.READ, "v", "d", "c"), 0) is Verdict.INVALID
