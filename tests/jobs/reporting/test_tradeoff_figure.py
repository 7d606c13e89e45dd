import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation
from PIL import Image

from skipreel.jobs.reporting.filmstrip import Strip, compose_row, film_strip
from skipreel.jobs.reporting.tradeoff_figure import tradeoff_figure
from skipreel.jobs.training.tradeoff import TradeoffPoint

CLASSES = ("Rolling a ball", "Opening a door", "Waving a flag")
RIM = (224, 161, 0)


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


def example_strip(count: int = 50, **changes: object) -> Strip:
    rng = np.random.default_rng(0)
    predicted = np.zeros((count, 3), bool)
    predicted[10:14, 0] = True
    fields: dict[str, object] = {
        "video_id": "4WSJL",
        "times_s": np.arange(count) / 6,
        "thumbnails": rng.integers(0, 256, (count, 30, 40, 3), dtype=np.uint8),
        "used": np.arange(count) % 5 == 0,
        "class_names": CLASSES,
        "true_spans": [(0, 1.0, 2.5), (1, 2.0, 6.0)],
        "predicted": predicted,
    }
    return Strip(**(fields | changes))  # type: ignore[arg-type]


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


def test_used_frames_keep_their_colours_in_a_rim_and_skipped_ones_are_grey_and_pale() -> None:
    strip = example_strip(7)
    row = compose_row(strip, 2, 7)
    assert row.dtype == np.uint8
    assert row.shape == (30 + 4, 5 * (40 + 4), 3)
    for position, index in enumerate(range(2, 7)):
        cell = row[:, position * 44 : (position + 1) * 44]
        inner = cell[2:-2, 2:-2]
        if strip.used[index]:
            np.testing.assert_array_equal(inner, strip.thumbnails[index])
            assert {tuple(rgb) for rgb in cell[0].tolist()} == {RIM}
        else:
            assert (inner == inner[..., :1]).all()
            assert inner.std() < 0.7 * strip.thumbnails[index].std()
            assert (cell[0] == 255).all()


def test_as_many_frames_as_were_used_are_coloured_in_the_drawn_strip() -> None:
    grey = np.full((24, 30, 40, 3), 120, np.uint8)
    used = np.zeros(24, bool)
    used[[3, 4, 17]] = True
    image = pixels(film_strip(example_strip(24, thumbnails=grey, used=used, true_spans=(), predicted=None)))
    rim = (np.abs(image.astype(int) - RIM) < 40).all(axis=-1)
    columns = np.flatnonzero(rim.sum(axis=0) > 20)
    left, right = 0.82 * 200, (9.0 - 0.14) * 200
    frames = set(((columns - left) * 24 / (right - left)).astype(int).tolist())
    assert {3, 4, 17} <= frames <= {3, 4, 5, 17, 18}


def test_a_strip_names_its_video_counts_its_frames_and_shows_both_kinds_of_labels() -> None:
    found = texts(film_strip(example_strip(50)))
    assert {"4WSJL", "10 of 50 frames looked at", "true", "predicted", *CLASSES[:2]} <= found
    assert CLASSES[2] not in found


def test_bars_lie_over_the_frames_of_their_seconds() -> None:
    times = np.arange(24) / 6
    figure = film_strip(example_strip(24, times_s=times, true_spans=[(1, 1.0, 3.0)], predicted=None))
    bar = figure.axes[0].patches[0]
    assert isinstance(bar, FancyBboxPatch)
    cell = (9.0 - 0.82 - 0.14) / 24
    assert bar.get_x() == pytest.approx(0.82 + 6 * cell)
    assert bar.get_width() == pytest.approx(12 * cell)


def test_a_label_for_the_whole_video_is_written_out() -> None:
    changes = {"true_spans": (), "predicted": None, "true_label": "Fight", "predicted_label": "No fight"}
    (note,) = [text for text in texts(film_strip(example_strip(30, **changes))) if "Fight" in text]
    assert note == "true: Fight   predicted: No fight ✗"


def test_many_classes_show_the_true_ones_first_and_then_the_most_predicted() -> None:
    predicted = np.zeros((24, 40), bool)
    for class_id in range(20):
        predicted[: class_id + 1, class_id] = True
    names = tuple(f"class {i}" for i in range(40))
    strip = example_strip(24, class_names=names, predicted=predicted, true_spans=[(0, 0.0, 1.0), (39, 2.0, 3.0)])
    shown = {text for text in texts(film_strip(strip)) if text.startswith("class")}
    assert shown == {"class 0", "class 39", *(f"class {i}" for i in range(14, 20))}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"used": np.ones(3, bool)}, "same T"), ({"predicted": np.zeros((50, 2), bool)}, r"\(50, 3\)")],
)
def test_arrays_that_do_not_fit_together_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        example_strip(50, **changes)
