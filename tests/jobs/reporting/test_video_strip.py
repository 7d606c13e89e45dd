"""The strip of one video: what its cells show, that it stays small and honest for a long video, and its file name."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.reporting.filmstrip import Strip, film_strip, png
from skipreel.jobs.reporting.video_strip import MAX_CELLS, StripFolder, strip_name, strip_of
from skipreel.models import Cost
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.sampling import Sampling
from tests.support.videos import frame_number, write_video

CLASSES = ("Holding clothes", "Opening a door", "Waving")
LEFT, WIDTH = 0.82, 9.0 - 0.82 - 0.14
ACCENT = (224, 161, 0)


def prediction(path, *, rate_hz=30.0, used=None, scores=None) -> Prediction:
    with open_video(str(path)) as video:
        index, duration_s = Sampling(rate_hz).select(video.pts_seconds), video.duration_s
        pts_s = video.pts_seconds[index]
    looked = np.zeros(len(index), np.bool_)
    looked[[0] if used is None else used] = True
    if scores is None:
        scores = np.zeros((len(index), 3), np.float32)
    return Prediction(str(path), duration_s, index, pts_s, looked, scores, Cost(len(index), 1, 1, 1, 1))


def numbers(strip: Strip) -> list[int]:
    """Which frames the thumbnails show, read from their pixels."""
    return [frame_number(thumbnail) for thumbnail in strip.thumbnails]


def texts(strip: Strip) -> set[str]:
    return {text.get_text() for axes in film_strip(strip).axes for text in axes.texts}


def pixels(strip: Strip) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(film_strip(strip)))).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("short") / "a.mp4", num_frames=30, fps=30, size=(128, 96))


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "a.mp4", num_frames=250, fps=30, size=(128, 96))


def test_a_short_video_shows_every_sampled_frame(short):
    strip = strip_of("a", prediction(short, used=[0, 3]), class_names=CLASSES, task="frames")
    assert numbers(strip) == list(range(30))
    assert strip.thumbnails.shape == (30, 84, 112, 3)
    assert strip.frames_per_cell == 1
    assert strip.cells_used.nonzero()[0].tolist() == [0, 3]
    assert "2 of 30 frames looked at" in texts(strip)
    assert not any("one of every" in text for text in texts(strip))


def test_a_long_video_shows_of_each_group_a_frame_that_was_looked_at_if_there_is_one(long):
    strip = strip_of("a", prediction(long, used=[0, 4, 5, 11, 249]), class_names=CLASSES, task="frames")
    assert strip.frames_per_cell == 3
    assert len(strip.thumbnails) == 84 <= MAX_CELLS
    shown = numbers(strip)
    assert shown[:5] == [0, 4, 6, 11, 12]
    assert shown[5:] == list(range(15, 250, 3))
    assert strip.cells_used.nonzero()[0].tolist() == [0, 1, 3, 83]
    assert {
        "5 of 250 frames looked at",
        "one of every 3 sampled frames, marks below for all that were looked at",
    } <= texts(strip)


def test_only_the_frames_shown_are_converted_and_one_is_held_at_a_time(long, monkeypatch):
    opened = []

    def watched(uri, decoder):
        opened.append((open_video(uri, decoder), decoder))
        return opened[0][0]

    monkeypatch.setattr("skipreel.jobs.reporting.video_strip.open_video", watched)
    strip_of("a", prediction(long), class_names=CLASSES, task="frames", decoder="decord")
    assert opened[0][1] == "decord"
    opened.clear()
    strip_of("a", prediction(long), class_names=CLASSES, task="frames")
    assert opened[0][0].num_converted == 84


def test_thumbnails_of_a_very_high_video_stay_small(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=2, size=(32, 640))
    strip = strip_of("a", prediction(path), class_names=CLASSES, task="frames")
    assert strip.thumbnails.shape == (2, 224, 11, 3)


def test_a_video_task_names_its_best_class(short):
    scores = np.array([0.2, 0.7, 0.1], np.float32)
    strip = strip_of("a", prediction(short, scores=scores), class_names=CLASSES, task="video", true_label=CLASSES[0])
    assert strip.predicted is None
    assert f"true: {CLASSES[0]}   predicted: {CLASSES[1]} ✗" in texts(strip)


def test_the_threshold_decides_what_counts_as_predicted(short):
    scores = np.full((30, 3), 0.3, np.float32)
    found = strip_of("a", prediction(short, scores=scores), class_names=CLASSES, task="frames", threshold=0.3)
    assert found.predicted is not None
    assert found.predicted.all()
    assert not strip_of("a", prediction(short, scores=scores), class_names=CLASSES, task="frames").predicted.any()


def test_names_with_dollar_signs_and_of_any_length_are_drawn_as_they_are(short):
    names = (r"Putting $5 and $\x$", "a class whose name is rather longer than a fourth of the sheet", "c")
    scores = np.ones((30, 3), np.float32)
    path = "/somewhere/" + "deep/" * 20 + r"$\frac$.mp4"
    strip = strip_of(path, prediction(short, scores=scores), class_names=names, task="frames")
    assert pixels(strip).std() > 0
    title = next(text for text in texts(strip) if text.startswith("…"))
    assert title.endswith(r"deep/$\frac$.mp4")
    assert len(title) == 60


def test_a_folder_gets_one_png_for_each_video(short, tmp_path):
    folder = StripFolder(str(tmp_path / "strips"), CLASSES, "frames")
    keys = ["4WSJL", "clips/a.mp4", "clips2/a.mp4", "../../a.mp4"]
    written = [folder.add(key, prediction(short)) for key in keys]
    assert {Path(uri).parent for uri in written} == {tmp_path / "strips"}
    assert sorted(map(str, (tmp_path / "strips").iterdir())) == sorted(written)
    for uri in written:
        assert Image.open(uri).size[0] == 1800
    assert Path(written[0]).name == "4WSJL.png"


def test_frames_that_cannot_be_decoded_are_told(tmp_path, short):
    one = prediction(short)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(short.read_bytes()[:200])
    one = Prediction(str(broken), 1.0, one.frame_index, one.pts_s, one.used, one.scores, one.cost)
    with pytest.raises(VideoError):
        StripFolder(str(tmp_path / "strips"), CLASSES, "frames").add("a", one)
    assert not (tmp_path / "strips").exists()


KEYS = [
    "4WSJL",
    "4wsjl-x",
    "fight/fi001",
    "other/fi001",
    "fi001",
    "fi001.mp4",
    "clips/a b.mp4",
    "clips/a_b.mp4",
    "..",
    "../..",
    "/",
    "",
    ".hidden",
    "-rf",
    "CON\n",
    "s3://bucket/a.mp4?region=us-east-1",
    "s3://bucket/a.mp4?region=eu",
    "x" * 300,
    "x" * 301,
    "дом/кот.mp4",
    "дом/кит.mp4",
]


def test_names_of_strips_are_safe_and_never_shared():
    # A key that looks like the name made for another one must not get it.
    keys = [*KEYS, *(strip_name(key).removesuffix(".png") for key in KEYS if strip_name(key) != f"{key}.png")]
    names = [strip_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        assert os.path.basename(name) == name  # noqa: PTH119
        assert name.isascii()
        assert name.isprintable()
        assert name[0] not in ".-_"
        assert len(name) < 120
    assert strip_name("clips/a b.mp4").startswith("a_b-")


def test_a_strip_counts_from_the_first_frame_whatever_the_clock_of_the_file(tmp_path):
    times_ms = [3_600_000 + 40 * number for number in range(10)]
    path = write_video(tmp_path / "a.mkv", num_frames=10, fps=25, times_ms=times_ms)
    strip = strip_of("a", prediction(path, rate_hz=25), class_names=CLASSES, task="frames")
    assert strip.times_s.tolist() == [number / 25 for number in range(10)]
