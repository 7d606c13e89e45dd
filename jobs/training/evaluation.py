"""Measuring a recogniser on stored features, and the one place that knows what a checkpoint of ours carries.

Letters: B batch, T steps, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipreel.features.batching.collate import Batch, Example, Task, collate
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.predictions.inputs import video_id_of
from skipreel.models import (
    CheckpointError,
    Cost,
    RandomGate,
    Recognizer,
    accuracy,
    load_checkpoint,
    mean_average_precision,
)

EVALUATION_BATCH = 32
METRIC_NAMES: dict[Task, str] = {"frames": "mAP", "video": "accuracy"}


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A checkpoint with what it was trained on.

    Attributes:
        settings: the network's and the training's settings, as they were given.
        budget_curve: pairs of what is added to the gate's logit, ascending, and the share of the frames that are then
            looked at; see `jobs.trained.budget`. None for networks without a learned gate, and from earlier versions.
        schedule: how it was trained; empty from earlier versions.
    """

    recognizer: Recognizer
    class_names: tuple[str, ...]
    feature_set_id: str
    spec: FeatureSpec
    settings: dict[str, Any]
    budget_curve: tuple[tuple[float, float], ...] | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model reaches on a split, and what it costs.

    Attributes:
        metric: mAP over all sampled frames (task frames) or accuracy (task video), 0 to 1.
        per_class: average precision of each class, NaN for one without positives; empty for task video.
        cost: summed over the videos; on stored features nothing is decoded or encoded, so these are None.
        num_videos: how many.
    """

    metric_name: str
    metric: float
    per_class: tuple[float, ...]
    cost: Cost
    num_videos: int

    @property
    def updates_per_video(self) -> float:
        """State updates, mean over videos."""
        return self.cost.state_updates / self.num_videos

    @property
    def update_share(self) -> float:
        """State updates as a share of the sampled frames, 0 to 1."""
        return self.cost.state_updates / self.cost.frames_total


def load_model(directory: str | Path) -> TrainedModel:
    """Load a checkpoint written by train or sweep.

    Raises:
        CheckpointError: when it is missing, damaged, or does not say what it was trained on.
    """
    recognizer, metadata = load_checkpoint(directory)
    try:
        return TrainedModel(
            recognizer=recognizer.eval(),
            class_names=tuple(metadata["class_names"]),
            feature_set_id=metadata["feature_set_id"],
            spec=FeatureSpec.from_json(metadata["recipe"]),
            settings=metadata["settings"],
            budget_curve=_curve(metadata.get("budget_curve")),
            schedule=metadata.get("schedule", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory} was not written by skipreel train or sweep ({error} is missing)") from error


def _curve(pairs: Sequence[Sequence[float]] | None) -> tuple[tuple[float, float], ...] | None:
    return None if pairs is None else tuple((float(delta), float(share)) for delta, share in pairs)


def check_same_spec(model: TrainedModel, feature_set: FeatureSet) -> None:
    """Refuse to run a model on features made another way.

    Raises:
        FeatureSetError: when the ids differ.
    """
    if model.feature_set_id != feature_set.id:
        raise FeatureSetError(
            f"the model was trained on features {model.feature_set_id} (length {model.spec.dim}, backbone "
            f"{model.spec.backbone}), {feature_set.uri} holds {feature_set.id} (length {feature_set.dim}, backbone "
            f"{feature_set.spec.backbone}): extract with the model's backbone, or train on these features"
        )


@torch.inference_mode()
def evaluate(recognizer: Recognizer, examples: Sequence[Example]) -> Evaluation:
    """Run the recogniser over whole videos; the same examples give the same result, however they are batched.

    A skipped frame holds the score of the last one that was used. Frames of equal score rank in the order of the
    examples, then by time, and that order is part of the mAP.
    """
    recognizer.eval()
    task = recognizer.config.task
    scores, targets, updates, frames = [], [], 0.0, 0
    for start in range(0, len(examples), EVALUATION_BATCH):
        batch = collate(examples[start : start + EVALUATION_BATCH])
        logits, gates = recognizer(batch.features, batch.lengths, gates=_random_gates(recognizer, batch))
        valid = torch.arange(batch.features.shape[1]) < batch.lengths[:, None]
        scores.append(logits[valid] if task == "frames" else logits)
        targets.append(batch.targets[valid] if task == "frames" else batch.targets)
        updates += float(gates.sum())
        frames += int(batch.lengths.sum())
    metric, per_class = _metric(torch.cat(scores), torch.cat(targets), task)
    count = round(updates)
    return Evaluation(METRIC_NAMES[task], metric, per_class, Cost(frames, count, None, None, count), len(examples))


def _metric(scores: Tensor, targets: Tensor, task: Task) -> tuple[float, tuple[float, ...]]:
    if task == "video":
        return float(accuracy(scores, targets)), ()
    metric, per_class = mean_average_precision(scores, targets)
    return float(metric), tuple(per_class.tolist())


def _random_gates(recognizer: Recognizer, batch: Batch) -> Tensor | None:
    """(B, T), each video's own mask by its id."""
    gate = recognizer.config.gate
    if not isinstance(gate, RandomGate):
        return None
    steps = batch.features.shape[1]
    rows = [gate.schedule(steps, key=video_id_of(video_id))[:, 0] for video_id in batch.video_ids]
    valid = torch.arange(steps) < batch.lengths[:, None]
    return torch.stack(rows) * valid
