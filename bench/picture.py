"""The ratios of a run as horizontal bars, with a tick where each target lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.report import Bound, Comparison, Row, Verdict

COLOURS: Final = {Verdict.PASSED: "#2f7d4f", Verdict.FAILED: "#b3362c", Verdict.NOTED: "#8a94a0"}
BAR_HEIGHT_IN: Final = 0.34


def draw(path: Path, title: str, rows: Sequence[Row], caption: str) -> bool:
    """Write the picture as PNG; False where there is nothing to compare or matplotlib is not installed.

    The axis is logarithmic: 5x against one rival and 0.95 of another are both legible, and a bar's length is its log.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    bars = [(row, each) for row in rows for each in row.comparisons() if each.median > 0]
    if not bars:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.6 + BAR_HEIGHT_IN * len(bars)), layout="constrained")
    for index, (_, each) in enumerate(bars):
        axes.barh(index, each.median - 1, left=1, height=0.62, color=COLOURS[each.verdict])
        if len(each.ratios) > 1:
            axes.plot([min(each.ratios), max(each.ratios)], [index, index], color="black", linewidth=1, alpha=0.55)
        if each.target.ratio is not None:
            axes.plot([each.target.ratio] * 2, [index - 0.42, index + 0.42], color="black", linewidth=2)
        axes.annotate(
            f"{each.median:.2f}x",
            (1.01, index),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(bars)), [_label(row, each) for row, each in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low = min(0.25, *(min(each.ratios) * 0.8 for _, each in bars))
    high = max(2.0, *(max(each.ratios) * 1.25 for _, each in bars))
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes.set_xlabel(
        f"ratio, median of pairs; thin line: smallest to largest; thick tick: the target\n{caption}", fontsize=8
    )
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=140)
    pyplot.close(figure)
    temporary.replace(path)
    return True


def _label(row: Row, each: Comparison) -> str:
    ceiling = ", at most" if each.target.bound is Bound.AT_MOST else ""
    return f"{row.title}: {each.target.subject} / {each.target.reference}{ceiling}"
