"""Untrained networks that skip some frames, for tests that need a trained model's form and not its quality."""

from pathlib import Path

import torch

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import LearnedGate, Recognizer, RecognizerConfig, save_checkpoint
from skipreel.models.recurrence.gates import Gate
from skipreel.pipeline.video.sampling import Sampling

BACKBONE = load_backbone("random:0")


def untrained(
    spec: FeatureSpec,
    *,
    task: str = "frames",
    cell: str = "gru",
    gate: Gate | None = None,
    class_names: tuple[str, ...] = ("a", "b", "c"),
    hidden_size: int = 8,
    num_layers: int = 2,
    update_bias: float = -1.2,
    spread: float = 0.3,
    seed: int = 0,
) -> TrainedModel:
    """A network on features of this recipe; the gate's bias, and its weights' spread, say how much it skips."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "gate": gate or LearnedGate()}
    recognizer = Recognizer(RecognizerConfig(cell, task, spec.dim, len(class_names), **sizes))
    if recognizer.recurrent is not None:
        torch.nn.init.constant_(recognizer.recurrent.update_bias, update_bias)
        torch.nn.init.normal_(recognizer.recurrent.update_weight, std=spread)
    return TrainedModel(recognizer.eval(), class_names, spec.feature_set_id, spec, {})


def make_model(*, rate_hz: float = 10.0, **network) -> TrainedModel:
    """One for `BACKBONE`, by default one that reads about every fourth of 10 frames a second; see `untrained`."""
    return untrained(BACKBONE.spec(Sampling(rate_hz)), **network)


def save_model(directory: str | Path, model: TrainedModel, **metadata) -> None:
    """Writes the checkpoint that a training would write."""
    facts = {"settings": {}, "class_names": list(model.class_names), "feature_set_id": model.feature_set_id}
    save_checkpoint(directory, model.recognizer, facts | {"recipe": model.spec.to_json()} | metadata)
