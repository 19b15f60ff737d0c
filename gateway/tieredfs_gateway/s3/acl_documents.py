"""ACLs as documents: what is asked for, and what is answered. Pure."""

from typing import Final

from tieredfs_gateway.s3 import xml
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import Request, Response, xml_response
from tieredfs_gateway.s3.public_access import GRANTS, OWNER_ID, asked_grants, canned_acl, parse_acl

OWNER: Final = {"ID": OWNER_ID, "DisplayName": "tieredfs"}
_XSI: Final = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def asked_acl(request: Request, body: bytes) -> str:
    """Of a call that sets one, in a header or as a document. Raises S3Error."""
    if body.strip():
        if "x-amz-acl" in request.headers or asked_grants(request.headers):
            raise S3Error("UnexpectedContent")
        return parse_acl(xml.parse(body, "AccessControlPolicy"))
    if "x-amz-acl" not in request.headers and not asked_grants(request.headers):
        raise S3Error("MissingSecurityHeader")
    return canned_acl(request.headers)


def acl_response(acl: str) -> Response:
    owner = {"Grantee": {"ID": OWNER["ID"], "DisplayName": OWNER["DisplayName"]}, "Permission": "FULL_CONTROL"}
    said = sorted(GRANTS.get(acl, ()))
    grants: list[xml.Tree] = [{"Grantee": {"URI": group}, "Permission": permission} for group, permission in said]
    grants.append(owner)
    response = xml_response("AccessControlPolicy", {"Owner": OWNER, "AccessControlList": {"Grant": grants}})
    body = response.body
    for kind, first in (("CanonicalUser", "ID"), ("Group", "URI")):  # the kind is an attribute, as clients expect it
        typed = f'<Grantee {_XSI} xsi:type="{kind}"><{first}>'
        body = body.replace(f"<Grantee><{first}>".encode(), typed.encode())
    return Response(200, response.headers, body)
