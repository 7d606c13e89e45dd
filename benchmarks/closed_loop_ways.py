"""The ways from video files to scores that `benchmarks.closed_loop` compares, and networks with a fixed share of looks.

Letters: T sampled frames, D feature length.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.extraction.steps import encode
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.scheduler import Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import Recognizer, RecognizerConfig
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.sampling import Sampling

CORES = os.cpu_count() or 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Setup:
    """Videos and a backbone; one video at a time has all cores, of many in flight each core has its own."""

    files: Sequence[str]
    backbone: Backbone
    in_flight: int

    def each(self, function: Callable[[str], _T]) -> list[_T]:
        """The function of every file, with a thread of torch for each worker."""
        if self.in_flight == 1:
            return list(map(function, self.files))
        with ThreadPoolExecutor(CORES, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(function, self.files))


def fixed_share(backbone: Backbone, share: float, sampling: Sampling) -> TrainedModel:
    """A GRU of 128 whose gate opens every 1 / share steps, whatever it sees."""
    period = round(1 / share)
    torch.manual_seed(0)
    recognizer = Recognizer(RecognizerConfig("gru", "frames", backbone.dim, 10, hidden_size=128))
    assert recognizer.recurrent is not None
    torch.nn.init.zeros_(recognizer.recurrent.update_weight)
    # The accumulated probability passes a half at the period's last step, and not before (eq. 5).
    probability = torch.tensor(min(0.5 / (period - 0.5), 0.99))
    torch.nn.init.constant_(recognizer.recurrent.update_bias, float(torch.logit(probability)))
    spec = FeatureSpec(backbone.name, backbone.weights_digest, backbone.preprocessing, sampling, backbone.dim)
    names = tuple(f"class {number}" for number in range(10))
    return TrainedModel(recognizer.eval(), names, spec.feature_set_id, spec, {})


def looked_at(setup: Setup, model: TrainedModel, *, dense: bool = False) -> list[Prediction]:
    """Ours: what the gate asks for, or, if ``dense``, every frame."""
    workers = 0 if setup.in_flight == 1 and not dense else CORES
    settings = SchedulerSettings(dense, setup.in_flight, math.inf)
    with Scheduler(model, setup.backbone, settings, num_workers=workers) as scheduler:
        outcomes = list(scheduler.run(Request(file, file) for file in setup.files))
    found = {outcome.request.uri: outcome.prediction for outcome in outcomes}
    predictions = [found[file] for file in setup.files]
    if None in predictions:
        raise SystemExit(f"{[outcome.reason for outcome in outcomes if outcome.reason]}: nothing is timed")
    return [prediction for prediction in predictions if prediction is not None]


@torch.inference_mode()
def extracted(setup: Setup, model: TrainedModel, folder: Path) -> list[NDArray[np.float32]]:
    """What everyone does: features of all frames to disk, one file a video, then the network on the files."""

    def extract(file: str) -> None:
        with open_video(file) as video:
            frames = list(video.iter_frames_at(model.spec.sampling.select(video.pts_seconds).tolist()))
        np.save(folder / f"{Path(file).stem}.npy", encode(setup.backbone, frames))

    def recognise(file: str) -> NDArray[np.float32]:
        return _scores(model, np.load(folder / f"{Path(file).stem}.npy"))

    setup.each(extract)
    return setup.each(recognise)


@torch.inference_mode()
def subsampled(setup: Setup, model: TrainedModel, counts: dict[str, int]) -> list[NDArray[np.float32]]:
    """Uniform subsampling at the same number of frames of each video: which ones is known before anything is read."""

    def recognise(file: str) -> NDArray[np.float32]:
        with open_video(file) as video:
            index = model.spec.sampling.select(video.pts_seconds)
            count = counts[file]
            frames = list(video.iter_frames_at(index[np.arange(count) * len(index) // count].tolist()))
        return _scores(model, encode(setup.backbone, frames))

    return setup.each(recognise)


@torch.inference_mode()
def _scores(model: TrainedModel, features: NDArray[np.float16]) -> NDArray[np.float32]:
    logits, _ = model.recognizer(torch.from_numpy(features)[None].float(), torch.tensor([len(features)]))
    is_frames = model.recognizer.config.task == "frames"
    scores: NDArray[np.float32] = (logits[0].sigmoid() if is_frames else logits[0].softmax(-1)).numpy()
    return scores
