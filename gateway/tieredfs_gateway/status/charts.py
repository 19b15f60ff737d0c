"""Pictures, as SVG: bars and areas over time. Pure; text in, text out.

A picture carries no text that a change of its width could stretch: numbers stand beside it, in HTML, and its `aria-label` says
in words what it shows. Colours are classes of the page's style, so a picture is light or dark as the page is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from tieredfs_gateway.status.history import EVERY_S

GAP_NS: Final = int(6 * EVERY_S * 1e9)
"""Samples further apart have nothing between them: nobody looked."""
WIDTH: Final = 600
HEIGHT: Final = 96


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a bar. `kind`: the class of its colour."""

    kind: str
    value: float


def bar(shares: Sequence[Share], total: float, label: str, *, kind: str = "bar") -> str:
    """One horizontal bar, its parts from the left; what of `total` they leave is empty. A part that is there can be seen."""
    parts, left = [], 0.0
    for share in shares:
        width = 100.0 * share.value / total if total > 0 else 0.0
        if share.value > 0:
            width = max(width, 0.6)
            width = min(width, 100.0 - left)
            parts.append(f'<rect class="{share.kind}" x="{left:.2f}" width="{width:.2f}" height="10"/>')
        left += width
    return (
        f'<svg class="{kind}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="rest" width="100" height="10"/>{"".join(parts)}</svg>'
    )


def area(points: Sequence[tuple[int, float]], span_ns: int, top: float, label: str, *, kind: str) -> str:
    """A value over the last `span_ns`, up to the newest point; `points`: time and value, oldest first."""
    runs = "".join(_run(run, points[-1][0] - span_ns, span_ns, top, kind) for run in _runs(points))
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{HEIGHT * part:.1f}" y2="{HEIGHT * part:.1f}"/>'
        for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg class="area" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{grid}{runs}</svg>"
    )


def _runs(points: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= GAP_NS:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _run(run: Sequence[tuple[int, float]], start_ns: int, span_ns: int, top: float, kind: str) -> str:
    places = [
        (WIDTH * (at_ns - start_ns) / span_ns, HEIGHT * (1.0 - (value / top if top > 0 else 0.0)))
        for at_ns, value in run
        if at_ns >= start_ns
    ]
    if not places:
        return ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    first, last = places[0][0], places[-1][0]
    return (
        f'<polygon class="{kind} soft" points="{first:.1f},{HEIGHT} {line} {last:.1f},{HEIGHT}"/>'
        f'<polyline class="{kind} stroke" points="{line}"/>'
    )


def ceiling(value: float) -> float:
    """The top of a scale: 1, 2 or 5 times a power of two thousand and twenty-four, or of ten below that; never zero."""
    if value <= 0:
        return 1.0
    step = 1.0
    while step * 1024 <= value:
        step *= 1024
    for factor in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1024):
        if value <= factor * step:
            return factor * step
    raise AssertionError(value)
