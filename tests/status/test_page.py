"""The page as HTML: whole, self-sufficient, safe, with words for every picture; and what it says of a volume."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.status.examples import MOUNT, NOW_NS, WELL, disk, document, with_disks
from tieredfs.limits import GIB, MIB
from tieredfs.volume.status import CacheStatus, SessionStatus, ShortStatus, StagedSummary
from tieredfs_gateway.status import sections
from tieredfs_gateway.status.charts import Share, area, bar, ceiling
from tieredfs_gateway.status.document import DiskSpeed, Document, Healing, Sample
from tieredfs_gateway.status.history import EVERY_S, KEPT, History
from tieredfs_gateway.status.page import entrance, page_in_a_file, served_page

VOID = {"meta", "link", "input", "br"}
CHANGING = {"clock", "verdict", "tiles", "where", "unsafe", "slow"}
EVIL = '"><script>alert(1)</script>\udcff'
BUSY = replace(
    with_disks(5),
    staged=StagedSummary(3, 5 * MIB, 4.0),
    short=ShortStatus(7, 0, 30 * MIB, 8 * MIB, 42.0),
    caches=(CacheStatus(1, "host-a", "/ssd", 3, 5 * MIB, 4.0),),
)
ACTIVE = replace(
    MOUNT, interval_s=30.0, operations_per_s=1234.0, stored_bytes_per_s=3.0 * MIB, hit_ratio=0.5, cpu_ratio=0.1
)


class Reader(HTMLParser):
    """What a browser would make of it; elements that are not closed are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.labels: list[str] = []
        self.pictures = 0
        self.scripts = 0
        self.ids: list[str] = []
        self.parts: set[str] = set()
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action"}]
        self.pictures += tag == "svg"
        self.labels += [found["aria-label"] or ""] if tag == "svg" and found["role"] == "img" else []
        self.scripts += tag == "script"
        self.ids += [found["id"] or ""] if "id" in found else []
        self.parts |= {found["id"] or ""} if "data-part" in found else set()
        assert "style" not in found, "the policy allows no style but the page's own"
        assert not [name for name in found if name.startswith("on")], "nor handlers"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"rect", "line", "polyline", "polygon"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


DOCUMENTS = {
    "well": document(),
    "mounted": document(WELL, ACTIVE),
    "busy": document(BUSY, ACTIVE, replace(MOUNT, mount_point="/mnt/other", answers=False)),
    "lost": document(with_disks(4, 5, 6)),
    "not counted": replace(document(), census=None, census_age_s=None),
    "first look": replace(document(WELL, MOUNT), history=(), speeds=()),
    "without anything": document(replace(WELL, disks=(), sessions=(), caches=(), metadata_dump=None)),
    "domains": document(
        replace(WELL, disks=tuple(disk(n, domain=f"rack-{n % 2}", reachable=n != 3) for n in range(1, 7)))
    ),
}


@pytest.mark.parametrize("shown", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_page_is_whole_and_needs_nothing_else(shown: Document) -> None:
    for page, scripts in ((served_page(shown), 1), (page_in_a_file(shown), 0)):
        reader = Reader(page)
        assert [address for address in reader.addresses if not address.startswith("data:")] == []
        assert reader.scripts == scripts
        assert len(reader.ids) == len(set(reader.ids))
        assert reader.parts == CHANGING
        assert "None" not in reader.text
        assert page.encode("utf-8")


@pytest.mark.parametrize("shown", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_picture_says_in_words_what_it_shows(shown: Document) -> None:
    reader = Reader(served_page(shown))
    assert reader.pictures == len(reader.labels)
    assert all(re.search(r"\d", label) or "away" in label for label in reader.labels)


def test_a_busy_volume_in_words() -> None:
    shown = Reader(served_page(DOCUMENTS["busy"])).text
    for words in (
        "Nothing is lost. 3 things to look at.",
        "Disk 5 is away",
        "5.00 MiB",
        "3 files, the oldest 4.0 s",
        "7 blocks, 8.00 MiB to make",
        "1 of 6 is away",
        "its daemon does not answer",
        "1,234",
        "4.0 ms read · 30 ms write",
    ):
        assert words in re.sub(r" (?=write|read)", " ", shown), words


def test_a_volume_that_is_well_says_so() -> None:
    assert "All is well, and everything is in the store." in Reader(served_page(document())).text
    staged = replace(WELL, staged=StagedSummary(1, MIB, 1.0))
    assert "All is well. 1.00 MiB are on their way to the store." in Reader(served_page(document(staged))).text
    assert "<title>train · TieredFS</title>" in served_page(document())
    assert "<title>(!!) train · TieredFS</title>" in served_page(DOCUMENTS["lost"])


def test_the_same_document_is_the_same_page() -> None:
    assert served_page(DOCUMENTS["busy"]) == served_page(DOCUMENTS["busy"])


def test_names_from_outside_are_text() -> None:
    status = replace(
        WELL,
        name=EVIL,
        disks=(replace(disk(1, reachable=False, domain=EVIL), url=EVIL, problem=EVIL), disk(2, domain=EVIL)),
        caches=(CacheStatus(1, EVIL, EVIL, 1, 1, 1.0),),
        sessions=(SessionStatus(1, EVIL, 1, EVIL, 1.0, True),),
    )
    page = served_page(document(status, replace(ACTIVE, mount_point=EVIL, drain_error=EVIL)))
    assert Reader(page).scripts == 1
    assert "alert(1)</script>" not in page
    assert "\\udcff" in page
    assert Reader(entrance(EVIL)).scripts == 0


def test_thousands_of_disks_are_not_thousands_of_rows() -> None:
    disks = tuple(disk(number, reachable=number % 100 != 0) for number in range(1, 5001))
    page = served_page(document(replace(WELL, disks=disks)))
    assert len(page) < 200_000
    assert page.count("out of reach") + page.count(">away<") >= 50, "those that are away are among what is shown"
    assert f"{sections.DISKS_SHOWN} of 5000 disks" in page


# ---- pictures and the past -------------------------------------------------------------------------------------------


def test_a_part_that_is_there_can_be_seen_and_none_leaves_the_bar() -> None:
    picture = bar([Share("blue", 1), Share("pale", 10**9), Share("red", 0)], 10**9, "label")
    widths = [float(width) for width in re.findall(r'width="([0-9.]+)"', picture)]
    assert widths == [100.0, 0.6, 99.4]
    assert bar([Share("blue", 0)], 0, "label").count("<rect") == 1


def test_what_nobody_saw_is_a_gap() -> None:
    minute = 60 * 10**9
    points = [(0, 1.0), (10**10, 2.0), (20 * minute, 3.0)]
    assert area(points, 60 * minute, 4.0, "label", kind="blue").count("<polyline") == 2


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (3, 4), (1023, 1024), (1024, 1024), (3 * GIB, 4 * GIB)])
def test_scales_end_at_round_numbers(value: float, top: float) -> None:
    assert ceiling(value) == top


def noted(history: History, at_s: float, missing_bytes: int) -> None:
    status = replace(WELL, short=ShortStatus(1, 0, 1, missing_bytes, 1.0))
    history.note(NOW_NS + int(at_s * 1e9), status, (replace(MOUNT, stored_bytes_per_s=5.0),))


def test_the_past_is_an_hour_and_the_latest_look() -> None:
    history = History()
    for second in range(int(KEPT * EVERY_S) + 600):
        noted(history, second, second)
    samples = history.samples()
    assert len(samples) == KEPT + 1
    assert samples[-1].missing_bytes == KEPT * EVERY_S + 599
    assert samples[-1].stored_bytes_per_s == 5.0
    assert {later.at_ns - earlier.at_ns for earlier, later in pairwise(samples[:-1])} == {10**10}


def test_healing_has_a_rate_since_there_was_most_to_do() -> None:
    history = History()
    assert history.healing() == Healing(None, None)
    for second, missing_bytes in ((0, 500), (10, 1000), (20, 1000), (30, 600)):
        noted(history, second, missing_bytes)
    assert history.healing() == Healing(40.0, 15.0)
    noted(history, 40, 0)
    assert history.healing() == Healing(None, None)
    assert isinstance(history.samples()[0], Sample)


def test_only_the_slowest_disks_are_named() -> None:
    speeds = tuple(DiskSpeed(number, 1.0, number / 1000, 0.0, None) for number in range(1, 51))
    page = served_page(replace(document(WELL, ACTIVE), speeds=speeds))
    assert page.count("to read a chunk") == sections.SLOW_DISKS_SHOWN
    assert "Disk 50: 50 ms to read a chunk" in page
