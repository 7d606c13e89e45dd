"""Sequences and their labels become padded batches with lengths.

Letters: B batch, T longest sequence of the batch, D feature length, C classes.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.errors import FeatureSetError
from features.reader import FeatureSet, Sequence
from pipeline.manifest import Label, Manifest

Task = Literal["frames", "video"]


@dataclass(frozen=True, slots=True)
class Example:
    """One video ready for training: its sequence and its target.

    Attributes:
        target: task ``frames``: (T, C) float32 of {0, 1}; task ``video``: () int64, the class.
    """

    sequence: Sequence
    target: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded with zeros at the end.

    Attributes:
        features: (B, T, D) float32.
        lengths: (B,) int64, at least 1.
        targets: task ``frames``: (B, T, C) float32; task ``video``: (B,) int64.
        video_ids: B ids.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    video_ids: tuple[str, ...]


def frame_targets(labels: SequenceOf[Label], pts_s: NDArray[np.float64], *, num_classes: int) -> NDArray[np.float32]:
    """(T, C) of {0, 1}: a class is positive at time t if start <= t <= end of one of its labels (Charades' rule)."""
    targets = np.zeros((len(pts_s), num_classes), np.float32)
    for label in labels:
        targets[(label.start_s <= pts_s) & (pts_s <= label.end_s), label.class_id] = 1
    return targets


def load_examples(feature_set: FeatureSet, manifest: Manifest, *, split: str, task: Task) -> list[Example]:
    """The videos of a split that have features, in the manifest's order.

    Videos that failed in extraction are left out: they are in the failure ledger.

    Raises:
        FeatureSetError: when the split has no video with features, or task ``video`` meets a video without
            exactly one class.
    """
    entries = [entry for entry in manifest.entries if entry.split == split]
    available = feature_set.video_ids()
    present = [entry for entry in entries if entry.video_id in available]
    if not present:
        raise FeatureSetError(
            f"no video of split {split!r} has features in {feature_set.uri}: "
            f"the manifest's splits are {', '.join(sorted(manifest.splits)) or 'none'}; run skipreel extract first"
        )
    sequences = feature_set.load(entry.video_id for entry in present)
    examples = []
    for entry, sequence in zip(present, sequences, strict=True):
        if task == "frames":
            target = torch.from_numpy(
                frame_targets(entry.labels, sequence.pts_s, num_classes=len(manifest.class_names))
            )
        else:
            classes = {label.class_id for label in entry.labels}
            if len(classes) != 1:
                raise FeatureSetError(
                    f"task video needs exactly one class per video, {entry.video_id!r} has {len(classes)}: "
                    "use --task frames"
                )
            target = torch.tensor(classes.pop())
        examples.append(Example(sequence, target))
    return examples


def collate(examples: SequenceOf[Example]) -> Batch:
    """Pad examples to the longest of them."""
    features = [torch.from_numpy(example.sequence.features).float() for example in examples]
    targets = [example.target for example in examples]
    return Batch(
        features=torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
        lengths=torch.tensor([len(feature) for feature in features]),
        targets=(
            torch.nn.utils.rnn.pad_sequence(targets, batch_first=True) if targets[0].ndim else torch.stack(targets)
        ),
        video_ids=tuple(example.sequence.video_id for example in examples),
    )


def feature_statistics(examples: SequenceOf[Example]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) float32 over all frames; a constant feature gets deviation 1."""
    total = np.zeros(examples[0].sequence.features.shape[1])
    squares = np.zeros_like(total)
    count = 0
    for example in examples:  # one video at a time: the float64 copy stays small
        features = example.sequence.features.astype(np.float64)
        total += features.sum(0)
        squares += (features**2).sum(0)
        count += len(features)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation < 1e-4 * max(float(deviation.max()), 1e-12)] = 1
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
