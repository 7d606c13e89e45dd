"""Looking only where the gate says equals looking everywhere: the same gates, scores to float32 rounding."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.backbones.loading import load_backbone
from skipreel.features.extraction.steps import extract_video
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.scheduler import Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.trained.model import TrainedModel
from skipreel.pipeline.video.sampling import Sampling
from tests.support.models import BACKBONE, make_model, untrained
from tests.support.videos import write_video

DATA = Path(__file__).parents[4] / "shared" / "data"
FOLDER = tempfile.TemporaryDirectory()
# Sums of a hundred products in another order.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Clip:
    """A generated video; equal ones are written once."""

    num_frames: int
    fps: int
    key_distance: int
    b_frames: int
    size: tuple[int, int]
    codec: str

    @cache  # noqa: B019 - clips live as long as their folder
    def write(self) -> str:
        path = Path(FOLDER.name) / f"{abs(hash(self))}.mp4"
        kind = {"num_frames": self.num_frames, "fps": self.fps, "key_distance": self.key_distance}
        return str(write_video(path, **kind, b_frames=self.b_frames, size=self.size, codec=self.codec))


@st.composite
def clips(draw) -> Clip:
    return Clip(
        num_frames=draw(st.integers(1, 60)),
        fps=draw(st.sampled_from([10, 24, 30])),
        key_distance=draw(st.sampled_from([1, 4, 12, 250])),
        b_frames=draw(st.sampled_from([0, 2])),
        size=draw(st.sampled_from([(64, 48), (96, 64), (50, 70)])),
        codec=draw(st.sampled_from(["libx264", "libx264", "libx264", "mpeg4"])),
    )


@st.composite
def networks(draw) -> TrainedModel:
    """An untrained network; its gate's bias and spread decide how much it skips, from nothing to nearly all."""
    sizes = {"hidden_size": draw(st.sampled_from([4, 16, 100])), "num_layers": draw(st.integers(1, 2))}
    gating = {"update_bias": draw(st.floats(-5, 1)), "spread": draw(st.sampled_from([0.0, 0.3, 1.0]))}
    return make_model(
        rate_hz=draw(st.sampled_from([3.0, 6.0, 12.5, 30.0])),
        task=draw(st.sampled_from(["frames", "video"])),
        cell=draw(st.sampled_from(["gru", "lstm"])),
        seed=draw(st.integers(0, 1000)),
        **sizes,
        **gating,
    )


def run(paths: list[str], model: TrainedModel, backbone: Backbone, *, num_workers: int, **how) -> dict[str, Prediction]:
    with Scheduler(model, backbone, SchedulerSettings(**how), num_workers=num_workers) as scheduler:
        outcomes = list(scheduler.run(Request(path, path) for path in paths))
    assert all(outcome.prediction is not None for outcome in outcomes), outcomes
    return {outcome.request.uri: outcome.prediction for outcome in outcomes}


def everything(path: str, model: TrainedModel, backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gates by extraction's own functions and the layers' forward pass over all frames: no scheduler."""
    parts = extract_video(path, backbone=backbone, sampling=model.spec.sampling)
    features = torch.from_numpy(np.concatenate([features for _, features in parts]))
    with torch.inference_mode():
        logits, gates = model.recognizer(features[None].float(), torch.tensor([len(features)]))
    frames = model.recognizer.config.task == "frames"
    return (logits[0].sigmoid() if frames else logits[0].softmax(-1)).numpy(), gates[0].numpy() > 0.5


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(clips(), min_size=1, max_size=6, unique=True),
    model=networks(),
    num_workers=st.integers(0, 3),
    in_flight=st.sampled_from([1, 4, 64]),
)
def test_skipping_equals_looking_everywhere(kinds, model, num_workers, in_flight):
    backbone = BACKBONE
    paths = [clip.write() for clip in kinds]
    how = {"num_workers": num_workers, "in_flight": in_flight}
    skipping, dense = run(paths, model, backbone, **how), run(paths, model, backbone, dense=True, **how)
    for path in paths:
        scores, used = everything(path, model, backbone)
        for found in (skipping[path], dense[path]):
            np.testing.assert_array_equal(found.used, used)
            np.testing.assert_allclose(found.scores, scores, atol=ROUNDING)
        cost = skipping[path].cost
        assert cost.frames_encoded == cost.frames_converted == cost.state_updates == used.sum()
        assert dense[path].cost.frames_encoded == cost.frames_total == len(used)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_skipping_equals_looking_everywhere_on_real_clips(num_threads):
    weights = DATA / "weights" / "mobilenet_v1_0.75_224"
    if not weights.exists():
        pytest.skip("needs ../shared/data")
    backbone = load_backbone(f"hf:{weights}")
    model = untrained(backbone.spec(Sampling(6.0)), hidden_size=64, num_layers=1, update_bias=-2.0)
    paths = [str(path) for path in sorted((DATA / "fight").glob("*/*.mp4"))[::34]]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        skipping = run(paths, model, backbone, num_workers=0)
    finally:
        torch.set_num_threads(before)
    dense = run(paths, model, backbone, num_workers=2, dense=True)
    for path in paths:
        np.testing.assert_array_equal(skipping[path].used, dense[path].used)
        # With several threads features may differ in their last of eleven bits.
        np.testing.assert_allclose(
            skipping[path].scores, dense[path].scores, atol=ROUNDING if num_threads == 1 else 2e-3
        )
    share = sum(p.used.sum() for p in skipping.values()) / sum(len(p.used) for p in skipping.values())
    assert 0.05 < share < 0.6
