"""The figure of a trade-off curve: labels, front, legend and axes."""

import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from skipreel.jobs.reporting.tradeoff_figure import tradeoff_figure
from skipreel.jobs.training.tradeoff import TradeoffPoint


def example_points(num_seeds: int = 2) -> list[TradeoffPoint]:
    points = []
    for seed in range(num_seeds):
        points.append(TradeoffPoint("Dense GRU", "dense", "", 0.80 + 0.01 * seed, 75, 1.0, seed))
        for updates, metric in ((8, 0.60), (15, 0.72), (40, 0.79)):
            share = updates / 75
            points.append(TradeoffPoint("Skip GRU", "skip", f"λ={updates}", metric, updates + seed, share, seed))
            points.append(TradeoffPoint("Dense GRU", "random", f"p={share:.2f}", metric - 0.1, updates, share, seed))
            points.append(TradeoffPoint("Dense GRU", "stride", f"every {updates}", metric - 0.05, updates, share, seed))
    return points


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_every_setting_is_labelled_once_and_no_label_covers_another() -> None:
    figure = tradeoff_figure(example_points(), metric_name="mAP", title="Trade-off")
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    settings = {point.setting or point.name for point in example_points()}
    assert sorted(label.get_text() for label in labels) == sorted(settings)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_labels_of_crowded_points_cover_neither_each_other_nor_a_point() -> None:
    points = [TradeoffPoint("Skip GRU", "skip", f"λ=1e-{i}", 0.5 + 0.004 * i, 40 + i, 0.5, 0) for i in range(6)]
    points.append(TradeoffPoint("Dense GRU", "dense", "", 0.9, 75, 1.0, 0))
    figure = tradeoff_figure(points, metric_name="mAP", title="Crowd")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 4
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    spots = axes.transData.transform([(point.updates, point.metric) for point in points])
    assert not any(box.count_contains(spots) for box in boxes)


def test_the_front_is_stepped_and_its_points_are_ringed() -> None:
    figure = tradeoff_figure(example_points(1), metric_name="mAP", title="Trade-off")
    (front,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "Pareto front"]
    xy = np.asarray(front.get_xydata())
    assert (np.diff(xy, axis=0) == 0).any(axis=1).all()
    rings = figure.axes[0].collections[0]
    np.testing.assert_allclose(np.asarray(rings.get_offsets()), [(8, 0.60), (15, 0.72), (40, 0.79), (75, 0.80)])


def test_families_have_colours_of_their_own_and_the_legend_says_which() -> None:
    figure = tradeoff_figure(example_points(), metric_name="mAP", title="Trade-off")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "Pareto front",
        "Skip GRU",
        "Dense GRU, every frame",
        "Dense GRU, uniform stride",
        "Dense GRU, random skipping",
    ]
    families = figure.axes[0].collections[1:]
    assert len({to_hex(np.asarray(family.get_edgecolor())[0]) for family in families}) == 4


def test_ticks_give_updates_and_their_share() -> None:
    figure = tradeoff_figure(example_points(), metric_name="mAP", title="Trade-off")
    figure.draw_without_rendering()
    ticks = [label.get_text().split("\n") for label in figure.axes[0].get_xticklabels()]
    assert ["60", "80 %"] in ticks


def test_a_single_point_and_a_free_one_can_be_drawn() -> None:
    for updates in (0.0, 5.0):
        only = TradeoffPoint("Mean", "mean", "", 0.5, updates, 0.0, 0)
        assert pixels(tradeoff_figure([only], metric_name="mAP", title="One")).std() > 0


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        tradeoff_figure([], metric_name="mAP", title="None")
