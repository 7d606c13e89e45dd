"""The film strip: which frames of one video the network looked at, and what it made of them.

Letters: T sampled frames of a video, C classes, h x w thumbnail size in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

DPI = 200
WIDTH_IN = 9.0
INK, MUTED, HAIRLINE = "#1f2430", "#697080", "#e3e6eb"
ACCENT = "#e0a100"
CLASS_COLORS = ("#0072b2", "#c44e1c", "#00875f", "#a84a88", "#8a6a00", "#5b4b8a", "#2f7f95", "#8c3b3b")

FRAMES_PER_ROW = 24
LANE_IN = 0.2
BORDER_SHARE = 0.035  # of a thumbnail's width
MARGIN_IN, LEFT_IN, RIGHT_IN, TOP_IN = 0.14, 0.82, 0.14, 0.7
ROW_GAP_IN, LEGEND_ROW_IN, LEGEND_COLUMNS = 0.24, 0.27, 4


# Class id, start and end in frames: frame i covers i to i + 1.
Span = tuple[int, float, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """Class `class_id` from `start` to `end`, in frames since the row's first, drawn in lane `lane`."""

    class_id: int
    start: float
    end: float
    lane: int


@dataclass(frozen=True, slots=True)
class Row:
    """The frames of one row with the bars over (true) and under (predicted) them, and how many lanes these need."""

    frames: range
    true: tuple[Bar, ...]
    predicted: tuple[Bar, ...]
    above: int
    below: int


@dataclass(frozen=True, slots=True)
class Strip:
    """What a film strip shows of one video.

    Attributes:
        video_id: its name.
        times_s: (T,) presentation times in seconds, ascending.
        thumbnails: (T, h, w, 3) uint8, RGB.
        used: (T,) bool, the frames the network looked at.
        class_names: name of each class.
        true_spans: (class id, start, end) in seconds.
        predicted: (T, C) bool, or None for a task with one label per video.
        true_label, predicted_label: texts for a task with one label per video.
        caption: shown under the id; empty for the count of frames looked at.
    """

    video_id: str
    times_s: NDArray[np.float64]
    thumbnails: NDArray[np.uint8]
    used: NDArray[np.bool_]
    class_names: Sequence[str]
    true_spans: Sequence[tuple[int, float, float]] = ()
    predicted: NDArray[np.bool_] | None = None
    true_label: str | None = None
    predicted_label: str | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        count = len(self.times_s)
        if count == 0 or self.thumbnails.shape[0] != count or self.used.shape != (count,):
            shapes = f"times {self.times_s.shape}, thumbnails {self.thumbnails.shape}, used {self.used.shape}"
            raise ValueError(f"{self.video_id}: need the same T >= 1 everywhere, got {shapes}")
        if self.predicted is not None and self.predicted.shape != (count, len(self.class_names)):
            wanted = (count, len(self.class_names))
            raise ValueError(f"{self.video_id}: predicted must be {wanted}, got {self.predicted.shape}")

    @property
    def counts(self) -> str:
        """Such as "12 of 78 frames looked at"."""
        return f"{int(self.used.sum())} of {len(self.used)} frames looked at"


def compose_row(strip: Strip, start: int, stop: int) -> NDArray[np.uint8]:
    """Lay frames start..stop-1 side by side, used ones in colour with a visible border, skipped ones grey and faded.

    Returns:
        ((h + 2b), n (w + 2b), 3) uint8 with border b = max(2, 3.5 % of w) pixels and n = stop - start.
    """
    frames = strip.thumbnails[start:stop]
    border = max(2, round(BORDER_SHARE * frames.shape[2]))
    grey = frames @ np.array([0.299, 0.587, 0.114])
    faded = np.repeat((0.55 * grey + 0.45 * 230)[..., None], 3, axis=-1).astype(np.uint8)
    used = strip.used[start:stop, None, None, None]
    size = (stop - start, frames.shape[1] + 2 * border, frames.shape[2] + 2 * border, 3)
    rim = np.array([int(ACCENT[i : i + 2], 16) for i in (1, 3, 5)])
    cells = np.where(used, rim, 255).astype(np.uint8) * np.ones(size, np.uint8)
    cells[:, border:-border, border:-border] = np.where(used, frames, faded)
    return np.concatenate(list(cells), axis=1)


def film_strip(strip: Strip) -> Figure:
    """Draw a video's sampled frames in rows, true labels as bars above and predicted ones below, aligned in time.

    At most eight classes are shown, the true ones first, then those predicted most often.
    """
    colors = _class_colors(strip)
    rows = _rows(strip, colors)
    cell = (WIDTH_IN - LEFT_IN - RIGHT_IN) / max(len(rows[0].frames), 12)
    frame_height = cell * strip.thumbnails.shape[1] / strip.thumbnails.shape[2]
    legend_top = TOP_IN + sum((row.above + row.below) * LANE_IN + frame_height + ROW_GAP_IN for row in rows)
    total = legend_top + LEGEND_ROW_IN * -(-len(colors) // LEGEND_COLUMNS) + 0.05

    figure = Figure(figsize=(WIDTH_IN, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    # One sheet measured in inches from its upper left corner.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _draw_header(axes, strip)
    y = TOP_IN
    for row in rows:
        y += row.above * LANE_IN
        pixels = compose_row(strip, row.frames.start, row.frames.stop)
        right = LEFT_IN + cell * len(row.frames)
        axes.imshow(pixels, extent=(LEFT_IN, right, y + frame_height, y), interpolation="antialiased")
        seconds = f"{strip.times_s[row.frames.start]:.1f} s"
        axes.text(MARGIN_IN, y + frame_height / 2, seconds, color=INK, fontsize=9, va="center")
        names = strip.class_names
        if row.above:
            _draw_bars(axes, row.true, names, colors, side="true", top=y - LANE_IN, step=-LANE_IN, cell=cell)
        y += frame_height
        if row.below:
            _draw_bars(axes, row.predicted, names, colors, side="predicted", top=y, step=LANE_IN, cell=cell)
        y += row.below * LANE_IN + ROW_GAP_IN
    _draw_legend(axes, strip, colors, legend_top)
    axes.set(xlim=(0, WIDTH_IN), ylim=(total, 0), aspect="auto")
    return figure


def _rows(strip: Strip, colors: dict[int, str]) -> tuple[Row, ...]:
    count = len(strip.times_s)
    num_rows = -(-count // FRAMES_PER_ROW)
    per_row = -(-count // num_rows)
    true, predicted = _true_spans(strip, colors), _predicted_spans(strip, colors)
    rows = []
    for first in range(0, count, per_row):
        frames = range(first, min(first + per_row, count))
        above, below = _pack(true, frames), _pack(predicted, frames)
        rows.append(Row(frames, above, below, _num_lanes(above, true), _num_lanes(below, predicted)))
    return tuple(rows)


def _num_lanes(bars: Sequence[Bar], spans: Sequence[Span]) -> int:
    """One empty lane shows that a row has nothing to say; no lanes at all, that the whole strip has not."""
    return max((bar.lane + 1 for bar in bars), default=1 if spans else 0)


def _class_colors(strip: Strip) -> dict[int, str]:
    """The classes to show with their colours, which stay the same from strip to strip while there are few classes."""
    true = sorted({class_id for class_id, _, _ in strip.true_spans})
    hits = np.zeros(len(strip.class_names)) if strip.predicted is None else strip.predicted.sum(axis=0)
    extra = [int(c) for c in np.argsort(-hits, kind="stable") if hits[c] and c not in true]
    shown = sorted((true + extra)[: len(CLASS_COLORS)])
    few = len(strip.class_names) <= len(CLASS_COLORS)
    return {class_id: CLASS_COLORS[class_id if few else rank] for rank, class_id in enumerate(shown)}


def _true_spans(strip: Strip, colors: dict[int, str]) -> list[Span]:
    times = np.asarray(strip.times_s, float)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    edges = np.append(times, times[-1] + step)
    spans = []
    for class_id, start_s, end_s in strip.true_spans:
        if class_id in colors:
            start, end = np.interp((start_s, end_s), edges, np.arange(len(edges))).tolist()
            spans.append((class_id, start, end))
    return spans


def _predicted_spans(strip: Strip, colors: dict[int, str]) -> list[Span]:
    if strip.predicted is None:
        return []
    spans = []
    for class_id in colors:
        padded = np.concatenate([[0], strip.predicted[:, class_id].astype(int), [0]])
        changes = np.flatnonzero(np.diff(padded)).tolist()
        spans += [(class_id, float(i), float(j)) for i, j in zip(changes[::2], changes[1::2], strict=True)]
    return spans


def _pack(spans: Sequence[Span], frames: range) -> tuple[Bar, ...]:
    """Cut the spans to these frames, count from the first of them, and put each into the first lane that is free."""
    free_from: list[float] = []
    bars = []
    for class_id, start, end in sorted(spans, key=lambda span: (span[1], span[0])):
        start, end = max(start, frames.start) - frames.start, min(end, frames.stop) - frames.start
        if end > start:
            lane = next((i for i, free in enumerate(free_from) if free <= start), len(free_from))
            free_from[lane : lane + 1] = [end]
            bars.append(Bar(class_id, start, end, lane))
    return tuple(bars)


def _draw_header(axes: Axes, strip: Strip) -> None:
    axes.text(MARGIN_IN, 0.26, strip.video_id, color=INK, fontsize=12.5, fontweight="bold", va="center")
    axes.text(WIDTH_IN - RIGHT_IN, 0.26, strip.counts, color=INK, fontsize=10.5, va="center", ha="right")
    notes = [strip.caption] if strip.caption else []
    if strip.true_label is not None:
        notes.append(f"true: {strip.true_label}")
    if strip.predicted_label is not None:
        mark = "" if strip.true_label is None else " ✓" if strip.predicted_label == strip.true_label else " ✗"
        notes.append(f"predicted: {strip.predicted_label}{mark}")
    axes.text(MARGIN_IN, 0.5, "   ".join(notes), color=MUTED, fontsize=9.5, va="center")


def _draw_bars(
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
    """Draw one row's bars; `top` is the first lane's, `step` leads to the next lane, `cell` is a frame's width (in)."""
    middle = top + LANE_IN / 2
    axes.text(MARGIN_IN, middle, side, color=MUTED, fontsize=8.5, va="center")
    if not bars:
        axes.text(LEFT_IN + 0.03, middle, "–", color=MUTED, fontsize=8.5, va="center")
    for bar in bars:
        x, y, length = LEFT_IN + bar.start * cell, top + bar.lane * step, (bar.end - bar.start) * cell
        _add_box(axes, x, y + 0.025, length, LANE_IN - 0.05, colors[bar.class_id])
        name = names[bar.class_id]
        if length > 0.075 * len(name) + 0.1:
            axes.text(x + 0.06, y + LANE_IN / 2 + 0.005, name, color="white", fontsize=8, va="center")


def _add_box(axes: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    style = "round,pad=0,rounding_size=0.03"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, linewidth=0))


def _draw_legend(axes: Axes, strip: Strip, colors: dict[int, str], top: float) -> None:
    width = (WIDTH_IN - LEFT_IN - RIGHT_IN) / LEGEND_COLUMNS
    for position, (class_id, color) in enumerate(colors.items()):
        row, column = divmod(position, LEGEND_COLUMNS)
        x, y = LEFT_IN + column * width, top + (row + 0.4) * LEGEND_ROW_IN
        _add_box(axes, x, y - 0.06, 0.18, 0.12, color)
        axes.text(x + 0.26, y, strip.class_names[class_id], color=INK, fontsize=9, va="center")
