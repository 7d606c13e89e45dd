"""The figure of a film strip: its cells, bars, marks and labels."""

import io

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from skipreel.jobs.reporting.filmstrip import Strip, compose_row, film_strip, png

CLASSES = ("Rolling a ball", "Opening a door", "Waving a flag")
LEFT, WIDTH = 0.82, 9.0 - 0.82 - 0.14
ACCENT = (224, 161, 0)


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


def texts(strip: Strip) -> set[str]:
    return {text.get_text() for axes in film_strip(strip).axes for text in axes.texts}


def pixels(strip: Strip) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(film_strip(strip)))).convert("RGB")).astype(int)


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
            assert {tuple(rgb) for rgb in cell[0].tolist()} == {ACCENT}
        else:
            assert (inner == inner[..., :1]).all()
            assert inner.std() < 0.7 * strip.thumbnails[index].std()
            assert (cell[0] == 255).all()


def test_as_many_frames_as_were_used_are_coloured_in_the_drawn_strip() -> None:
    grey = np.full((24, 30, 40, 3), 120, np.uint8)
    used = np.zeros(24, bool)
    used[[3, 4, 17]] = True
    image = pixels(example_strip(24, thumbnails=grey, used=used, true_spans=(), predicted=None))
    rim = (np.abs(image - ACCENT) < 40).all(axis=-1)
    columns = np.flatnonzero(rim.sum(axis=0) > 20)
    left, right = 0.82 * 200, (9.0 - 0.14) * 200
    frames = set(((columns - left) * 24 / (right - left)).astype(int).tolist())
    assert {3, 4, 17} <= frames <= {3, 4, 5, 17, 18}


def test_a_strip_names_its_video_counts_its_frames_and_shows_both_kinds_of_labels() -> None:
    found = texts(example_strip(50))
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
    (note,) = [text for text in texts(example_strip(30, **changes)) if "Fight" in text]
    assert note == "true: Fight   predicted: No fight ✗"


def test_many_classes_show_the_true_ones_first_and_then_the_most_predicted() -> None:
    predicted = np.zeros((24, 40), bool)
    for class_id in range(20):
        predicted[: class_id + 1, class_id] = True
    names = tuple(f"class {i}" for i in range(40))
    strip = example_strip(24, class_names=names, predicted=predicted, true_spans=[(0, 0.0, 1.0), (39, 2.0, 3.0)])
    shown = {text for text in texts(strip) if text.startswith("class")}
    assert shown == {"class 0", "class 39", *(f"class {i}" for i in range(14, 20))}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"used": np.ones(3, bool)}, "same T"), ({"predicted": np.zeros((50, 2), bool)}, r"\(50, 3\)")],
)
def test_arrays_that_do_not_fit_together_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        example_strip(50, **changes)


def test_marks_under_a_long_video_stand_where_it_was_looked_at():
    used = np.zeros(480, bool)
    used[[0, 7, 8, 130, 479]] = True
    grey = np.full((96, 30, 40, 3), 120, np.uint8)
    strip = Strip("a", np.arange(480) / 10, grey, used, CLASSES, frames_per_cell=5)
    image = pixels(strip)
    centres = (200 * (LEFT + WIDTH / 120 * (np.arange(120) + 0.5))).astype(int)
    marks = (np.abs(image[:, centres] - ACCENT) < 30).all(axis=-1)
    empty = (np.abs(image[:, centres] - (227, 230, 235)) < 12).all(axis=-1)
    # Lines of pixels in which every frame has its place, marked or not: some for each of the four rows.
    lines = np.flatnonzero((marks | empty).all(axis=1))
    rows = np.split(marks[lines], np.flatnonzero(np.diff(lines) > 1) + 1)
    assert len(rows) == 4
    np.testing.assert_array_equal(np.concatenate([row[len(row) // 2] for row in rows]), used)


def bars(strip: Strip) -> list[tuple[float, float]]:
    """Start and length of each bar, in cells of 24 to a row; the legend's boxes are left out."""
    patches = [patch for patch in film_strip(strip).axes[0].patches if isinstance(patch, FancyBboxPatch)]
    cell = WIDTH / 24
    return [((p.get_x() - LEFT) / cell, p.get_width() / cell) for p in patches if p.get_height() > 0.13]


def test_bars_of_a_long_video_are_as_fine_as_its_frames():
    count = 5 * 24
    predicted = np.zeros((count, 3), bool)
    predicted[7:18, 1] = True
    thumbnails, used = np.zeros((24, 30, 40, 3), np.uint8), np.zeros(count, bool)
    strip = Strip(
        "a",
        np.arange(count) / 10,
        thumbnails,
        used,
        CLASSES,
        predicted=predicted,
        true_spans=[(0, 1.0, 2.1)],
        frames_per_cell=5,
    )
    true, found = bars(strip)
    assert true == pytest.approx((10 / 5, 11 / 5))
    assert found == pytest.approx((7 / 5, 11 / 5))


def test_a_flickering_prediction_of_a_very_long_video_has_a_bounded_number_of_bars():
    count = 24 * 1000
    predicted = np.zeros((count, 3), bool)
    predicted[::2, 0] = True
    thumbnails, used = np.zeros((24, 3, 4, 3), np.uint8), np.zeros(count, bool)
    strip = Strip("a", np.arange(count) / 10, thumbnails, used, CLASSES, predicted=predicted, frames_per_cell=1000)
    assert len(bars(strip)) <= 24 * 8
