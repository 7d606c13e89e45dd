"""Untrained networks that skip some frames, for tests of predictions: no training, no weights to be had."""

import torch

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.training.evaluation import TrainedModel
from skipreel.models import LearnedGate, Recognizer, RecognizerConfig
from skipreel.models.recurrence.gates import Gate
from skipreel.pipeline.video.sampling import Sampling

BACKBONE = load_backbone("random:0")


def untrained(
    spec: FeatureSpec,
    *,
    task: str = "frames",
    cell: str = "gru",
    gate: Gate | None = None,
    hidden_size: int = 8,
    num_layers: int = 2,
    update_bias: float = -1.2,
    spread: float = 0.3,
    seed: int = 0,
) -> TrainedModel:
    """A network of three classes on features of this recipe; how much it skips: by the gate's bias and its spread."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "gate": gate or LearnedGate()}
    recognizer = Recognizer(RecognizerConfig(cell, task, spec.dim, 3, **sizes))
    assert recognizer.recurrent is not None
    torch.nn.init.constant_(recognizer.recurrent.update_bias, update_bias)
    torch.nn.init.normal_(recognizer.recurrent.update_weight, std=spread)
    return TrainedModel(recognizer.eval(), ("a", "b", "c"), spec.feature_set_id, spec, {})


def make_model(*, rate_hz: float = 10.0, **network) -> TrainedModel:
    """One for `BACKBONE`, by default one that looks at about every fourth of 10 frames a second; see `untrained`."""
    return untrained(BACKBONE.spec(Sampling(rate_hz)), **network)
