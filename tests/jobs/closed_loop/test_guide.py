"""Every Python block of docs/closed-loop.md runs."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from skipreel.features.feature_set.schema import Source
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.jobs.closed_loop.recognizer import predict
from skipreel.jobs.predictions import store
from skipreel.jobs.predictions.store import PredictionRows, PredictionSpec
from skipreel.models import save_checkpoint
from skipreel.pipeline.storage import FileStat
from tests.support.models import BACKBONE, make_model
from tests.support.videos import write_video

PAGE = (Path(__file__).parents[3] / "docs" / "closed-loop.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the guide reads: a trained network, videos, the predictions of a job."""
    folder = tmp_path_factory.mktemp("guide")
    model = make_model(task="video")
    facts = {"settings": {}, "class_names": list(model.class_names), "feature_set_id": model.feature_set_id}
    facts |= {"recipe": model.spec.to_json(), "budget_curve": [(-3.0, 0.05), (0.0, 0.25), (3.0, 0.9)]}
    checkpoint = folder / "trained" / "checkpoints" / "skip-gru-lambda-0.001-seed-0"
    checkpoint.parent.mkdir(parents=True)
    save_checkpoint(checkpoint, model.recognizer, facts)
    write_video(folder / "clip.mp4", num_frames=20, fps=10)
    (folder / "clips").mkdir()
    write_video(folder / "clips" / "good.mp4", num_frames=20, fps=10)
    (folder / "clips" / "bad.mp4").write_text("no video")

    predictions = str(folder / "predictions")
    store.create(predictions, PredictionSpec.of(model, dense=False), model="", features={}, about="")
    made = predict(str(folder / "clip.mp4"), model=model, backbone=BACKBONE)
    rows = PredictionRows("clip", Source("digest", FileStat(1, 1)), task="video")
    rows.append(made.frame_index.astype(np.int32), made.pts_s, made)
    writer = ShardWriter(predictions, shard_bytes=1)
    writer.add(rows)
    writer.flush()
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the one block with a text in it, gives its names."""
    monkeypatch.chdir(folder)

    def run_block(text: str, **given: object) -> dict[str, object]:
        (block,) = (block for block in BLOCKS if text in block)
        names = dict(given)
        exec(block.replace('("fight", "noFight")', '("a", "b", "c")'), names)
        return names

    return run_block


def test_predictions_of_a_job_become_another_format(run, folder):
    run("iterate_predictions")
    header, line = (folder / "labels.csv").read_text().splitlines()
    assert header.endswith(",a,b,c")
    assert line.startswith("clip,2.0,")


def test_one_video(run):
    assert run("recognizer.predict(")["prediction"].uri == "clip.mp4"


def test_any_number_of_videos(run, capsys):
    run("recognizer.stream(")
    lines = sorted(capsys.readouterr().out.splitlines())
    assert len(lines) == 2
    assert "bad.mp4" in lines[0]
    assert lines[1].startswith("clips/good.mp4 [{'class': ")


def test_a_camera(run, monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    frames = iter(np.zeros((3, 48, 64, 3), np.uint8))
    with pytest.raises(StopIteration):
        run("camera.capture()", camera=SimpleNamespace(capture=lambda: next(frames)))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_no_block_is_left_out():
    assert len(BLOCKS) == 4
