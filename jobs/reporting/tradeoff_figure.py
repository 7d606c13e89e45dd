"""The figure of a trade-off curve: metric against state updates per video. Without pyplot's global state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from skipreel.jobs.reporting.filmstrip import ACCENT, DPI, HAIRLINE
from skipreel.jobs.reporting.filmstrip_bars import INK, MUTED, WIDTH_IN
from skipreel.jobs.training.tradeoff import FAMILIES, SeedMean, TradeoffPoint, mean_over_seeds, pareto_front

PIXELS_PER_POINT = DPI / 72
# Colour, marker, and a word: a name that contains it already says how the family chooses its frames.
# The colours differ under the common colour-vision deficiencies too.
FAMILY_STYLE = {
    "skip": ("#0072b2", "o", "skip"),
    "dense": ("#1f2430", "s", "every"),
    "stride": ("#009e73", "D", "strid"),
    "random": ("#d55e00", "^", "random"),
    "mean": ("#b05a94", "P", "mean"),
}


def tradeoff_figure(points: Sequence[TradeoffPoint], *, metric_name: str, title: str) -> Figure:
    """Draw metric against state updates per video.

    The seeds of a setting become one point with bars over their range. The Pareto front of these means is a stepped
    line with ringed points. Labels cover neither each other nor a point.

    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("a trade-off figure needs at least one point, got none")
    means = mean_over_seeds(points)
    front = pareto_front([mean.point for mean in means])
    figure = Figure(figsize=(WIDTH_IN, 5.6), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.155, 0.885, 0.625))
    _style_tradeoff_axes(axes, means, metric_name)
    _draw_front(axes, [means[i].point for i in front])
    _draw_families(axes, means)
    figure.text(0.02, 0.955, title, fontsize=13.5, fontweight="bold", color=INK)
    seeds = max(mean.num_seeds for mean in means)
    note = "" if seeds == 1 else f"Mean over {seeds} seeds, bars span them.  "
    figure.text(0.02, 0.912, f"{note}Ringed: no other setting is both cheaper and better.", fontsize=9.5, color=MUTED)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.012, 0.892),
        ncols=3,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        borderaxespad=0,
        columnspacing=2.2,
    )
    figure.draw_without_rendering()
    _place_labels(axes, means, set(front))
    return figure


def _style_tradeoff_axes(axes: Axes, means: Sequence[SeedMean], metric_name: str) -> None:
    most = max(mean.updates_range[1] for mean in means) or 1.0
    low = min(mean.metric_range[0] for mean in means)
    high = max(mean.metric_range[1] for mean in means)
    pad = 0.12 * (high - low) or 0.05
    axes.set_xlim(0, most * 1.1)
    axes.set_ylim(low - pad, high + pad)
    # Shares are proportional to updates, as all models saw the same videos.
    share = float(np.median([m.point.update_share / m.point.updates for m in means if m.point.updates] or [0.0]))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick_text(x, share * x)))
    axes.set_xlabel("state updates per video, and as a share of its frames", fontsize=10.5, color=INK, labelpad=6)
    axes.set_ylabel(metric_name, fontsize=10.5, color=INK)
    axes.tick_params(colors=MUTED, labelsize=9.5, length=0, pad=6)
    axes.grid(color=HAIRLINE, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9bfca")


def _tick_text(updates: float, share: float) -> str:
    return f"{updates:g}\n{100 * share:.0f} %" if share < 1.005 else f"{updates:g}\n "


def _draw_front(axes: Axes, front: Sequence[TradeoffPoint]) -> None:
    x, y = [point.updates for point in front], [point.metric for point in front]
    # The vertices are written out instead of a step style, so that the labels can avoid the line.
    stepped_x, stepped_y = np.repeat([*x, axes.get_xlim()[1]], 2)[1:], np.repeat([*y, y[-1]], 2)[:-1]
    axes.plot(stepped_x, stepped_y, color=ACCENT, linewidth=2.2, alpha=0.75, zorder=2, label="Pareto front")
    axes.scatter(x, y, s=190, facecolors="white", edgecolors=ACCENT, linewidths=2.2, zorder=3)


def _draw_families(axes: Axes, means: Sequence[SeedMean]) -> None:
    curves: dict[tuple[str, str], list[SeedMean]] = {}
    for mean in means:
        curves.setdefault((mean.point.family, mean.point.name), []).append(mean)
    drawn: dict[str, int] = {}
    # A fixed order, so that the legends of all figures agree.
    for (family, name), curve in sorted(curves.items(), key=lambda item: list(FAMILIES).index(item[0][0])):
        color, marker, keyword = FAMILY_STYLE[family]
        ordinal = drawn[family] = drawn.get(family, -1) + 1
        curve = sorted(curve, key=lambda mean: mean.point.updates)
        x, y = [m.point.updates for m in curve], [m.point.metric for m in curve]
        axes.plot(x, y, color=color, linewidth=1.1, alpha=0.45, linestyle="--" if ordinal else "-", zorder=3.5)
        for mean in curve:
            axes.plot(mean.updates_range, (mean.point.metric,) * 2, color=color, linewidth=1.4, alpha=0.6, zorder=4)
            axes.plot((mean.point.updates,) * 2, mean.metric_range, color=color, linewidth=1.4, alpha=0.6, zorder=4)
        face = "white" if ordinal % 2 else color
        label = name if keyword in name.lower() else f"{name}, {FAMILIES[family]}"
        axes.scatter(x, y, s=52, marker=marker, c=face, edgecolors=color, linewidths=1.4, zorder=5, label=label)


def _place_labels(axes: Axes, means: Sequence[SeedMean], front: set[int]) -> None:
    """Label each point at the nearest free place, points of the front first; without a free place it gets no label."""
    spots = axes.transData.transform([(mean.point.updates, mean.point.metric) for mean in means])
    taken = [Bbox([spot - 7 * PIXELS_PER_POINT, spot + 7 * PIXELS_PER_POINT]) for spot in spots]
    lines = np.concatenate([_samples(line.get_transform().transform(line.get_xydata())) for line in axes.get_lines()])
    for index in sorted(range(len(means)), key=lambda i: (i not in front, i)):
        point = means[index].point
        text = axes.annotate(
            point.setting or point.name,
            (point.updates, point.metric),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            color=FAMILY_STYLE[point.family][0],
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        size = text.get_window_extent()
        # A label across a line is better than none.
        place = _free_place(size, axes.get_window_extent(), taken, lines)
        place = place or _free_place(size, axes.get_window_extent(), taken, lines[:0])
        if place is None:
            text.remove()
        else:
            text.set_position(place)
            taken.append(size.translated(*(PIXELS_PER_POINT * d for d in place)).padded(2))


def _free_place(
    size: Bbox, inside: Bbox, taken: Sequence[Bbox], lines: NDArray[np.float64]
) -> tuple[float, float] | None:
    for place in _label_offsets(size.width / PIXELS_PER_POINT, size.height / PIXELS_PER_POINT):
        box = size.translated(*(PIXELS_PER_POINT * d for d in place))
        fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if fits and not box.count_contains(lines) and not box.count_overlaps(taken):
            return place
    return None


def _samples(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) along a polyline (m, 2), so dense that no text fits between two of them."""
    if len(path) < 2:
        return path
    at = np.linspace(0, len(path) - 1, 60 * (len(path) - 1))
    return np.stack([np.interp(at, np.arange(len(path)), path[:, axis]) for axis in (0, 1)], axis=-1)


def _label_offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Offsets (dx, dy) of a text's lower left corner from its point, nearest first, in typographic points."""
    places = []
    for gap in (9.0, 14.0, 20.0):
        right, left, middle = gap, -gap - width, -width / 2
        above, below, level = gap, -gap - height, -height / 2
        places += [(middle, above), (left, level), (right, level), (middle, below)]
        # On the diagonal a text can be closer without touching the point.
        right, left, above, below = 0.6 * gap, -0.6 * gap - width, 0.6 * gap, -0.6 * gap - height
        places += [(left, above), (right, below), (right, above), (left, below)]
    return places
