"""Every format of predictions is read back by other means than it was written with."""

import csv
import json
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from skipreel.jobs.closed_loop.labels import segments
from skipreel.jobs.closed_loop.prediction import Prediction, Seconds
from skipreel.jobs.predictions import files as prediction_files
from skipreel.jobs.predictions import parquet as prediction_parquet
from skipreel.jobs.predictions.files import choose_format, open_writer
from skipreel.jobs.predictions.text import charades_scores
from skipreel.models import Cost
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.video.sampling import Sampling

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)

CLASSES = ("Holding, some clothes", 'Opening "a" door', "Wäving")
FRAMES = {"class_names": CLASSES, "task": "frames"}
VIDEO = {"class_names": CLASSES, "task": "video"}


def prediction(*, task="frames", seed=0, steps=30, rate_hz=10.0) -> Prediction:
    rng = np.random.default_rng(seed)
    shape = (steps, 3) if task == "frames" else (3,)
    used = np.arange(steps) % 3 == 0
    looked_at = int(used.sum())
    cost = Cost(steps, looked_at, looked_at + 4, looked_at, looked_at, looked_at + 1)
    return Prediction(
        uri=f"/videos/{seed}.mp4",
        duration_s=steps / rate_hz,
        frame_index=np.arange(steps) * 2,
        pts_s=np.arange(steps) / rate_hz,
        used=used,
        scores=(rng.random(shape) ** 8).astype(np.float32),
        cost=cost,
        seconds=Seconds(0.25, 0.5, 0.125),
        start_s=1.4,
    )


def written(path, *predictions, videos=(), **settings):
    with open_writer(str(path), **(FRAMES | settings)) as writer:
        for number, one in enumerate(chain(predictions, videos)):
            writer.add(f"video {number}", one)
    return path


def test_segments_are_the_runs_above_the_threshold():
    looked = prediction()
    looked.scores[:] = 0.1
    looked.scores[2:5, 1] = 0.9
    looked.scores[29, 2] = 0.7
    found = [(s["class"], s["start_s"], s["end_s"], s["score"]) for s in segments(looked, ("a", "b", "c"), 0.5)]
    assert found == [("b", 0.2, 0.4, 0.9), ("c", 2.9, 2.9, 0.7)]


def test_a_json_line_has_labels_scores_times_costs_and_seconds(tmp_path):
    one = prediction()
    one.scores[:] = 0.1
    one.scores[2:5, 1] = 0.9
    (line,) = written(tmp_path / "a.jsonl", one).read_text().splitlines()
    found = json.loads(line)
    assert found["labels"] == [{"class": CLASSES[1], "start_s": 0.2, "end_s": 0.4, "score": 0.9}]
    assert found["scores"] == {CLASSES[0]: 0.1, CLASSES[1]: pytest.approx(0.18), CLASSES[2]: 0.1}
    assert found["looked_at_s"] == [round(0.3 * i, 3) for i in range(10)]
    assert found["cost"]["frames_converted"] == 11
    assert found["seconds"] == {"decode": 0.25, "encode": 0.5, "recognise": 0.125}
    assert (found["video"], found["uri"], found["duration_s"]) == ("video 0", "/videos/0.mp4", 3.0)
    assert found["start_s"] == 1.4
    assert "frame_scores" not in found


def test_frame_scores_in_json_read_back_as_the_same_float32(tmp_path):
    one = prediction()
    line = json.loads(written(tmp_path / "a.jsonl", one, frame_scores=True).read_text())
    np.testing.assert_array_equal(np.array(line["frame_scores"], np.float32), one.scores)
    assert line["pts_s"] == one.pts_s.tolist()
    assert line["frame_index"] == one.frame_index.tolist()


def test_json_of_a_whole_video_has_its_best_class_and_all_scores(tmp_path):
    one = replace(prediction(task="video"), scores=np.array([0.2, 0.7, 0.1], np.float32))
    line = json.loads(written(tmp_path / "a.jsonl", one, task="video").read_text())
    assert line["labels"] == [{"class": CLASSES[1], "score": 0.7}]
    assert line["scores"] == dict(zip(CLASSES, (0.2, 0.7, 0.1), strict=True))


def test_csv_has_a_row_for_each_frame_with_names_above_the_threshold(tmp_path):
    videos = [prediction(seed=1), prediction(seed=2, steps=4)]
    with written(tmp_path / "a.csv", *videos, threshold=0.25).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["video 0"] * 30 + ["video 1"] * 4
    read = np.array([[row[name] for name in CLASSES] for row in rows]).astype(np.float32)
    scores = np.concatenate([video.scores for video in videos])
    np.testing.assert_array_equal(read, scores)
    assert [row["looked_at"] for row in rows[:4]] == ["1", "0", "0", "1"]
    assert [float(row["pts_s"]) for row in rows[:30]] == videos[0].pts_s.tolist()
    assert [int(row["frame_index"]) for row in rows[:30]] == videos[0].frame_index.tolist()
    named = [";".join(np.array(CLASSES)[row >= 0.25]) for row in scores]
    assert [row["labels"] for row in rows] == named
    assert any(";" in names for names in named)
    assert "" in named


def test_csv_of_whole_videos_has_a_row_for_each(tmp_path):
    videos = [prediction(task="video", seed=seed) for seed in range(2)]
    with written(tmp_path / "a.csv", *videos, task="video").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [CLASSES[int(video.scores.argmax())] for video in videos]
    assert [row["frames_looked_at"] for row in rows] == ["10", "10"]
    read = np.array([[row[name] for name in CLASSES] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(read, [video.scores for video in videos])


def test_parquet_has_a_row_for_each_video_and_for_each_failure(tmp_path):
    one = prediction()
    path = tmp_path / "a.parquet"
    with open_writer(str(path), **FRAMES) as writer:
        writer.add("good", one)
        writer.fail("bad", "/videos/bad.mp4", "not a video")
    table = pq.read_table(path)
    assert table.schema.equals(prediction_parquet.SCHEMA)
    assert json.loads(table.schema.metadata[b"skipreel.class_names"]) == list(CLASSES)
    good, bad = table.to_pylist()
    np.testing.assert_array_equal(np.array(good["scores"], np.float32).reshape(30, good["num_classes"]), one.scores)
    np.testing.assert_allclose(good["video_scores"], one.scores.mean(axis=0), rtol=1e-6)
    assert good["used"] == one.used.tolist()
    assert good["pts_s"] == one.pts_s.tolist()
    assert good["start_s"] == 1.4
    assert good["frame_index"] == one.frame_index.tolist()
    counts = ("frames_total", "frames_wanted", "frames_decoded", "frames_converted", "frames_encoded", "state_updates")
    assert [good[name] for name in counts] == [30, 10, 14, 11, 10, 10]
    assert [good[name] for name in ("decode_s", "encode_s", "recognise_s")] == [0.25, 0.5, 0.125]
    assert (good["error"], good["duration_s"]) == (None, 3.0)
    assert (bad["video_id"], bad["uri"], bad["error"]) == ("bad", "/videos/bad.mp4", "not a video")
    assert bad["scores"] is bad["duration_s"] is None


def test_parquet_of_whole_videos_has_no_scores_in_time(tmp_path):
    one = prediction(task="video")
    (row,) = pq.read_table(written(tmp_path / "a.parquet", one, task="video")).to_pylist()
    assert row["scores"] is None
    np.testing.assert_array_equal(np.array(row["video_scores"], np.float32), one.scores)


def test_parquet_is_written_row_group_by_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_files, "ROW_GROUP_BYTES", 2000)
    file = pq.ParquetFile(written(tmp_path / "a.parquet", *(prediction(seed=seed) for seed in range(9))))
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sum(sizes) == 9
    assert max(sizes) == 3


def read_charades(path):
    """Id, frame number and scores of each line, as the official script's textscan takes them apart."""
    for line in path.read_text().splitlines():
        name, number, *scores = line.split(" ")
        yield name, int(number), [float(score) for score in scores]


def average_precision(scores, positive):
    """The official way: a walk down the ranking, adding the precision reached at each positive."""
    hits, total = 0, 0.0
    for rank, place in enumerate(sorted(range(len(scores)), key=lambda place: -scores[place]), 1):
        if positive[place]:
            hits += 1
            total += hits / rank
    return total / hits


def test_charades_localisation_gives_the_average_precision_of_25_times_per_video(tmp_path):
    videos = [prediction(seed=1, steps=40), prediction(seed=2, steps=17, rate_hz=6.0)]
    truth = {"video%200": [(1, 0.5, 1.28)], "video%201": [(0, 0.0, 0.9), (1, 1.2, 2.0)]}
    lines = list(read_charades(written(tmp_path / "a.txt", *videos)))
    assert [(name, number) for name, number, _ in lines] == [(name, j) for name in truth for j in range(1, 26)]
    lengths = dict(zip(truth, (video.duration_s for video in videos), strict=True))

    # What the file should say, found frame by frame: the last sampled frame that has been presented.
    expected, positive = [], []
    for (name, length), video in zip(lengths.items(), videos, strict=True):
        for j in range(1, 26):
            t = (j - 1) / 25 * length
            shown = max(i for i, pts in enumerate(video.pts_s) if pts <= t + 1e-9)
            expected.append(video.scores[shown])
            positive.append([any(c == c2 and s <= t <= e for c2, s, e in truth[name]) for c in range(3)])
    read, positive = np.array([scores for _, _, scores in lines]), np.array(positive)
    np.testing.assert_array_equal(read.astype(np.float32), np.array(expected))
    for class_id in (0, 1):
        found = average_precision(read[:, class_id], positive[:, class_id])
        order = np.argsort(-np.array(expected)[:, class_id], kind="stable")
        ranked = positive[order, class_id]
        assert found == pytest.approx((np.cumsum(ranked) / np.arange(1, 51))[ranked].mean())


def test_charades_classification_is_the_mean_of_the_same_25_scores(tmp_path):
    videos = [prediction(seed=1, steps=40), prediction(seed=2, steps=17)]
    path = written(tmp_path / "a.dat", *videos, given="charades-classification")
    for number, (line, video) in enumerate(zip(path.read_text().splitlines(), videos, strict=True)):
        name, *scores = line.split(" ")
        assert name == f"video%20{number}"
        np.testing.assert_allclose(np.array(scores, float), charades_scores(video).mean(axis=0), rtol=1e-6)


def test_charades_ids_are_those_of_a_manifest_or_names_of_files(tmp_path):
    keys = ["0UNUJ", "few/1AB2C.mp4", "s3://bucket/few/3D E.mkv"]
    with open_writer(str(tmp_path / "a.txt"), **FRAMES) as writer:
        for key in keys:
            writer.add(key, prediction())
    assert {name for name, _, _ in read_charades(tmp_path / "a.txt")} == {"0UNUJ", "1AB2C", "3D%20E"}


@pytest.mark.parametrize("seed", range(5))
def test_charades_frames_are_those_that_sampling_would_take(seed):
    rng = np.random.default_rng(seed)
    one = prediction(steps=50)
    pts_s = 1.5 + np.cumsum(rng.uniform(0.02, 0.3, 50))
    numbered = np.repeat(np.arange(50, dtype=np.float32)[:, None], 3, axis=1)
    # 25 intervals that end with the last frame, so that sampling's grid takes one more target, the last frame.
    one = replace(one, pts_s=pts_s, duration_s=float(pts_s[-1] - pts_s[0]), scores=numbered)
    shown = set(charades_scores(one)[:, 0].astype(int).tolist())
    assert shown | {49} == set(Sampling(25 / one.duration_s).select(pts_s).tolist())


def test_a_frame_presented_at_a_charades_time_counts_whatever_its_last_digit():
    numbered = np.repeat(np.arange(25, dtype=np.float32)[:, None], 3, axis=1)
    one = replace(prediction(steps=25), pts_s=np.arange(25) * 0.1, duration_s=2.5, scores=numbered)
    assert (np.arange(25) * 0.1 > np.arange(25) / 25 * 2.5).any()
    np.testing.assert_array_equal(charades_scores(one), numbered)


def test_a_failed_video_is_a_json_line_and_no_row_elsewhere(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.txt"):
        with open_writer(str(tmp_path / name), **FRAMES) as writer:
            writer.fail("bad", "s3://b/bad.mp4", "not a video")
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert line == {"video": "bad", "uri": "s3://b/bad.mp4", "error": "not a video"}
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1
    assert (tmp_path / "a.txt").read_text() == ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt"])
def test_a_file_in_a_bucket_is_the_same_as_on_a_disk(s3: "S3Folder", tmp_path, name):
    for path in (s3.join(name), str(tmp_path / name)):
        written(path, prediction(), prediction(seed=1))
    assert storage.read_bytes(s3.join(name)) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt"])
def test_an_interrupted_run_leaves_the_old_file_and_nothing_else(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")

    def videos():
        yield prediction()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(path, videos=videos())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"


def test_standard_output_gets_each_video_as_it_comes(capsys):
    with open_writer(None, **FRAMES) as writer:
        writer.add("a", prediction())
        assert json.loads(capsys.readouterr().out)["video"] == "a"
        writer.fail("b", "b", "gone")
        assert json.loads(capsys.readouterr().out)["error"] == "gone"


@pytest.mark.parametrize(
    ("path", "given", "form"),
    [
        (None, None, "jsonl"),
        (None, "csv", "csv"),
        ("a.CSV", None, "csv"),
        ("a.txt", None, "charades-localisation"),
        ("s3://bucket/a.parquet?region=us-east-1", None, "parquet"),
        ("s3://bucket/a.csv?endpoint_override=127.0.0.1:9000", None, "csv"),
        ("what?.csv", None, "csv"),
        ("a.dat", "csv", "csv"),
    ],
)
def test_the_suffix_says_the_format_unless_it_is_given(path, given, form):
    assert choose_format(path, given) == form


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        ("a.xml", {}, r"suffix '\.xml'; allowed: \.jsonl, \.csv"),
        (None, {"given": "parquet"}, "name a file"),
        ("a.txt", VIDEO, "scores in time.*whole videos"),
        ("a.dat", VIDEO | {"given": "charades-classification"}, "scores in time"),
        ("a.jsonl", VIDEO | {"frame_scores": True}, "scores whole videos"),
        ("a.csv", {"frame_scores": True}, "jsonl alone, csv has"),
        ("a.csv", {"class_names": ("a", "labels")}, "named 'labels'"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, path, changes, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as stop, open_writer(path, **(FRAMES | changes)):
        pass
    assert "\n" not in str(stop.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(tmp_path, value):
    one = prediction()
    one.scores[3, 1] = value
    with pytest.raises(InputError, match="video 0 are not finite"):
        written(tmp_path / "a.jsonl", one)
    assert not list(tmp_path.iterdir())
