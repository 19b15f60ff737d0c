"""Listings against the model: a sorted list of keys."""

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.model import NO_CACHE, Attributes, FileKind, InodeId
from tieredfs_gateway.s3 import keys, listing
from tieredfs_gateway.s3.errors import S3Error


def attributes(kind: FileKind) -> Attributes:
    return Attributes(InodeId(9), kind, 0o644, 0, 0, 1, 0, 0, 0, 0, 0, InodeId(1), 1, 1, NO_CACHE, 0)


class Tree:
    """Directories as dictionaries; counts what it is asked."""

    def __init__(self, wanted: list[bytes]) -> None:
        self.root: dict[bytes, object] = {}
        self.questions = 0
        for key in wanted:
            self._put(key)

    def _put(self, key: bytes) -> None:
        own, beside = keys.places(key)
        *above, name = own.split(b"/")
        directory = self.root
        for part in above:
            inside = directory.get(part)
            if inside is None or inside is True:
                if inside is True:  # an object is in the way: it moves aside
                    assert isinstance(directory, dict)
                    self._move_aside(directory, part)
                inside = directory[part] = {}
            assert isinstance(inside, dict)
            directory = inside
        if isinstance(directory.get(name), dict):
            name_beside = beside.split(b"/")[len(above) :]
            for part in name_beside[:-1]:
                made = directory.setdefault(part, {})
                assert isinstance(made, dict)
                directory = made
            name = name_beside[-1]
        directory[name] = True

    def _move_aside(self, directory: dict[bytes, object], name: bytes) -> None:
        shown = keys.shown(name)
        assert shown is not None
        parts = keys.places(shown[0])[1].split(b"/")
        del directory[name]
        for part in parts[:-1]:
            made = directory.setdefault(part, {})
            assert isinstance(made, dict)
            directory = made
        directory[parts[-1]] = True

    def _at(self, path: bytes) -> object:
        node: object = self.root
        for part in path.split(b"/") if path else []:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def entries(self, path: bytes, after: bytes, limit: int) -> list[listing.Named]:
        self.questions += 1
        node = self._at(path)
        assert isinstance(node, dict)
        names = sorted(node)
        taken = names[bisect_right(names, after) :][:limit]
        return [
            (name, attributes(FileKind.DIRECTORY if isinstance(node[name], dict) else FileKind.REGULAR))
            for name in taken
        ]

    def find(self, path: bytes) -> Attributes | None:
        self.questions += 1
        node = self._at(path)
        return None if node is None else attributes(FileKind.DIRECTORY if isinstance(node, dict) else FileKind.REGULAR)


SEGMENT = st.one_of(
    st.sampled_from(
        ["", ".", "..", "a", "a!", "a-b", "a.txt", "a0", "b", "é", "\0", ".%:", ".%=a", "x" * 255, "x" * 300, "x" * 121]
    ),
    st.text("a!-./0b", max_size=3),
)
KEYS = st.lists(SEGMENT, min_size=1, max_size=4).map(lambda parts: "/".join(parts).encode()).filter(bool)
MANY = st.lists(KEYS, max_size=14, unique=True)


def expected(wanted: list[bytes], prefix: bytes, delimiter: bytes, after: bytes) -> list[tuple[str, bytes]]:
    """All of a listing, the slow way."""
    shown: list[tuple[str, bytes]] = []
    for key in sorted(wanted):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        item = ("key", key) if at < 0 else ("prefix", key[: at + len(delimiter)])
        if item not in shown and item[1] > after and not (item[0] == "prefix" and after.startswith(item[1])):
            shown.append(item)
    return shown


def listed(tree: Tree, prefix: bytes, delimiter: bytes, after: bytes, max_keys: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for _ in range(200):
        page = listing.page(tree, listing.Request(prefix, delimiter, after, max_keys))
        items = [("key", item.key) for item in page.objects] + [("prefix", item) for item in page.common_prefixes]
        assert len(items) <= max_keys
        found += sorted(items, key=lambda item: item[1])
        if not page.truncated:
            return found
        assert items
        after = page.last
    raise AssertionError("a listing without end")


@settings(max_examples=300, deadline=None)
@given(
    wanted=MANY,
    prefix=st.sampled_from([b"", b"a", b"a/", b"/", b"a-", b"x" * 130, b"..", b"a//"]),
    delimiter=st.sampled_from([b"", b"/", b"-", b"//"]),
    after=st.one_of(st.just(b""), KEYS),
    max_keys=st.sampled_from([1, 2, 3, 1000]),
)
def test_pages_are_those_of_a_sorted_list(
    wanted: list[bytes], prefix: bytes, delimiter: bytes, after: bytes, max_keys: int
) -> None:
    if after and delimiter and delimiter in after:
        after = after.split(delimiter)[0]
    assert listed(Tree(wanted), prefix, delimiter, after, max_keys) == expected(wanted, prefix, delimiter, after)


def test_common_prefixes_do_not_repeat_over_pages() -> None:
    tree = Tree([b"d%d/%d" % (first, second) for first in range(5) for second in range(40)])
    assert listed(tree, b"", b"/", b"", 1) == [("prefix", b"d%d/" % number) for number in range(5)]


def test_a_flat_directory_is_read_once_and_pages_begin_where_they_should() -> None:
    tree = Tree([b"data-%06d" % number for number in range(5000)])
    assert len(listed(tree, b"", b"", b"", 1000)) == 5000
    assert tree.questions < 60


def test_a_rolled_up_directory_is_not_walked() -> None:
    tree = Tree([b"d%d/%05d" % (first, second) for first in range(3) for second in range(3000)])
    assert len(listed(tree, b"", b"/", b"", 1000)) == 3
    assert tree.questions < 12


def test_tokens_carry_any_key_and_others_are_refused() -> None:
    assert listing.parse_token(listing.token_of(b"a/\xff\0")) == b"a/\xff\0"
    for token in ("", "x", "Zm9v", "é"):
        with pytest.raises(S3Error):
            listing.parse_token(token)


def test_max_keys_is_bounded() -> None:
    assert listing.parse_max_keys(None) == listing.parse_max_keys("5000") == 1000
    assert listing.parse_max_keys("0") == 0
    for value in ("-1", "a", "99999999999", "٣"):
        with pytest.raises(S3Error):
            listing.parse_max_keys(value)
