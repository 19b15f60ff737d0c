"""What an S3 client is told when something does not work: the one table of this edge.

A code has one status and a sentence; a domain error of the volume has one code. A test holds the second table total
over `tieredfs.errors.domain_errors()`.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tieredfs import errors


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, and what the client reads unless the place of the error knows better."""

    status: int
    message: str


CODES: Final[dict[str, Answer]] = {
    "AccessControlListNotSupported": Answer(400, "The bucket does not allow ACLs."),
    "AccessDenied": Answer(403, "Access Denied"),
    "AccessForbidden": Answer(403, "CORSResponse: This CORS request is not allowed."),
    "AuthorizationHeaderMalformed": Answer(400, "The authorization header is malformed."),
    "AuthorizationQueryParametersError": Answer(400, "The query parameters of the authorization are malformed."),
    "BadDigest": Answer(400, "The checksum that you sent does not match what we received."),
    "BucketAlreadyExists": Answer(409, "The requested bucket name is not available."),
    "BucketAlreadyOwnedByYou": Answer(409, "Your previous request to create the named bucket succeeded."),
    "BucketNotEmpty": Answer(409, "The bucket that you tried to delete is not empty."),
    "ConditionalRequestConflict": Answer(409, "A conflicting operation occurred; try again."),
    "EntityTooLarge": Answer(400, "The proposed upload exceeds the maximum allowed size."),
    "EntityTooSmall": Answer(400, "A part that is not the last one is smaller than the minimum allowed size."),
    "IllegalLocationConstraintException": Answer(400, "The location constraint is not one of this endpoint's."),
    "IncompleteBody": Answer(400, "You did not provide the number of bytes that the request announced."),
    "InternalError": Answer(500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": Answer(403, "The access key id that you provided does not exist in our records."),
    "InvalidArgument": Answer(400, "Invalid argument."),
    "InvalidBucketAclWithObjectOwnership": Answer(
        400, "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting"
    ),
    "InvalidBucketName": Answer(400, "The specified bucket is not valid."),
    "InvalidDigest": Answer(400, "The Content-MD5 that you specified is not valid."),
    "InvalidPart": Answer(400, "One or more of the specified parts could not be found, or its ETag does not match."),
    "InvalidPartNumber": Answer(416, "The requested part number is not satisfiable."),
    "InvalidPartOrder": Answer(400, "The list of parts was not in ascending order."),
    "InvalidPolicyDocument": Answer(
        400, "The content of the form does not meet the conditions specified in the policy document."
    ),
    "InvalidRange": Answer(416, "The requested range is not satisfiable."),
    "InvalidRequest": Answer(400, "Invalid request."),
    "InvalidStorageClass": Answer(400, "The storage class you specified is not valid."),
    "InvalidTag": Answer(400, "The tag provided was not a valid tag."),
    "InvalidURI": Answer(400, "Could not parse the specified URI."),
    "KeyTooLongError": Answer(400, "Your key is too long."),
    "MalformedPOSTRequest": Answer(400, "The body of your POST request is not well-formed multipart/form-data."),
    "MalformedPolicy": Answer(400, "The policy has an invalid element."),
    "MalformedXML": Answer(400, "The XML that you provided was not well-formed or did not validate."),
    "MaxMessageLengthExceeded": Answer(400, "Your request was too big."),
    "MaxPostPreDataLengthExceededError": Answer(
        400, "Your POST request fields preceding the upload file were too large."
    ),
    "MetadataTooLarge": Answer(400, "Your metadata headers exceed the maximum allowed metadata size."),
    "MethodNotAllowed": Answer(405, "The specified method is not allowed against this resource."),
    "MissingContentLength": Answer(411, "You must provide the Content-Length HTTP header."),
    "MissingSecurityHeader": Answer(
        400, "Your request is missing a required header: x-amz-acl, or an AccessControlPolicy."
    ),
    "NoSuchBucket": Answer(404, "The specified bucket does not exist."),
    "NoSuchBucketPolicy": Answer(404, "The bucket policy does not exist."),
    "NoSuchCORSConfiguration": Answer(404, "The CORS configuration does not exist."),
    "NoSuchKey": Answer(404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": Answer(404, "The lifecycle configuration does not exist."),
    "NoSuchPublicAccessBlockConfiguration": Answer(404, "The public access block configuration was not found."),
    "NoSuchTagSet": Answer(404, "There is no tag set."),
    "NoSuchUpload": Answer(404, "The specified multipart upload does not exist."),
    "NoSuchVersion": Answer(404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": Answer(404, "The specified bucket does not have a website configuration."),
    "NotImplemented": Answer(501, "A header or query that you provided asks for what is not implemented."),
    "NotModified": Answer(304, "Not modified."),
    "ObjectLockConfigurationNotFoundError": Answer(404, "Object lock does not exist for this bucket."),
    "OwnershipControlsNotFoundError": Answer(404, "The bucket ownership controls were not found."),
    "PreconditionFailed": Answer(412, "At least one of the preconditions that you specified did not hold."),
    "QuotaExceeded": Answer(403, "A quota would be exceeded; delete objects, or have it raised."),
    "ReplicationConfigurationNotFoundError": Answer(404, "The replication configuration was not found."),
    "RequestHeaderSectionTooLarge": Answer(400, "Your request headers exceed the maximum allowed size."),
    "RequestTimeTooSkewed": Answer(403, "The difference between the request time and the server's is too large."),
    "RequestTimeout": Answer(400, "Your socket connection was not read from or written to within the timeout."),
    "ServerSideEncryptionConfigurationNotFoundError": Answer(404, "There is no encryption configuration."),
    "ServiceUnavailable": Answer(503, "Please reduce your request rate or try again."),
    "SignatureDoesNotMatch": Answer(403, "The request signature we calculated does not match the one you provided."),
    "SlowDown": Answer(503, "Please reduce your request rate."),
    "UnresolvableGrantByEmailAddress": Answer(
        400, "The email address you provided does not match any account on record."
    ),
    "UnexpectedContent": Answer(400, "This request does not support content."),
    "XAmzContentSHA256Mismatch": Answer(400, "The provided x-amz-content-sha256 does not match what was computed."),
}


class S3Error(Exception):
    """Something to tell the client. `fields` go into the XML, `headers` with the response."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        answer = CODES[code]
        super().__init__(message or answer.message)
        self.code = code
        self.status = answer.status
        self.message = message or answer.message
        self.fields = dict(fields or {})
        self.headers = dict(headers or {})


CODE_OF: Final[dict[type[errors.TieredError], str]] = {
    errors.NotFoundError: "NoSuchKey",
    errors.StaleError: "NoSuchKey",
    errors.AlreadyExistsError: "PreconditionFailed",
    errors.NotDirectoryError: "NoSuchKey",
    errors.IsDirectoryError: "NoSuchKey",
    errors.DirectoryNotEmptyError: "BucketNotEmpty",
    errors.InvalidRequestError: "InvalidArgument",
    errors.NameTooLongError: "KeyTooLongError",
    errors.TooLargeError: "EntityTooLarge",
    errors.TooManyLinksError: "InvalidRequest",
    errors.NotPermittedError: "AccessDenied",
    errors.AccessDeniedError: "AccessDenied",
    errors.NoAttributeError: "NoSuchTagSet",
    errors.NotSupportedError: "NotImplemented",
    errors.QuotaBoundaryError: "InvalidRequest",
    errors.ReadOnlyError: "AccessDenied",
    errors.ConfigurationError: "InternalError",
    errors.VolumeNotFoundError: "InternalError",
    errors.VolumeExistsError: "InternalError",
    errors.ForeignDataError: "InternalError",
    errors.NewerFormatError: "InternalError",
    errors.NotAMountError: "InternalError",
    errors.MountPointError: "InternalError",
    # Checkpoints are saved and loaded beside the endpoint, never through it: these cannot reach it.
    errors.UnstorableError: "InternalError",
    errors.StateMismatchError: "InternalError",
    errors.RankMissingError: "InternalError",
    errors.RankFailedError: "InternalError",
    errors.NoSpaceError: "ServiceUnavailable",
    errors.QuotaExceededError: "QuotaExceeded",
    errors.BusyError: "SlowDown",
    errors.ConflictError: "ConditionalRequestConflict",
    errors.UnavailableError: "ServiceUnavailable",
    errors.DeadlineError: "ServiceUnavailable",
    errors.WaitInterruptedError: "ServiceUnavailable",
    errors.CorruptError: "InternalError",
    errors.DataLossError: "InternalError",
}


def told(error: Exception) -> S3Error:
    """The error as the client is told it. Anything that is neither ours nor the volume's is an internal error."""
    if isinstance(error, S3Error):
        return error
    if isinstance(error, errors.QuotaExceededError):  # which directory, and how full
        return S3Error(CODE_OF[type(error)], str(error))
    if isinstance(error, errors.TieredError):
        return S3Error(CODE_OF[type(error)])
    if isinstance(error, OSError) and error.errno in {
        errno.ENOSPC,
        errno.EDQUOT,
    }:  # others have filled the SSD meanwhile
        return S3Error(CODE_OF[errors.NoSpaceError])
    return S3Error("InternalError")
