"""CORS: rules as values, and what a browser is told over real HTTP."""

from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from tests import web
from tests.s3.endpoint import Endpoint
from tieredfs_gateway.s3 import xml
from tieredfs_gateway.s3.cors import find_rule, parse_cors

RULES: list[dict[str, Any]] = [
    {
        "AllowedOrigins": ["https://*.example.com", "https://exact.org"],
        "AllowedMethods": ["PUT", "GET"],
        "AllowedHeaders": ["x-amz-*", "Content-Type"],
        "ExposeHeaders": ["ETag", "x-amz-version-id"],
        "MaxAgeSeconds": 300,
    },
    {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]},
]


@pytest.fixture
def open_bucket(s3: Any, bucket: str) -> str:
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": RULES})
    return bucket


def preflight(served: Endpoint, bucket: str, origin: str, method: str, headers: str = "") -> httpx.Response:
    sent = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers:
        sent["Access-Control-Request-Headers"] = headers
    return web.request("OPTIONS", f"{served.url}/{bucket}/k", headers=sent)


def test_what_is_set_is_shown_and_goes(s3: Any, open_bucket: str) -> None:
    assert s3.get_bucket_cors(Bucket=open_bucket)["CORSRules"] == RULES
    s3.delete_bucket_cors(Bucket=open_bucket)
    with pytest.raises(ClientError, match="NoSuchCORSConfiguration"):
        s3.get_bucket_cors(Bucket=open_bucket)


def test_preflights_are_answered_to_anybody(served: Endpoint, open_bucket: str) -> None:
    answer = preflight(served, open_bucket, "https://a.example.com", "PUT", "Content-Type, X-Amz-Date")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example.com"
    assert answer.headers["access-control-allow-methods"] == "PUT, GET"
    assert answer.headers["access-control-allow-headers"] == "content-type, x-amz-date"
    assert answer.headers["access-control-max-age"] == "300"
    assert answer.headers["access-control-expose-headers"] == "ETag, x-amz-version-id"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "Origin" in answer.headers["vary"]
    anybody = preflight(served, open_bucket, "https://else.where", "GET")
    assert anybody.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in anybody.headers


@pytest.mark.parametrize(
    ("origin", "method", "headers", "status"),
    [
        ("https://else.where", "PUT", "", 403),
        ("https://exact.org", "DELETE", "", 403),
        ("https://exact.org", "PUT", "authorization", 403),
        ("http://exact.org.evil.com", "PUT", "", 403),
        ("", "GET", "", 400),
        ("https://exact.org", "", "", 400),
    ],
)
def test_preflights_that_no_rule_allows(
    served: Endpoint, open_bucket: str, origin: str, method: str, headers: str, status: int
) -> None:
    answer = preflight(served, open_bucket, origin, method, headers)
    assert answer.status_code == status
    assert b"<Code>" in answer.content


def test_a_bucket_without_rules_allows_nothing(served: Endpoint, bucket: str) -> None:
    assert preflight(served, bucket, "https://a.example.com", "GET").status_code == 403
    assert preflight(served, "no-such-bucket-here", "https://a.example.com", "GET").status_code == 403


def test_answers_say_who_may_read_them_errors_too(served: Endpoint, s3: Any, open_bucket: str) -> None:
    s3.put_object(Bucket=open_bucket, Key="k", Body=b"1")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": open_bucket, "Key": "k"})
    answer = web.get(url, headers={"Origin": "https://exact.org"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://exact.org"
    assert answer.headers["access-control-expose-headers"] == "ETag, x-amz-version-id"
    refused = web.get(f"{served.url}/{open_bucket}/k", headers={"Origin": "https://exact.org"})
    assert refused.status_code == 403
    assert refused.headers["access-control-allow-origin"] == "https://exact.org"
    assert "access-control-allow-origin" not in web.get(url).headers


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"AllowedMethods": ["PATCH"]}, "InvalidRequest"),
        ({"AllowedOrigins": ["https://*.*.com"]}, "InvalidRequest"),
        ({"AllowedHeaders": ["*-*"]}, "InvalidRequest"),
        ({"ExposeHeaders": ["x-*"]}, "InvalidRequest"),
        ({"AllowedOrigins": []}, "MalformedXML"),
    ],
)
def test_rules_that_are_none(s3: Any, bucket: str, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(ClientError, match=code):
        s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [RULES[0] | changes]})


def test_the_first_rule_that_matches_decides() -> None:
    rules = parse_cors(
        xml.parse(
            b"<CORSConfiguration><CORSRule><AllowedOrigin>a*c</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>"
            b"<CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>",
            "CORSConfiguration",
        )
    )
    assert find_rule(rules, "abc", "GET", ()) is rules[0]
    assert find_rule(rules, "ac", "GET", ()) is rules[0]
    assert find_rule(rules, "a", "GET", ()) is rules[1]
    assert find_rule(rules, "ac", "PUT", ()) is None
