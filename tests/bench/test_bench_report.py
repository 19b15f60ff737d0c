"""The pure parts of the benchmark: ratios, verdicts, tables, the JSON form, the order of rounds."""

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.report import Bound, Comparison, Row, Series, Target, Verdict

RATES = st.floats(min_value=1e-3, max_value=1e6)


def row(**series: tuple[float, ...]) -> Row:
    sides = tuple(Series(side, values) for side, values in series.items())
    return Row(
        "write", "sequential write", "GB/s", sides, (Target("tieredfs", "plain", 0.95), Target("juicefs", "plain"))
    )


@given(st.lists(st.tuples(RATES, RATES), min_size=1, max_size=9))
def test_ratios_are_formed_within_each_pair(pairs: list[tuple[float, float]]) -> None:
    ratios = report.pair_ratios([a for a, _ in pairs], [b for _, b in pairs])
    assert ratios == tuple(a / b for a, b in pairs)
    assert Comparison(Target("a", "b", 1.0), ratios).median == statistics.median(ratios)


def test_median_of_ratios_is_not_ratio_of_medians() -> None:
    """A slow moment that met both sides of one pair leaves the result alone."""
    disturbed = row(tieredfs=(1.0, 0.1, 1.0), plain=(1.0, 0.1, 1.0)).comparisons()
    assert [each.ratios for each in disturbed] == [(1.0, 1.0, 1.0)]


def test_sides_of_different_lengths_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        report.pair_ratios([1.0], [1.0, 2.0])


def test_a_reference_of_zero_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        report.pair_ratios([1.0], [0.0])


@pytest.mark.parametrize(
    ("ratio", "wanted", "bound", "verdict"),
    [
        (0.95, 0.95, Bound.AT_LEAST, Verdict.PASSED),
        (0.9499, 0.95, Bound.AT_LEAST, Verdict.FAILED),
        (1.0, 1.0, Bound.AT_MOST, Verdict.PASSED),
        (1.001, 1.0, Bound.AT_MOST, Verdict.FAILED),
        (0.1, None, Bound.AT_LEAST, Verdict.NOTED),
    ],
)
def test_verdicts(ratio: float, wanted: float | None, bound: Bound, verdict: Verdict) -> None:
    assert Comparison(Target("a", "b", wanted, bound), (ratio,)).verdict is verdict


def test_a_missing_side_makes_no_comparison() -> None:
    assert row(plain=(1.0,)).comparisons() == ()
    assert [each.target.subject for each in row(plain=(1.0,), juicefs=(0.5,)).comparisons()] == ["juicefs"]


def test_rounds_alternate_and_warm_ups_are_thrown_away() -> None:
    calls: list[str] = []

    def measure(side: str) -> float:
        calls.append(side)
        return float(len(calls))

    series = report.alternate({"a": lambda: measure("a"), "b": lambda: measure("b")}, repeats=2, warm_ups=1)
    assert "".join(calls) == "ababab"
    assert series == (Series("a", (3.0, 5.0)), Series("b", (4.0, 6.0)))


def test_table_has_one_line_per_side_and_says_the_target() -> None:
    lines = report.table_lines([row(plain=(2.0, 2.0), tieredfs=(1.0, 1.9), juicefs=(0.2, 0.2))])
    assert lines == [
        ("sequential write [GB/s]", "plain", "2.00 (2.00-2.00)", "", "", "", ""),
        ("", "tieredfs", "1.45 (1.00-1.90)", "plain", "0.72", ">= 0.95", "FAIL"),
        ("", "juicefs", "0.20 (0.20-0.20)", "plain", "0.10", "", "-"),
    ]


def test_units_in_brackets_reach_the_reader(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_table("t", [Row("stat", "stat", "op/s", (Series("plain", (1.0,)),), note="n [op/s]")])
    printed = capsys.readouterr().out
    assert "stat [op/s]" in printed
    assert "n [op/s]" in printed


@pytest.mark.parametrize(
    ("value", "shown"), [(1234567.0, "1,234,567"), (99.96, "100.0"), (12.34, "12.3"), (0.456, "0.46")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert report.figure(value) == shown


def test_failures_are_only_missed_targets() -> None:
    rows = [row(plain=(1.0,), tieredfs=(0.5,)), row(plain=(1.0,), tieredfs=(1.0,), juicefs=(0.1,))]
    assert [(each.target.subject, each.median) for each in report.failures(rows)] == [("tieredfs", 0.5)]


def test_document_holds_all_that_was_measured(tmp_path: Path) -> None:
    contents = report.document("mount", {"cpu": "x"}, {"size_bytes": 1}, [row(plain=(2.0, 4.0), tieredfs=(2.0, 2.0))])
    path = tmp_path / "results" / "mount.json"
    report.write_json(path, contents)
    assert sorted(p.name for p in path.parent.iterdir()) == ["mount.json"]
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert loaded == contents
    assert set(loaded) == {"schema", "name", "machine", "settings", "rows"}
    assert loaded["schema"] == report.SCHEMA_VERSION
    (only,) = loaded["rows"]
    assert set(only) == {"key", "title", "unit", "note", "series", "comparisons"}
    assert only["series"]["plain"] == {"values": [2.0, 4.0], "median": 3.0, "min": 2.0, "max": 4.0}
    assert only["comparisons"] == [
        {
            "subject": "tieredfs",
            "reference": "plain",
            "ratios": [1.0, 0.5],
            "ratio": 0.75,
            "target": 0.95,
            "bound": "at least",
            "verdict": "FAIL",
        }
    ]


def test_a_failed_write_leaves_the_old_document(tmp_path: Path) -> None:
    path = tmp_path / "mount.json"
    report.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        report.write_json(path, {"broken": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["mount.json"]
