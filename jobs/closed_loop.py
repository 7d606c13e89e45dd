"""From a video file to scores, decoding and encoding only the frames that the network asks for.

After an update the gate says how many steps it will skip, so the next wanted time is known before anything is read.
Letters: T sampled frames, D feature length, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from features.backbones import Backbone, load_backbone
from features.errors import BackboneError
from jobs.evaluation import TrainedModel
from jobs.prediction import Prediction, Seconds
from models import Cost, LearnedGate
from pipeline.decoding import Video, open_video


def load_backbone_of(model: TrainedModel, *, name: str | None = None, device: str = "cpu") -> Backbone:
    """The backbone that a model's features were made with, checked by its weights and its preprocessing.

    Args:
        name: where it is found now, if not where the training found it.

    Raises:
        BackboneError: when it cannot be loaded or is another.
    """
    recipe = model.recipe
    backbone = load_backbone(name or recipe.backbone, device=device, layer=recipe.layer, dtype=recipe.dtype)
    if backbone.weights_digest != recipe.weights_digest:
        raise BackboneError(
            f"backbone {backbone.name} has other weights than the one the model was trained with "
            f"({backbone.weights_digest[:12]} against {recipe.weights_digest[:12]}): give it with --backbone"
        )
    if backbone.preprocessing != recipe.preprocessing:
        raise BackboneError(
            f"backbone {backbone.name} prepares frames otherwise than the one the model was trained with "
            f"({backbone.preprocessing} against {recipe.preprocessing}): give it with --backbone"
        )
    return backbone


def predict(uri: str, *, model: TrainedModel, backbone: Backbone, decoder: str = "pyav") -> Prediction:
    """Look only where the gate says.

    Raises:
        VideoError: when the file cannot be opened or a wanted frame cannot be decoded.
    """
    if isinstance(model.recognizer.config.gate, LearnedGate) and model.recognizer.recurrent is not None:
        return _run(uri, model, backbone, decoder, _closed_loop)
    return _run(uri, model, backbone, decoder, _scheduled)


def predict_dense(uri: str, *, model: TrainedModel, backbone: Backbone, decoder: str = "pyav") -> Prediction:
    """The same model looking at every frame: decoded and encoded in batches, then run over all features.

    Raises:
        VideoError: as `predict`.
    """
    return _run(uri, model, backbone, decoder, _dense)


@dataclass(slots=True)
class _Look:
    """One video while it is looked at: what is wanted so far, and what it took."""

    model: TrainedModel
    backbone: Backbone
    video: Video
    frame_index: NDArray[np.int64]
    seconds: Seconds
    used: NDArray[np.bool_]
    encoded: int = 0

    def features(self, steps: NDArray[np.int64]) -> torch.Tensor:
        """Decode and encode these steps' frames: (len(steps), D) float32."""
        blocks = []
        size = self.backbone.batch_size
        for start in range(0, len(steps), size):
            index = self.frame_index[steps[start : start + size]]
            with self.seconds.measure("decode"):
                frames = list(self.video.read_many(index.tolist()))
            with self.seconds.measure("encode"):
                blocks.append(self.backbone.encode(frames))
            self.encoded += len(frames)
        return torch.from_numpy(np.concatenate(blocks)).float()


@torch.inference_mode()
def _run(
    uri: str, model: TrainedModel, backbone: Backbone, decoder: str, strategy: Callable[[_Look], torch.Tensor]
) -> Prediction:
    seconds = Seconds()
    with seconds.measure("decode"):
        video = open_video(uri, decoder=decoder)
    with video:
        index = model.recipe.sampling.select(video.pts_seconds)
        look = _Look(model, backbone, video, index, seconds, np.zeros(len(index), np.bool_))
        logits = strategy(look)
        frames = model.recognizer.config.task == "frames"
        updates = int(look.used.sum())
        return Prediction(
            frame_index=index,
            pts_s=video.pts_seconds[index],
            used=look.used,
            scores=(logits.sigmoid() if frames else logits.softmax(-1)).numpy(),
            cost=Cost(
                len(index), look.encoded, video.num_decoded, look.encoded, updates, frames_converted=video.num_converted
            ),
            duration_s=video.duration_s,
            uri=uri,
            seconds=seconds,
        )


def _closed_loop(look: _Look) -> torch.Tensor:
    recognizer, steps = look.model.recognizer, len(look.used)
    logits = torch.empty(steps, recognizer.config.num_classes)
    state, step = None, 0
    while step < steps:
        feature = look.features(np.array([step]))
        with look.seconds.measure("recognise"):
            answer, state, wait = recognizer.step(feature, state, limit=steps - step)
            # The answer holds until the next look.
            following = step + 1 + int(wait)
            logits[step:following] = answer
            state = recognizer.skip(state, wait)
        look.used[step] = True
        step = following
    return logits if recognizer.config.task == "frames" else logits[-1]


def _scheduled(look: _Look) -> torch.Tensor:
    """A control: its frames are known from the start, the others stay zero and are never read."""
    recognizer, steps = look.model.recognizer, len(look.used)
    gate = recognizer.config.gate
    if recognizer.recurrent is None or isinstance(gate, LearnedGate):
        return _dense(look)
    wanted = np.flatnonzero(gate.schedule(steps)[:, 0].numpy())
    features = torch.zeros(steps, recognizer.config.feature_dim)
    features[wanted] = look.features(wanted)
    return _forward(look, features)


def _dense(look: _Look) -> torch.Tensor:
    return _forward(look, look.features(np.arange(len(look.used))))


def _forward(look: _Look, features: torch.Tensor) -> torch.Tensor:
    with look.seconds.measure("recognise"):
        logits, gates = look.model.recognizer(features[None], torch.tensor([len(features)]))
    look.used[:] = gates[0].numpy() > 0.5
    row: torch.Tensor = logits[0]
    return row
