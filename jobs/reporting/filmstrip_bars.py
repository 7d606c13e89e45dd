"""The bars and the legend of a film strip: spans of classes, packed into lanes above or below its pictures.

Coordinates are inches from the upper left corner of the figure. All cells of a row have the same width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

WIDTH_IN = 9.0
MARGIN_IN, LEFT_IN, RIGHT_IN = 0.14, 0.82, 0.14
LANE_IN, LEGEND_ROW_IN = 0.2, 0.27
INK, MUTED = "#1f2430", "#697080"
CLASS_COLORS = ("#0072b2", "#c44e1c", "#00875f", "#a84a88", "#8a6a00", "#5b4b8a", "#2f7f95", "#8c3b3b")

# Class id, start and end in cells: cell i covers i to i + 1.
Span = tuple[int, float, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """A span in a row; `start` and `end` in cells from the row's first cell."""

    class_id: int
    start: float
    end: float
    lane: int


def pack(spans: Sequence[Span], cells: range) -> tuple[Bar, ...]:
    """Cut spans to the cells of a row and put each into the first free lane."""
    free_from: list[float] = []
    bars = []
    for class_id, start, end in sorted(spans, key=lambda span: (span[1], span[0])):
        start, end = max(start, cells.start) - cells.start, min(end, cells.stop) - cells.start
        if end > start:
            lane = next((i for i, free in enumerate(free_from) if free <= start), len(free_from))
            free_from[lane : lane + 1] = [end]
            bars.append(Bar(class_id, start, end, lane))
    return tuple(bars)


def num_lanes(bars: Sequence[Bar], spans: Sequence[Span]) -> int:
    """Number of lanes of a row: at least one if the strip has any span, otherwise none."""
    return max((bar.lane + 1 for bar in bars), default=1 if spans else 0)


def draw_bars(
    axes: Axes,
    bars: Sequence[Bar],
    names: Sequence[str],
    colors: dict[int, str],
    *,
    side: str,
    top: float,
    step: float,
    cell: float,
) -> None:
    """Draw the bars of a row.

    Args:
        side: the word to the left of the bars.
        top: upper edge of the first lane.
        step: distance to the next lane; negative above the pictures.
        cell: width of a cell.
    """
    middle = top + LANE_IN / 2
    write(axes, MARGIN_IN, middle, side, size=8.5, color=MUTED)
    if not bars:
        write(axes, LEFT_IN + 0.03, middle, "–", size=8.5, color=MUTED)
    for bar in bars:
        x, y, length = LEFT_IN + bar.start * cell, top + bar.lane * step, (bar.end - bar.start) * cell
        _add_box(axes, x, y + 0.025, length, LANE_IN - 0.05, colors[bar.class_id])
        name = names[bar.class_id]
        if length > 0.075 * len(name) + 0.1:
            write(axes, x + 0.06, y + LANE_IN / 2 + 0.005, name, size=8, color="white")


def _add_box(axes: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    style = "round,pad=0,rounding_size=0.03"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, linewidth=0))


def legend_height(classes: Sequence[tuple[str, str]]) -> float:
    """Height of the legend."""
    return LEGEND_ROW_IN * -(-len(classes) // _columns(classes))


def draw_legend(axes: Axes, classes: Sequence[tuple[str, str]], top: float) -> None:
    """Draw the legend: (name, colour) of each class."""
    columns = _columns(classes)
    width = (WIDTH_IN - LEFT_IN - RIGHT_IN) / columns
    for position, (name, color) in enumerate(classes):
        row, column = divmod(position, columns)
        x, y = LEFT_IN + column * width, top + (row + 0.4) * LEGEND_ROW_IN
        _add_box(axes, x, y - 0.06, 0.18, 0.12, color)
        write(axes, x + 0.26, y, name if len(name) <= 54 else name[:53] + "…", size=9)


def _columns(classes: Sequence[tuple[str, str]]) -> int:
    """Number of columns: four names of up to 24 letters fit side by side, or two of up to 54."""
    return 4 if all(len(name) <= 24 for name, _ in classes) else 2


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = INK,
    weight: str = "normal",
    align: str = "left",
) -> None:
    """Write a line of text without formulas: names may contain dollar signs."""
    axes.text(x, y, text, color=color, fontsize=size, fontweight=weight, va="center", ha=align, parse_math=False)
