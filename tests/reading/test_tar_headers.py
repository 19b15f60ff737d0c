"""Tar archives of every kind that Python's tarfile writes are walked as it walks them; damaged ones are told from whole ones."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs_gateway.datasets.sources.tar_headers import BadTarError, Member, members

NAMES = ["a.jpg", "dir/b.cls", "é.txt", "x" * 120 + ".bin", "deep/" * 30 + "y" * 60 + ".bin", "z" * 300 + ".bin"]


def archive(sizes: dict[str, int], kind: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as made:
        made.addfile(_directory())
        for name, size in sizes.items():
            info = tarfile.TarInfo(name)
            info.size = size
            made.addfile(info, io.BytesIO(name.encode()[:1] * size))
        link = tarfile.TarInfo("link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        made.addfile(link)
    return sink.getvalue()


def _directory() -> tarfile.TarInfo:
    info = tarfile.TarInfo("dir")
    info.type = tarfile.DIRTYPE
    return info


def walked(data: bytes) -> list[Member]:
    return list(members(lambda offset, length: data[offset : offset + length], len(data)))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_sees(kind: int) -> None:
    names = [name for name in NAMES if kind != tarfile.USTAR_FORMAT or len(name) < 100]
    data = archive({name: 700 * at for at, name in enumerate(names)}, kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as seen:
        expected = [(info.name.encode(), info.offset_data, info.size) for info in seen if info.isreg()]
    assert [(member.name, member.offset, member.size) for member in walked(data)] == expected
    assert len(expected) == len(names)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_hard_link_has_the_bytes_of_its_member(kind: int) -> None:
    sink = io.BytesIO()
    names = [name for name in NAMES if kind != tarfile.USTAR_FORMAT or len(name) < 100]
    with tarfile.open(fileobj=sink, mode="w", format=kind) as made:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            made.addfile(info, io.BytesIO(name.encode()))
        for at, name in enumerate([*names, "link0"]):
            info = tarfile.TarInfo(f"link{at}")
            info.type, info.linkname = tarfile.LNKTYPE, name
            made.addfile(info)
    *found, of_link = walked(sink.getvalue())
    by_name = {member.name: (member.offset, member.size) for member in found}
    assert len(by_name) == 2 * len(names)
    for at, name in enumerate(names):
        assert by_name[f"link{at}".encode()] == by_name[name.encode()]
    assert (of_link.offset, of_link.size) == by_name[names[0].encode()]


def test_a_hard_link_to_nothing_is_told() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as made:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
        made.addfile(info)
    with pytest.raises(BadTarError, match="byte 0 is a hard link"):
        walked(sink.getvalue())


@settings(deadline=None)
@given(st.integers(0, 5119))
def test_a_truncated_archive_is_told(cut: int) -> None:
    """Wherever it is cut: the directory, two members and a link, and their headers, are 5120 bytes."""
    data = archive({"a.bin": 1000, "b.bin": 2000}, tarfile.USTAR_FORMAT)
    with pytest.raises(BadTarError):
        walked(data[:cut])
    assert len(walked(data[: 5120 + 512])) == 2


@pytest.mark.parametrize(("at", "problem"), [(100, "checksum"), (148, "checksum|number"), (600, "checksum|number")])
def test_a_damaged_header_is_told(at: int, problem: str) -> None:
    data = bytearray(archive({"a.bin": 1000}, tarfile.GNU_FORMAT))
    data[at] ^= 0x5A
    with pytest.raises(BadTarError, match=problem):
        walked(bytes(data))


def test_sizes_beyond_octal() -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(BadTarError, match=f"has {1 << 40} bytes"):
        walked(header + bytes(1024))


@pytest.mark.parametrize("size", [b"-2048", b"abc", b"1_0", b"+7", b"9" * 40])
def test_sizes_that_are_none(size: bytes) -> None:
    """A negative one led back to the header before, again and again."""
    record = b" size=" + size + b"\n"
    extended, info = tarfile.TarInfo("extended"), tarfile.TarInfo("a.bin")
    text = str(len(record) + 2).encode() + record
    extended.type, extended.size, info.size = tarfile.XHDTYPE, len(text), 1
    data = extended.tobuf(tarfile.USTAR_FORMAT) + text.ljust(512, b"\0") + info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(BadTarError, match="where a number belongs"):
        walked(data + bytes(2048))
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"-0000002000\0"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 0x20)
    with pytest.raises(BadTarError, match="where a number belongs"):
        walked(bytes(header) + bytes(2048))
