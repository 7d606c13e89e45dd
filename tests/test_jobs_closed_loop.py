"""One video from its file to scores: what is decoded for it, how scores are held, controls. See test_jobs_exactness."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from features.errors import BackboneError
from jobs.closed_loop import load_backbone_of, predict, predict_dense
from jobs.recognizer import Recognizer as VideoRecognizer
from models import RandomGate, StridedGate, save_checkpoint
from pipeline.errors import VideoError
from prediction_models import BACKBONE
from prediction_models import make_model as model
from videos import write_video


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


def test_a_video_that_cannot_be_decoded_says_why(tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        predict(str(tmp_path / "bad.mp4"), model=model(), backbone=BACKBONE)


@pytest.fixture
def code_backbone(tmp_path, monkeypatch) -> str:
    """The name of a backbone that is code: random:0 again, from a module that leaves a file when it is imported."""
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nfrom features.backbones import SMALL_INPUT\n"
        "from features.small_cnn import SmallCNN\n"
        f"Path({str(tmp_path / 'was_run')!r}).touch()\ndef backbone():\n    return SmallCNN(seed=0), SMALL_INPUT\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "planted:backbone"
    sys.modules.pop("planted", None)


def test_a_checkpoint_cannot_run_code_by_the_name_of_its_backbone(tmp_path, code_backbone):
    trained = model()
    trained = replace(trained, recipe=replace(trained.recipe, backbone=code_backbone))
    facts = {"settings": {}, "class_names": ["a", "b", "c"], "feature_set_id": trained.feature_set_id}
    facts["recipe"] = trained.recipe.to_json()
    save_checkpoint(tmp_path / "checkpoint", trained.recognizer, facts)
    for load in (lambda: load_backbone_of(trained), lambda: VideoRecognizer.load(tmp_path / "checkpoint")):
        with pytest.raises(BackboneError, match="give --backbone planted:backbone"):
            load()
        assert not (tmp_path / "was_run").exists()
    loaded = VideoRecognizer.load(tmp_path / "checkpoint", backbone=code_backbone)
    assert loaded.backbone.weights_digest == BACKBONE.weights_digest
    assert (tmp_path / "was_run").exists()


def test_a_backbone_given_by_name_must_be_the_one_of_the_training():
    with pytest.raises(BackboneError, match="has other weights than the one the model was trained with"):
        load_backbone_of(model(), name="random:1")
