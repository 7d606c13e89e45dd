"""One video from its file to scores: what is decoded for it, how scores are held, controls. See test_exactness."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from skipreel.features.batching.collate import Example
from skipreel.features.errors import BackboneError
from skipreel.features.feature_set.reader import Sequence
from skipreel.jobs.closed_loop.recognizer import VideoRecognizer, predict, predict_dense
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.model import TrainedModel
from skipreel.jobs.training.evaluation import evaluate
from skipreel.models import RandomGate, StridedGate, save_checkpoint
from skipreel.pipeline.errors import VideoError
from tests.support.models import BACKBONE
from tests.support.models import make_model as model
from tests.support.videos import write_video


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
    np.testing.assert_array_equal(looked.used, gate.schedule(30, key="a")[:, 0].numpy() > 0)
    assert looked.cost.frames_encoded == looked.used.sum()
    np.testing.assert_allclose(looked.scores, predict_dense(path, model=network, backbone=BACKBONE).scores, atol=2e-4)


def masks_of_evaluation(network: TrainedModel, video_ids: list[str]) -> np.ndarray:
    """(videos, 30) bool: where `evaluate` looks in videos of 30 sampled frames."""
    random = np.random.default_rng(0)
    features = random.normal(size=(30, BACKBONE.dim)).astype(np.float16)
    index, targets = np.arange(30, dtype=np.int32), torch.zeros(30, 3)
    targets[::2] = 1
    examples = [Example(Sequence(video_id, index, index / 10, features), targets) for video_id in video_ids]
    masks = []
    hook = network.recognizer.register_forward_hook(lambda _module, _given, found: masks.append(found.gates))
    evaluate(network.recognizer, examples)
    hook.remove()
    return torch.cat(masks).numpy() > 0.5


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("gate", [RandomGate(0.5, seed=3), StridedGate(2.5)])
def test_files_and_single_frames_get_the_mask_that_evaluation_draws_for_the_video_of_their_id(tmp_path, gate, dense):
    network, names = model(gate=gate), ["one", "two"]
    masks = masks_of_evaluation(network, names)
    assert (masks[0] == masks[1]).all() == isinstance(gate, StridedGate)
    recognizer = VideoRecognizer(network, BACKBONE)
    paths = [write_video(tmp_path / f"{name}.mp4", num_frames=60, fps=20) for name in names]
    listed = [Request(name, str(paths[0])) for name in reversed(names)]  # a manifest's ids, whatever the file is called
    for mask, found in zip(masks, recognizer.predict(paths, dense=dense), strict=True):
        np.testing.assert_array_equal(found.used, mask)
    for outcome in recognizer.stream(listed, dense=dense):
        np.testing.assert_array_equal(outcome.prediction.used, masks[names.index(outcome.request.key)])
    online = recognizer.online(key="two")
    looks = []
    while online.num_steps < 30:
        looks.append(online.num_steps)
        online.step(np.zeros((48, 64, 3), np.uint8))
    assert looks == np.flatnonzero(masks[1]).tolist()


def test_paths_in_any_number_are_streamed_and_the_same_one_twice_is_predicted_twice(tmp_path):
    paths = [write_video(tmp_path / f"{name}.mp4", num_frames=20, fps=20) for name in "ab"]
    recognizer = VideoRecognizer(model(), BACKBONE)
    outcomes = {outcome.request.uri: outcome for outcome in recognizer.stream([paths[0], str(paths[1])])}
    assert set(outcomes) == {str(path) for path in paths}
    again = recognizer.predict([*paths, paths[0]])
    assert [found.uri for found in again] == [str(path) for path in [*paths, paths[0]]]
    for found in again:
        np.testing.assert_array_equal(found.scores, outcomes[found.uri].prediction.scores)


def test_a_video_that_cannot_be_decoded_says_why(tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        predict(str(tmp_path / "bad.mp4"), model=model(), backbone=BACKBONE)


@pytest.fixture
def code_backbone(tmp_path, monkeypatch) -> str:
    """The name of a backbone that is code: random:0 again, from a module that leaves a file when it is imported."""
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nfrom skipreel.features.backbones.loading import SMALL_INPUT\n"
        "from skipreel.features.backbones.small_cnn import SmallCNN\n"
        f"Path({str(tmp_path / 'was_run')!r}).touch()\ndef backbone():\n    return SmallCNN(seed=0), SMALL_INPUT\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "planted:backbone"
    sys.modules.pop("planted", None)


def test_a_checkpoint_cannot_run_code_by_the_name_of_its_backbone(tmp_path, code_backbone):
    trained = model()
    trained = replace(trained, spec=replace(trained.spec, backbone=code_backbone))
    facts = {"settings": {}, "class_names": ["a", "b", "c"], "feature_set_id": trained.feature_set_id}
    facts["recipe"] = trained.spec.to_json()
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
