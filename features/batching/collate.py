"""Features with labels as padded batches: `load_examples` with `collate` in memory, `stream_batches` from the shards.

Letters: B batch, T longest sequence of the batch, D feature length, C classes.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.stream import PaddedFeatures, stream_features
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.ledger import read_failures
from skipreel.features.feature_set.reader import FeatureSet, Sequence
from skipreel.pipeline.manifest import Manifest, VideoEntry
from skipreel.pipeline.manifest.frame_labels import frame_targets

Task = Literal["frames", "video"]
# Whole videos that a network without training runs over at a time.
EVALUATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class Example:
    """One video ready for training: its sequence and its target.

    Attributes:
        target: (T, C) float32 of {0, 1} for task ``frames``; () int64, the class, for task ``video``.
    """

    sequence: Sequence
    target: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos padded with zeros at the end.

    Attributes:
        features: (B, T, D) float32.
        lengths: (B,) int64, at least 1.
        targets: (B, T, C) float32 for task ``frames``; (B,) int64 for task ``video``.
        video_ids: B ids.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    video_ids: tuple[str, ...]

    def to(self, device: str) -> "Batch":
        """Copy the tensors to a device."""
        return Batch(self.features.to(device), self.lengths.to(device), self.targets.to(device), self.video_ids)


def load_examples(
    feature_set: FeatureSet, manifest: Manifest, *, split: str, task: Task, skip_missing: bool = False
) -> list[Example]:
    """Load the features and targets of a split into memory; arguments as for `videos_with_features`.

    Raises:
        FeatureSetError: as `videos_with_features`, and if features hold NaN or infinity.
    """
    entries = videos_with_features(feature_set, manifest, split=split, task=task, skip_missing=skip_missing)
    sequences = feature_set.load(entry.video_id for entry in entries)
    for sequence in sequences:
        finite = np.isfinite(sequence.features).all(1)
        if not finite.all():
            raise FeatureSetError(
                f"features of video {sequence.video_id!r} (split {split!r}) in {feature_set.uri} hold NaN or infinity, "
                f"first at its sampled frame {int(finite.argmin())}: make them again, or take it out of the manifest"
            )
    return [
        Example(sequence, _target(entry, sequence.pts_s, task=task, num_classes=len(manifest.class_names)))
        for entry, sequence in zip(entries, sequences, strict=True)
    ]


def check_labelled(examples: SequenceOf[Example], *, split: str) -> None:
    """Refuse a split of task ``frames`` without labels: its mean average precision would be NaN.

    Raises:
        FeatureSetError: if no sampled frame has a label.
    """
    if not any(example.target.ndim == 0 or bool(example.target.any()) for example in examples):
        raise FeatureSetError(
            f"no sampled frame of split {split!r} has a label in {len(examples)} videos, so there is no mAP of it: "
            "look at the labels and their times in the manifest"
        )


def stream_batches(
    feature_set: FeatureSet, manifest: Manifest, plan: BatchPlan, *, split: str, task: Task, skip_missing: bool = False
) -> Iterator[Batch]:
    """Stream the batches of one epoch over a split, for sets larger than memory. Holds two batches.

    Raises:
        FeatureSetError: before the first batch; as `videos_with_features`, and if there are fewer videos than workers.
    """
    present = videos_with_features(feature_set, manifest, split=split, task=task, skip_missing=skip_missing)
    entries = {entry.video_id: entry for entry in present}
    num_classes = len(manifest.class_names)

    def with_targets(padded: PaddedFeatures) -> Batch:
        times = padded.pts_s if padded.pts_s is not None else torch.empty(len(padded.lengths), 0)  # not used there
        targets = [
            _target(entries[video_id], pts_s[:length].numpy(), task=task, num_classes=num_classes)
            for video_id, pts_s, length in zip(padded.video_ids, times, padded.lengths, strict=True)
        ]
        return Batch(padded.features, padded.lengths, _pad(targets), padded.video_ids)

    batches = stream_features(feature_set, plan, entries, dtype="float32", with_times=task == "frames")
    return map(with_targets, batches)


def collate(examples: SequenceOf[Example]) -> Batch:
    """Pad examples with zeros to the longest of them."""
    lengths = [len(example.sequence.features) for example in examples]
    features = torch.zeros(len(examples), max(lengths), examples[0].sequence.features.shape[1])
    for row, example in enumerate(examples):
        features[row, : lengths[row]] = torch.from_numpy(example.sequence.features)
    return Batch(
        features=features,
        lengths=torch.tensor(lengths),
        targets=_pad([example.target for example in examples]),
        video_ids=tuple(example.sequence.video_id for example in examples),
    )


def feature_statistics(examples: SequenceOf[Example]) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation, each (D,) float32, over all frames; a constant feature gets deviation 1."""
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


def videos_with_features(
    feature_set: FeatureSet, manifest: Manifest, *, split: str, task: Task, skip_missing: bool = False
) -> list[VideoEntry]:
    """List the videos of a split that have features, in the manifest's order.

    Args:
        skip_missing: leave out videos without features instead of refusing the split.

    Raises:
        FeatureSetError: if the manifest does not have the split, none or not all of its videos have features, or a
            video of task ``video`` does not have exactly one class.
    """
    entries = [entry for entry in manifest.entries if entry.split == split]
    if not entries:
        splits = ", ".join(manifest.splits) or "none, as it lists no videos"
        raise FeatureSetError(f"the manifest has no video of split {split!r}: its splits are {splits}")
    available = feature_set.video_ids()
    present = [entry for entry in entries if entry.video_id in available]
    if not present or (len(present) < len(entries) and not skip_missing):
        raise FeatureSetError(_missing(feature_set, entries, available, split=split))
    for entry in present if task == "video" else ():
        count = len({label.class_id for label in entry.labels})
        if count != 1:
            raise FeatureSetError(
                f"task video needs exactly one class per video, {entry.video_id!r} has {count}: use --task frames"
            )
    return present


def _missing(feature_set: FeatureSet, entries: SequenceOf[VideoEntry], available: frozenset[str], *, split: str) -> str:
    missing = [entry.video_id for entry in entries if entry.video_id not in available]
    failed = {row["video_id"] for row in read_failures(feature_set.uri)}
    num_failed = sum(video_id in failed for video_id in missing)
    return (
        f"{len(missing)} of {len(entries)} videos of split {split!r} have no features in {feature_set.uri}: "
        f"{num_failed} failed in extraction, {len(missing) - num_failed} were never extracted, such as "
        f"{missing[0]!r}: run skipreel extract (--retry-failed for those that failed)"
        + (", or leave them out with --skip-missing" if len(missing) < len(entries) else "")
    )


def _target(entry: VideoEntry, pts_s: NDArray[np.float64], *, task: Task, num_classes: int) -> Tensor:
    """See `Example`."""
    if task == "video":
        return torch.tensor(entry.labels[0].class_id)
    return torch.from_numpy(frame_targets(entry.labels, pts_s, num_classes=num_classes))


def _pad(targets: SequenceOf[Tensor]) -> Tensor:
    if targets[0].ndim == 0:
        return torch.stack(list(targets))
    return torch.nn.utils.rnn.pad_sequence(list(targets), batch_first=True)
