"""The film strip figure: which frames of one video the network looked at, and its predictions in time.

T sampled frames, k frames per cell of the strip, n = ceil(T / k) cells, C classes, thumbnails of h x w pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skipreel.jobs.reporting.filmstrip_bars import (
    CLASS_COLORS,
    LANE_IN,
    LEFT_IN,
    MARGIN_IN,
    MUTED,
    RIGHT_IN,
    WIDTH_IN,
    Bar,
    Span,
    draw_bars,
    draw_legend,
    legend_height,
    num_lanes,
    pack,
    write,
)

DPI = 200
HAIRLINE, ACCENT = "#e3e6eb", "#e0a100"
CELLS_PER_ROW = 24
MAX_NAME = 60  # letters; longer names would overlap the counts
BORDER_SHARE = 0.035  # as a share of a thumbnail's width
TOP_IN, RULER_IN, ROW_GAP_IN = 0.7, 0.1, 0.24
# Resolution of the predicted bars: finer ones would not be visible, and a long video may have very many.
STEPS_PER_CELL = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One row of cells: the bars above it (true) and below it (predicted), and their numbers of lanes."""

    cells: range
    true: tuple[Bar, ...]
    predicted: tuple[Bar, ...]
    above: int
    below: int


@dataclass(frozen=True, slots=True)
class Strip:
    """The content of a film strip.

    Attributes:
        video_id: the title.
        times_s: (T,) float64, presentation times in seconds, ascending.
        thumbnails: (n, h, w, 3) uint8 RGB, one frame of each cell: a used one if there is one.
        used: (T,) bool, the frames that the network looked at.
        class_names: (C,) the name of each class.
        true_spans: (class id, start, end) in seconds.
        predicted: (T, C) bool, or None for a task with one label per video.
        true_label, predicted_label: texts for a task with one label per video.
        caption: text below the title.
        frames_per_cell: k.
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
    frames_per_cell: int = 1

    def __post_init__(self) -> None:
        count = len(self.times_s)
        num_cells = -(-count // self.frames_per_cell)
        if count == 0 or self.thumbnails.shape[0] != num_cells or self.used.shape != (count,):
            shapes = f"times {self.times_s.shape}, thumbnails {self.thumbnails.shape}, used {self.used.shape}"
            rule = f"the same T >= 1 everywhere with a thumbnail for every {self.frames_per_cell}"
            raise ValueError(f"{self.video_id}: need {rule}, got {shapes}")
        if self.predicted is not None and self.predicted.shape != (count, len(self.class_names)):
            wanted = (count, len(self.class_names))
            raise ValueError(f"{self.video_id}: predicted must be {wanted}, got {self.predicted.shape}")

    @property
    def counts(self) -> str:
        """Such as "12 of 78 frames looked at"."""
        return f"{int(self.used.sum())} of {len(self.used)} frames looked at"

    @property
    def cells_used(self) -> NDArray[np.bool_]:
        """(n,) whether any frame of a cell was looked at."""
        used: NDArray[np.bool_] = np.logical_or.reduceat(self.used, np.arange(0, len(self.used), self.frames_per_cell))
        return used


def compose_row(strip: Strip, start: int, stop: int) -> NDArray[np.uint8]:
    """Lay cells start..stop-1 side by side: used ones in colour with a border, skipped ones grey and faded.

    Returns:
        ((h + 2b), (stop - start) (w + 2b), 3) uint8 with border b = max(2, 3.5 % of w) pixels.
    """
    frames = strip.thumbnails[start:stop]
    border = max(2, round(BORDER_SHARE * frames.shape[2]))
    grey = frames @ np.array([0.299, 0.587, 0.114])
    faded = np.repeat((0.55 * grey + 0.45 * 230)[..., None], 3, axis=-1).astype(np.uint8)
    used = strip.cells_used[start:stop, None, None, None]
    size = (stop - start, frames.shape[1] + 2 * border, frames.shape[2] + 2 * border, 3)
    cells = np.where(used, _rgb(ACCENT), 255).astype(np.uint8) * np.ones(size, np.uint8)
    cells[:, border:-border, border:-border] = np.where(used, frames, faded)
    return np.concatenate(list(cells), axis=1)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def film_strip(strip: Strip) -> Figure:
    """Draw the cells of a video in rows, with bars for the true labels above and for the predicted ones below.

    With several frames per cell, marks below the pictures show which of all frames were looked at. At most eight
    classes are shown: the true ones first, then those predicted most often.
    """
    colors = _class_colors(strip)
    rows = _rows(strip, colors)
    cell = (WIDTH_IN - LEFT_IN - RIGHT_IN) / max(len(rows[0].cells), 12)
    frame_height = cell * strip.thumbnails.shape[1] / strip.thumbnails.shape[2]
    ruler = RULER_IN if strip.frames_per_cell > 1 else 0.0
    legend_top = TOP_IN + sum((row.above + row.below) * LANE_IN + frame_height + ruler + ROW_GAP_IN for row in rows)
    shown = [(strip.class_names[class_id], color) for class_id, color in colors.items()]
    total = legend_top + legend_height(shown) + 0.05

    figure = Figure(figsize=(WIDTH_IN, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    # Coordinates are inches from the upper left corner.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _draw_header(axes, strip)
    y = TOP_IN
    for row in rows:
        y += row.above * LANE_IN
        pixels = compose_row(strip, row.cells.start, row.cells.stop)
        right = LEFT_IN + cell * len(row.cells)
        axes.imshow(pixels, extent=(LEFT_IN, right, y + frame_height, y), interpolation="antialiased")
        seconds = f"{strip.times_s[row.cells.start * strip.frames_per_cell]:.1f} s"
        write(axes, MARGIN_IN, y + frame_height / 2, seconds, size=9)
        if ruler:
            _draw_looks(axes, strip, row, top=y + frame_height + 0.2 * ruler, height=0.6 * ruler, cell=cell)
        names = strip.class_names
        if row.above:
            draw_bars(axes, row.true, names, colors, side="true", top=y - LANE_IN, step=-LANE_IN, cell=cell)
        y += frame_height + ruler
        if row.below:
            draw_bars(axes, row.predicted, names, colors, side="predicted", top=y, step=LANE_IN, cell=cell)
        y += row.below * LANE_IN + ROW_GAP_IN
    draw_legend(axes, shown, legend_top)
    axes.set(xlim=(0, WIDTH_IN), ylim=(total, 0), aspect="auto")
    return figure


def _draw_looks(axes: Axes, strip: Strip, row: Row, *, top: float, height: float, cell: float) -> None:
    """Draw a mark for every frame of a row that was looked at, at its place in time; sizes in inches."""
    used = strip.used[row.cells.start * strip.frames_per_cell : row.cells.stop * strip.frames_per_cell]
    marks = np.where(used[None, :, None], _rgb(ACCENT), _rgb(HAIRLINE))
    right = LEFT_IN + cell * len(used) / strip.frames_per_cell
    axes.imshow(marks, extent=(LEFT_IN, right, top + height, top), interpolation="antialiased")


def _rgb(color: str) -> NDArray[np.uint8]:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)


def _rows(strip: Strip, colors: dict[int, str]) -> tuple[Row, ...]:
    count = len(strip.thumbnails)
    num_rows = -(-count // CELLS_PER_ROW)
    per_row = -(-count // num_rows)
    true, predicted = _true_spans(strip, colors), _predicted_spans(strip, colors)
    rows = []
    for first in range(0, count, per_row):
        cells = range(first, min(first + per_row, count))
        above, below = pack(true, cells), pack(predicted, cells)
        rows.append(Row(cells, above, below, num_lanes(above, true), num_lanes(below, predicted)))
    return tuple(rows)


def _class_colors(strip: Strip) -> dict[int, str]:
    """The class ids to show with their colours; with few classes, the colours are the same in all strips."""
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
            start, end = np.interp((start_s, end_s), edges, np.arange(len(edges))) / strip.frames_per_cell
            spans.append((class_id, float(start), float(end)))
    return spans


def _predicted_spans(strip: Strip, colors: dict[int, str]) -> list[Span]:
    if strip.predicted is None:
        return []
    spans = []
    count, step = len(strip.times_s), max(1, strip.frames_per_cell // STEPS_PER_CELL)
    for class_id in colors:
        seen = np.logical_or.reduceat(strip.predicted[:, class_id], np.arange(0, count, step))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(int), [0]])))
        cells = (np.minimum(edges * step, count) / strip.frames_per_cell).tolist()
        spans += [(class_id, start, end) for start, end in zip(cells[::2], cells[1::2], strict=True)]
    return spans


def _draw_header(axes: Axes, strip: Strip) -> None:
    # The end of a path tells more than its start.
    name = strip.video_id if len(strip.video_id) <= MAX_NAME else "…" + strip.video_id[1 - MAX_NAME :]
    write(axes, MARGIN_IN, 0.26, name, size=12.5, weight="bold")
    write(axes, WIDTH_IN - RIGHT_IN, 0.26, strip.counts, size=10.5, align="right")
    notes = [strip.caption] if strip.caption else []
    if strip.frames_per_cell > 1:
        notes.append(f"one of every {strip.frames_per_cell} sampled frames, marks below for all that were looked at")
    if strip.true_label is not None:
        notes.append(f"true: {strip.true_label}")
    if strip.predicted_label is not None:
        mark = "" if strip.true_label is None else " ✓" if strip.predicted_label == strip.true_label else " ✗"
        notes.append(f"predicted: {strip.predicted_label}{mark}")
    write(axes, MARGIN_IN, 0.5, "   ".join(notes), size=9.5, color=MUTED)
