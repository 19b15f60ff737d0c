"""The small pure parts: errors, XML, ranges, conditions, checksums, multipart rules."""

import errno
import hashlib
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import domain_errors
from tieredfs.host import isal
from tieredfs_gateway.s3 import checksums, conditions, multipart, ranges, routes, xml
from tieredfs_gateway.s3.errors import CODE_OF, CODES, S3Error, told
from tieredfs_gateway.s3.ranges import Span


def code_of(call: object, *arguments: object) -> str:
    with pytest.raises(S3Error) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code


# ---- errors and XML --------------------------------------------------------------------------------------------------


def test_every_domain_error_has_a_code_and_every_code_a_status() -> None:
    assert set(CODE_OF) >= {kind for kind in domain_errors() if kind.__module__ == "tieredfs.errors"}
    assert set(CODE_OF.values()) <= set(CODES)
    assert told(ValueError("secret detail")).message == CODES["InternalError"].message
    codes = [told(OSError(number, "")).code for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)]
    assert codes == ["ServiceUnavailable", "ServiceUnavailable", "InternalError"]


def test_every_code_that_is_raised_is_in_the_table_and_every_one_there_is_raised() -> None:
    package = Path(checksums.__file__).parent
    text = "".join(path.read_text() for path in package.glob("*.py"))
    raised = set(re.findall(r'S3Error\(\s*"([A-Za-z0-9]+)"', text))
    assert raised <= set(CODES)
    for code in CODES:
        assert text.count(f'"{code}"') > 1, f"{code} is never raised"


def test_every_call_of_the_table_is_carried_out() -> None:
    carried_out = (Path(checksums.__file__).parent / "endpoint.py").read_text()
    configured = (Path(checksums.__file__).parent / "config_calls.py").read_text()
    generic = {"PutObject", "UploadPart", "DeleteObjects"}  # told apart in the endpoint's own code
    for operation in routes.TABLE.values():
        quoted = f'"{operation.name}"'
        assert operation.name in generic or quoted in carried_out or quoted in configured, operation.name


@given(st.dictionaries(st.sampled_from(["A", "B"]), st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]))))
def test_what_is_written_is_read_back(tree: dict[str, str]) -> None:
    found = xml.parse(xml.document("Root", tree), "Root")
    assert {name: found.exact(name) for name in tree} == tree


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Root>",
        b"<Other/>",
        b"<Root><a></Root>",
        b'<!DOCTYPE Root SYSTEM "file:///etc/passwd"><Root/>',
        b'<!DOCTYPE r [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><Root>&c;</Root>',
        b"<Root>&undefined;</Root>",
        b"<Root>" + b"<a>" * 50 + b"</a>" * 50 + b"</Root>",
        b"<Root>" + b"<a/>" * 200_000 + b"</Root>",
        b"\xff\xfe\x00",
        b"<Root>\x00</Root>",
        b"<Root>" + b"x" * 100_000 + b"</Root>",
    ],
)
def test_broken_xml_and_bombs_are_refused(document: bytes) -> None:
    assert code_of(xml.parse, document, "Root") == "MalformedXML"


def test_large_documents_are_refused_unread() -> None:
    assert code_of(xml.parse, b" " * (xml.DOCUMENT_BYTES_MAX + 1), "Root") == "MaxMessageLengthExceeded"


# ---- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", Span(0, 100)),
        ("bytes=5-9", Span(5, 5)),
        ("bytes=99-500", Span(99, 1)),
        ("bytes=-10", Span(90, 10)),
        ("bytes=-500", Span(0, 100)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges(header: str | None, expected: Span | None) -> None:
    assert ranges.parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_ranges_beyond_the_end(header: str) -> None:
    assert code_of(ranges.parse_range, header, 100) == "InvalidRange"


def test_copy_ranges_are_exact() -> None:
    assert ranges.parse_copy_range("bytes=10-99", 100) == Span(10, 90)
    assert ranges.parse_copy_range(None, 100) == Span(0, 100)
    assert code_of(ranges.parse_copy_range, "bytes=10-100", 100) == "InvalidRange"
    assert code_of(ranges.parse_copy_range, "bytes=10-", 100) == "InvalidArgument"


# ---- conditions ------------------------------------------------------------------------------------------------------

AT_NS = 1_700_000_000_500_000_000
SAME, EARLIER, LATER = (conditions.http_date(AT_NS + shift * 1_000_000_000) for shift in (0, -10, 10))


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"if-match": '"e"'}, None),
        ({"if-match": "*"}, None),
        ({"if-match": '"x", "e"'}, None),
        ({"if-match": '"x"'}, "PreconditionFailed"),
        ({"if-none-match": '"e"'}, "NotModified"),
        ({"if-none-match": 'W/"e"'}, "NotModified"),
        ({"if-none-match": "*"}, "NotModified"),
        ({"if-none-match": '"x"'}, None),
        ({"if-modified-since": SAME}, "NotModified"),
        ({"if-modified-since": LATER}, "NotModified"),
        ({"if-modified-since": EARLIER}, None),
        ({"if-unmodified-since": EARLIER}, "PreconditionFailed"),
        ({"if-unmodified-since": SAME}, None),
        ({"if-match": '"e"', "if-unmodified-since": EARLIER}, None),
        ({"if-none-match": '"x"', "if-modified-since": LATER}, None),
        ({"if-modified-since": "not a date"}, None),
    ],
)
def test_conditions_of_reads(headers: dict[str, str], code: str | None) -> None:
    asked = conditions.of_read(headers)
    if code is None:
        conditions.check_read(asked, "e", AT_NS)
    else:
        assert code_of(conditions.check_read, asked, "e", AT_NS) == code
        prefixed = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
        assert (
            code_of(conditions.check_copy_source, conditions.of_copy_source(prefixed), "e", AT_NS)
            == "PreconditionFailed"
        )


def test_conditions_of_writes() -> None:
    create = conditions.of_write({"if-none-match": "*"})
    conditions.check_write(create, None)
    assert code_of(conditions.check_write, create, "e") == "PreconditionFailed"
    swap = conditions.of_write({"if-match": '"e"'})
    conditions.check_write(swap, "e")
    assert code_of(conditions.check_write, swap, "f") == "PreconditionFailed"
    assert code_of(conditions.check_write, swap, None) == "NoSuchKey"
    other = conditions.of_write({"if-none-match": '"e"'})
    conditions.check_write(other, "f")
    assert code_of(conditions.check_write, other, "e") == "PreconditionFailed"


@pytest.mark.parametrize(
    ("size", "modified", "code"),
    [
        ("3", None, None),
        ("4", None, "PreconditionFailed"),
        (None, "Mon, 06 Sep 2021 00:00:00 GMT", None),
        (None, "2021-09-06T00:00:00Z", None),
        (None, "2021-09-06T00:00:01Z", "PreconditionFailed"),
        ("x", None, "InvalidArgument"),
        (None, "soon", "InvalidArgument"),
    ],
)
def test_conditions_of_deletes(size: str | None, modified: str | None, code: str | None) -> None:
    def check() -> None:
        conditions.check_delete(conditions.of_delete(None, size, modified), "e", 3, 1_630_886_400_500_000_000)

    if code is None:
        check()
    else:
        assert code_of(check) == code


# ---- checksums -------------------------------------------------------------------------------------------------------

CHECK = b"123456789"
CHECK_VALUES = {
    "CRC32": "cbf43926",
    "CRC32C": "e3069283",
    "CRC64NVME": "ae8b14860a799888",
    "SHA1": hashlib.sha1(CHECK).hexdigest(),
    "SHA256": hashlib.sha256(CHECK).hexdigest(),
}


@pytest.mark.parametrize("name", list(checksums.ALGORITHMS))
def test_published_check_values(name: str) -> None:
    hasher = checksums.ALGORITHMS[name].make()
    hasher.update(CHECK[:4])
    hasher.update(memoryview(CHECK)[4:])
    assert hasher.digest().hex() == CHECK_VALUES[name]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_crcs_of_parts_join_to_that_of_the_whole(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    for name, value in (
        ("CRC32", zlib.crc32(whole)),
        ("CRC32C", isal.crc32c(whole)),
        ("CRC64NVME", isal.crc64_nvme(whole)),
    ):
        algorithm = checksums.ALGORITHMS[name]
        pairs = []
        for part in parts:
            hasher = algorithm.make()
            hasher.update(part)
            pairs.append((hasher.digest(), len(part)))
        assert int.from_bytes(checksums.joined(algorithm, pairs), "big") == value


def test_what_headers_announce() -> None:
    crc = checksums.encode(bytes(4))
    assert checksums.announced({}) == checksums.Announced(None, None, None, trailer=False)
    given_crc = checksums.announced({"x-amz-checksum-crc32": crc})
    assert (given_crc.algorithm, given_crc.digest) == (checksums.ALGORITHMS["CRC32"], bytes(4))
    trailing = checksums.announced({"x-amz-trailer": "x-amz-checksum-crc64nvme"})
    assert trailing.trailer
    assert code_of(checksums.check_trailer, trailing, {}) == "InvalidRequest"
    assert checksums.check_trailer(trailing, {"x-amz-checksum-crc64nvme": checksums.encode(bytes(8))}) == bytes(8)
    assert code_of(checksums.announced, {"content-md5": "nonsense"}) == "InvalidDigest"
    assert code_of(checksums.announced, {"x-amz-checksum-sha256": crc}) == "InvalidRequest"
    assert code_of(checksums.announced, {"x-amz-checksum-crc32": crc, "x-amz-checksum-crc32c": crc}) == "InvalidRequest"
    assert code_of(checksums.announced, {"x-amz-sdk-checksum-algorithm": "MD17"}) == "InvalidRequest"


# ---- multipart -------------------------------------------------------------------------------------------------------


def part(number: int, size: int = multipart.PART_BYTES_MIN) -> multipart.StoredPart:
    return multipart.StoredPart(number, size, hashlib.md5(b"%d" % number).hexdigest())


def listed(*numbers: int) -> list[multipart.ListedPart]:
    return [multipart.ListedPart(number, part(number).etag, {}) for number in numbers]


def test_parts_are_chosen_in_order_and_checked() -> None:
    stored = {number: part(number) for number in (1, 2, 5)}
    assert [found.number for found in multipart.choose(listed(1, 5), stored)] == [1, 5]
    assert code_of(multipart.choose, listed(1, 3), stored) == "InvalidPart"
    assert code_of(multipart.choose, [multipart.ListedPart(1, "0" * 32, {})], stored) == "InvalidPart"
    small = {1: part(1, 10), 2: part(2, 10)}
    assert code_of(multipart.choose, listed(1, 2), small) == "EntityTooSmall"
    assert multipart.choose(listed(2), small)
    huge = {1: part(1, multipart.OBJECT_BYTES_MAX), 2: part(2)}
    assert code_of(multipart.choose, listed(1, 2), huge) == "EntityTooLarge"
    wrong = [replace(listed(1)[0], checksums={"CRC32": "AAAAAA=="})]
    assert code_of(multipart.choose, wrong, {1: replace(part(1), checksums={"CRC32": "AAAAAB=="})}) == "InvalidPart"


def complete(*parts: tuple[str, str]) -> list[multipart.ListedPart]:
    tree = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
    return multipart.parse_complete(
        xml.parse(xml.document("CompleteMultipartUpload", {"Part": tree}), "CompleteMultipartUpload")
    )


def test_complete_names_parts_in_ascending_order() -> None:
    assert [found.etag for found in complete(("1", '"a"'), ("10000", "b"))] == ["a", "b"]
    assert code_of(complete, ("2", "a"), ("1", "b")) == "InvalidPartOrder"
    assert code_of(complete, ("1", "a"), ("1", "b")) == "InvalidPartOrder"
    assert code_of(complete) == "MalformedXML"
    for number in ("0", "10001", "-1", "x", "٣"):
        assert code_of(complete, (number, "a")) == "InvalidArgument"


def test_the_etag_and_checksums_of_the_whole() -> None:
    parts = [replace(part(number), checksums={"CRC32": checksums.encode(bytes(4))}) for number in (1, 2)]
    digests = b"".join(bytes.fromhex(found.etag) for found in parts)
    assert multipart.etag(parts) == f"{hashlib.md5(digests).hexdigest()}-2"
    crc32, sha1, nvme = (checksums.ALGORITHMS[name] for name in ("CRC32", "SHA1", "CRC64NVME"))
    composite = multipart.checksum(crc32, "COMPOSITE", parts)
    assert composite == checksums.encode(zlib.crc32(bytes(8)).to_bytes(4, "big")) + "-2"
    assert multipart.checksum(sha1, "COMPOSITE", parts) is None
    assert multipart.parse_kind(None, nvme) == "FULL_OBJECT"
    assert multipart.parse_kind(None, crc32) == "COMPOSITE"
    assert code_of(multipart.parse_kind, "FULL_OBJECT", sha1) == "InvalidRequest"
    assert code_of(multipart.parse_kind, "COMPOSITE", nvme) == "InvalidRequest"
