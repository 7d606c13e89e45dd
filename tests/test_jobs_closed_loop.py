"""Looking only where the gate says equals the dense pass of the same network."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from features.backbones import load_backbone
from features.recipe import Recipe
from jobs import predict as predict_command
from jobs.cli import main
from jobs.closed_loop import predict, predict_dense
from jobs.evaluation import TrainedModel
from jobs.predict import segments
from models import LearnedGate, RandomGate, Recognizer, RecognizerConfig, StridedGate
from pipeline.sampling import Sampling
from videos import write_video

BACKBONE = load_backbone("random:0")


def model(*, task="frames", cell="gru", gate=None, seed=0, rate_hz=10.0) -> TrainedModel:
    """An untrained network whose gate bias is set so that it skips some frames."""
    torch.manual_seed(seed)
    gate = gate or LearnedGate()
    recognizer = Recognizer(RecognizerConfig(cell, task, BACKBONE.dim, 3, hidden_size=8, num_layers=2, gate=gate))
    torch.nn.init.constant_(recognizer.recurrent.update_bias, -1.2)
    torch.nn.init.normal_(recognizer.recurrent.update_weight, std=0.3)
    recipe = Recipe(BACKBONE.name, BACKBONE.weights_digest, BACKBONE.preprocessing, Sampling(rate_hz), BACKBONE.dim)
    return TrainedModel(recognizer.eval(), ("a", "b", "c"), recipe.feature_set_id, recipe, {})


@pytest.mark.parametrize("task", ["frames", "video"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("key_distance", [4, 100])
def test_the_closed_loop_equals_the_dense_pass(tmp_path, task, cell, key_distance):
    path = str(write_video(tmp_path / "a.mp4", num_frames=60, fps=20, key_distance=key_distance))
    for seed in range(3):
        network = model(task=task, cell=cell, seed=seed)
        looked = predict(path, model=network, backbone=BACKBONE)
        dense = predict_dense(path, model=network, backbone=BACKBONE)
        np.testing.assert_array_equal(looked.used, dense.used)
        np.testing.assert_allclose(looked.scores, dense.scores, atol=2e-4)
        assert looked.used[0]
        assert 1 < looked.used.sum() < len(looked.used)


def test_only_wanted_frames_are_encoded_and_none_beyond_them_decoded(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", num_frames=80, fps=20, key_distance=4, b_frames=0))
    looked = predict(path, model=model(), backbone=BACKBONE)
    dense = predict_dense(path, model=model(), backbone=BACKBONE)
    cost = looked.cost
    assert cost.frames_total == dense.cost.frames_encoded == 40
    assert cost.frames_wanted == cost.frames_encoded == cost.state_updates == looked.used.sum() < 40
    # From the nearest key frame to each wanted frame, at most 4 frames have to be decoded.
    assert cost.frames_wanted <= cost.frames_decoded <= 4 * cost.frames_wanted
    assert cost.frames_decoded < dense.cost.frames_decoded


def test_scores_are_held_between_looks(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", num_frames=60, fps=20))
    looked = predict(path, model=model(), backbone=BACKBONE)
    for before, now in pairwise(range(len(looked.used))):
        if not looked.used[now]:
            np.testing.assert_array_equal(looked.scores[now], looked.scores[before])


@pytest.mark.parametrize("gate", [StridedGate(2.5), RandomGate(0.6, seed=1), StridedGate(1.0)])
def test_a_control_looks_where_its_schedule_says(tmp_path, gate):
    path = str(write_video(tmp_path / "a.mp4", num_frames=60, fps=20))
    network = model(gate=gate)
    looked = predict(path, model=network, backbone=BACKBONE)
    np.testing.assert_array_equal(looked.used, gate.schedule(30)[:, 0].numpy() > 0)
    assert looked.cost.frames_encoded == looked.used.sum()
    np.testing.assert_allclose(looked.scores, predict_dense(path, model=network, backbone=BACKBONE).scores, atol=2e-4)


def test_segments_are_the_runs_above_the_threshold(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", num_frames=60, fps=20))
    looked = predict(path, model=model(), backbone=BACKBONE)
    looked.scores[:] = 0.1
    looked.scores[2:5, 1] = 0.9
    looked.scores[29, 2] = 0.7
    found = [(s["class"], s["start_s"], s["end_s"], s["score"]) for s in segments(looked, ("a", "b", "c"), 0.5)]
    assert found == [("b", 0.2, 0.4, 0.9), ("c", 2.9, 2.9, 0.7)]


def test_predict_prints_a_line_per_video_and_goes_on_after_a_bad_one(swept, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    good = next(swept.folder.glob("*.mp4"))
    words = [str(tmp_path / "bad.mp4"), str(good), "--model", swept.checkpoint("skip-gru-lambda-0.05")]
    assert main(["predict", *words]) == predict_command.EXIT_SOME_FAILED
    bad, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert "bad.mp4" in bad["error"]
    cost = line["cost"]
    assert cost["frames_encoded"] == cost["frames_wanted"] == len(line["looked_at_s"]) < cost["frames_total"]
