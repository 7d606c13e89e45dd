"""`skipreel predict` as a user calls it: inputs, outputs, film strips, the dial, a job on the cluster."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from skipreel.jobs.cli import main
from skipreel.jobs.closed_loop.recognizer import VideoRecognizer
from skipreel.jobs.commands import predict
from skipreel.jobs.predictions.store import iterate_predictions
from skipreel.pipeline.errors import VideoError


@pytest.fixture(scope="module")
def model(swept) -> str:
    return swept.checkpoint("skip-gru-lambda-0.05")


@pytest.fixture
def videos(swept, tmp_path) -> Path:
    """Three good videos in a folder, and one that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(swept.folder.glob("*.mp4"))[:3]:
        shutil.copy(path, folder)
    (folder / "bad.mp4").write_text("no video")
    return folder


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return {Path(line["video"]).name: line for line in lines}


def test_a_folder_gives_a_line_per_video_and_a_bad_one_stops_no_other(videos, model, capsys):
    assert main(["predict", str(videos), "--model", model]) == predict.EXIT_SOME_FAILED
    lines = lines_of(capsys)
    assert len(lines) == 4
    assert "bad.mp4" in lines.pop("bad.mp4")["error"]
    for line in lines.values():
        cost = line["cost"]
        assert cost["frames_encoded"] == cost["frames_converted"] == cost["frames_wanted"] == len(line["looked_at_s"])
        assert 0 < cost["frames_wanted"] < cost["frames_total"]
        assert cost["frames_wanted"] <= cost["frames_decoded"]


def test_dense_looks_everywhere_with_the_same_scores_and_gates(videos, model, capsys):
    (videos / "bad.mp4").unlink()
    found = []
    for more in ([], ["--dense"]):
        assert main(["predict", str(videos), "--model", model, "--frame-scores", *more]) == 0
        found.append(lines_of(capsys))
    for name, line in found[0].items():
        dense = found[1][name]
        assert dense["cost"]["frames_encoded"] == line["cost"]["frames_total"]
        assert dense["looked_at_s"] == line["looked_at_s"]
        for row, other in zip(line["frame_scores"], dense["frame_scores"], strict=True):
            assert row == pytest.approx(other, abs=1e-5)


def test_a_budget_changes_how_much_is_looked_at(videos, model, capsys):
    (videos / "bad.mp4").unlink()
    looked = []
    for budget in ("0.9", "0.3"):
        assert main(["predict", str(videos), "--model", model, "--budget", budget]) == 0
        costs = [line["cost"] for line in lines_of(capsys).values()]
        looked.append(sum(cost["frames_wanted"] for cost in costs) / sum(cost["frames_total"] for cost in costs))
    assert looked[0] > 0.6
    assert looked[1] < 0.45


def test_files_by_suffix_and_film_strips(videos, model, tmp_path, capsys):
    for name in ("labels.csv", "labels.parquet", "charades.txt"):
        words = [str(videos), "--model", model, "--output", str(tmp_path / name)]
        assert main(["predict", *words, "--strip", str(tmp_path / "strips")]) == predict.EXIT_SOME_FAILED
        assert "bad.mp4" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    table = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert len(rows) == sum(row["frames_total"] or 0 for row in table)
    assert [row["error"] is not None for row in table].count(True) == 1
    assert len((tmp_path / "charades.txt").read_text().splitlines()) == 3 * 25
    strips = sorted((tmp_path / "strips").glob("*.png"))
    assert len(strips) == 3
    assert all(Image.open(strip).width > 500 for strip in strips)


def test_a_folder_as_output_is_filled_by_the_cluster_and_gone_on_with(swept, model, tmp_path, capsys):
    words = ["predict", "--manifest", swept.manifest, "--model", model, "--output", str(tmp_path / "labels")]
    assert main([*words, "--split", "test"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["finished"], first["this_run"]["finished"]) == (2, 2)
    assert main(words) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["finished"], second["this_run"]["finished"]) == (6, 4)
    recognizer = VideoRecognizer.load(model)
    for video_id, stored in iterate_predictions(str(tmp_path / "labels")):
        direct = recognizer.predict(swept.folder / f"{video_id}.mp4")
        assert stored.used.tolist() == direct.used.tolist()
        assert stored.scores == pytest.approx(direct.scores, abs=1e-5)


def test_a_notebook_gets_predictions_in_the_order_of_its_videos(videos, model):
    recognizer = VideoRecognizer.load(model)
    good = sorted(path for path in videos.iterdir() if path.name != "bad.mp4")
    together = recognizer.predict(good)
    assert [prediction.uri for prediction in together] == [str(path) for path in good]
    alone = recognizer.predict(str(good[0]))
    assert alone.scores == pytest.approx(together[0].scores, abs=1e-5)
    labels = recognizer.labels(alone, threshold=1e-6)
    assert {label["class"] for label in labels} <= set(recognizer.class_names)
    assert all(label["end_s"] <= alone.duration_s for label in labels)
    with pytest.raises(VideoError, match="bad"):
        recognizer.predict([*good, videos / "bad.mp4"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--live", "-", "--dense"], "--live labels one stream"),
        (["v.mp4", "--output", "folder", "--strip", "strips"], "leave out --strip"),
        (["v.mp4", "--output", "labels.xls"], "suffix '.xls'"),
        (["v.mp4", "--threshold", "1"], "--threshold is 1.0"),
        (["v.mp4", "--in-flight", "0"], "--in-flight is 0"),
        (["a/x.mp4", "b/x.mp4", "--output", "c.txt"], "would both be 'x' in the file"),
        ([], "no video given"),
    ],
)
def test_wrong_settings_are_one_line(words, message, model, capsys):
    assert main(["predict", *words, "--model", model]) == 1
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
