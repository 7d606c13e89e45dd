"""Evaluation of a recogniser on stored features: its metric and its cost.

B batch, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skipreel.features.batching.collate import EVALUATION_BATCH, Batch, Example, Task, collate
from skipreel.jobs.runtime.video_id import video_id_of
from skipreel.models import Cost, RandomGate, Recognizer, accuracy, mean_average_precision

METRIC_NAMES: dict[Task, str] = {"frames": "mAP", "video": "accuracy"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric and the cost of a model on a split.

    Attributes:
        metric: mAP over all sampled frames (task frames) or accuracy (task video), 0 to 1.
        per_class: average precision of each class, NaN for a class without positives; empty for task video.
        cost: sum over the videos. On stored features nothing is decoded or encoded, so these two counts are None.
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


@torch.inference_mode()
def evaluate(recognizer: Recognizer, examples: Sequence[Example]) -> Evaluation:
    """Run the recogniser over whole videos. The result does not depend on the batches.

    A skipped frame has the score of the last used frame. Frames of equal score are ranked in the order of the examples,
    then by time; the mAP depends on that order.
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
    """(B, T) the mask of each video, drawn from its id; None for other gates."""
    gate = recognizer.config.gate
    if not isinstance(gate, RandomGate):
        return None
    steps = batch.features.shape[1]
    rows = [gate.schedule(steps, key=video_id_of(video_id))[:, 0] for video_id in batch.video_ids]
    valid = torch.arange(steps) < batch.lengths[:, None]
    return torch.stack(rows) * valid
