"""Signatures against botocore's signers, and everything that must be refused."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from tieredfs_gateway.s3 import sigv4
from tieredfs_gateway.s3.errors import S3Error

ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def now() -> datetime:
    return datetime.now(UTC)


def signable(request: AWSRequest) -> sigv4.Signable:
    prepared = request.prepare()
    url = urlsplit(prepared.url)
    headers = [
        (name.lower(), value if isinstance(value, str) else value.decode()) for name, value in prepared.headers.items()
    ]
    if "host" not in dict(headers):
        headers.append(("host", url.netloc))
    return sigv4.Signable(prepared.method, url.path.encode(), url.query.encode(), headers)


def signed(method: str = "GET", url: str = "http://127.0.0.1:9000/b/k", **options: Any) -> sigv4.Signable:
    request = AWSRequest(method, url, headers=options.get("headers", {}), data=options.get("data", b""))
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(Credentials(ID, SECRET), "s3", "us-east-1").add_auth(request)
    return signable(request)


def presigned(expires_s: int = 60, url: str = "http://h/b/k", method: str = "GET") -> sigv4.Signable:
    request = AWSRequest(method, url)
    S3SigV4QueryAuth(Credentials(ID, SECRET), "s3", "us-east-1", expires=expires_s).add_auth(request)
    return signable(request)


def verify(request: sigv4.Signable, at: datetime | None = None, secret: str = SECRET) -> sigv4.Claim:
    claim = sigv4.read(request)
    assert claim is not None
    sigv4.verify(claim, secret, request, at or now())
    return claim


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/",
        "http://h/b/a%20b/%C3%A9%2B%25/..//x~y",
        "http://h/b?list-type=2&prefix=a%2Fb&delimiter=%2F&empty=",
        "http://h/b?acl",
        "http://h/b?b=2&a=1&a=0&A=3",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "POST"])
def test_what_botocore_signs_is_believed(method: str, url: str) -> None:
    claim = verify(
        signed(method, url, data=b"body", headers={"x-amz-meta-a": "  two   spaces ", "content-type": "a/b"})
    )
    assert claim.access_key_id == ID
    assert claim.payload == hashlib.sha256(b"body").hexdigest()
    verify(presigned(url=url, method=method))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_key_is_signed_as_botocore_signs_it(key: str) -> None:
    from urllib.parse import quote

    verify(signed("PUT", "http://h/b/" + quote(key, safe="/~")))


def change(request: sigv4.Signable, **changes: Any) -> sigv4.Signable:
    fields = {
        "method": request.method,
        "raw_path": request.raw_path,
        "raw_query": request.raw_query,
        "headers": request.headers,
    }
    return sigv4.Signable(**(fields | changes))


def refused(request: sigv4.Signable, at: datetime | None = None, secret: str = SECRET) -> str:
    with pytest.raises(S3Error) as caught:
        verify(request, at, secret)
    return caught.value.code


@pytest.mark.parametrize("make", [signed, presigned])
def test_nothing_can_be_changed(make: Any) -> None:
    good = make()
    verify(good)
    assert refused(change(good, method="DELETE")) == "SignatureDoesNotMatch"
    assert refused(change(good, raw_path=b"/b/other")) == "SignatureDoesNotMatch"
    assert refused(change(good, raw_query=good.raw_query + b"&versionId=1")) == "SignatureDoesNotMatch"
    assert refused(good, secret="other") == "SignatureDoesNotMatch"
    evil = [(name, "evil" if name == "host" else value) for name, value in good.headers]
    assert refused(change(good, headers=evil)) == "SignatureDoesNotMatch"
    added = change(good, headers=[*good.headers, ("x-amz-acl", "public-read")])
    assert refused(added) == "AccessDenied"
    gone = [(name, value) for name, value in good.headers if name != "host"]
    assert refused(change(good, headers=gone)) == "SignatureDoesNotMatch"


def test_clocks_may_differ_by_a_quarter_of_an_hour() -> None:
    good = signed()
    verify(good, now() + timedelta(minutes=14))
    verify(good, now() - timedelta(minutes=14))
    assert refused(good, now() + timedelta(minutes=16)) == "RequestTimeTooSkewed"
    assert refused(good, now() - timedelta(minutes=16)) == "RequestTimeTooSkewed"


class OfAnotherDay(S3SigV4Auth):
    """Signs truly, with the key of a day that is not the request's."""

    def scope(self, request: AWSRequest) -> str:
        return str(super().scope(request).replace(request.context["timestamp"][:8], "20251231"))

    def credential_scope(self, request: AWSRequest) -> str:
        return str(super().credential_scope(request).replace(request.context["timestamp"][:8], "20251231"))

    def signature(self, string_to_sign: str, request: AWSRequest) -> str:
        request.context["timestamp"] = "20251231T000000Z"
        return str(super().signature(string_to_sign, request))


def test_the_day_of_the_scope_is_that_of_the_request() -> None:
    request = AWSRequest("GET", "http://127.0.0.1:9000/b/k")
    OfAnotherDay(Credentials(ID, SECRET), "s3", "us-east-1").add_auth(request)
    assert refused(signable(request)) == "AuthorizationHeaderMalformed"


def test_links_expire() -> None:
    good = presigned(60)
    verify(good, now() + timedelta(seconds=50))
    assert refused(good, now() + timedelta(seconds=70)) == "AccessDenied"
    assert refused(good, now() - timedelta(minutes=16)) == "AccessDenied"
    assert refused(presigned(8 * 24 * 3600)) == "AuthorizationQueryParametersError"


def test_anonymous_requests_claim_nothing() -> None:
    assert sigv4.read(sigv4.Signable("GET", b"/b/k", b"", [("host", "h")])) is None


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("AWS id:signature", "InvalidRequest"),
        ("Bearer x", "InvalidArgument"),
        ("AWS4-HMAC-SHA256", "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host", "AuthorizationHeaderMalformed"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/s3/aws4_request, SignedHeaders=host, Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20260101/r/ec2/aws4_request, SignedHeaders=host, Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20260101/r/s3/aws4_request, SignedHeaders=date, Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20260101/r/s3/aws4_request, SignedHeaders=host, Signature=0",
            "SignatureDoesNotMatch",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20251231/r/s3/aws4_request, SignedHeaders=host, Signature=0",
            "SignatureDoesNotMatch",
        ),
    ],
)
def test_claims_that_make_no_sense_are_told_so(authorization: str, code: str) -> None:
    headers = [("host", "h"), ("x-amz-date", "20260101T000000Z"), ("x-amz-content-sha256", sigv4.UNSIGNED)]
    assert refused(sigv4.Signable("GET", b"/", b"", [*headers, ("authorization", authorization)])) == code


@pytest.mark.parametrize("date", ["yesterday", "20261301T000000Z", "", "Mon, 99 Foo 2026"])
def test_bad_dates_are_refused(date: str) -> None:
    good = signed()
    headers = [(name, date if name == "x-amz-date" else value) for name, value in good.headers]
    assert refused(change(good, headers=headers)) in (
        "AccessDenied",
        "AuthorizationHeaderMalformed",
        "SignatureDoesNotMatch",
    )


def test_two_mechanisms_at_once_are_refused() -> None:
    both = change(signed(), raw_query=presigned().raw_query)
    assert refused(both) == "InvalidArgument"


def test_what_is_remembered_of_queries_is_short_and_makes_no_difference() -> None:
    sigv4._remembered.cache_clear()
    query = b"b=%2f+x&a-=1&a=2&&c=" + b"y" * 300
    for _ in range(2):
        sigv4.parameters.cache_clear()
        found = sigv4.parameters(query)
        assert [(each.name, each.value[:3]) for each in found] == [
            (b"b", b"/ x"),
            (b"a-", b"1"),
            (b"a", b"2"),
            (b"c", b"yyy"),
        ]
        assert sigv4._canonical_query(query) == "a=2&a-=1&b=%2F%20x&c=" + "y" * 300
    assert (sigv4._remembered.cache_info().hits, sigv4._remembered.cache_info().currsize) == (3, 3)
