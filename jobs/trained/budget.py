"""The budget of a trained Skip RNN: the share of the frames that it looks at on average, set at inference.

A budget is reached by a constant δ, added to the logit of the update probability: p = σ(w·s + b + δ). The result is an
ordinary Skip RNN: its dense pass, its steps and its jumps agree exactly. The budget curve, which δ leads to which
share, is measured at the end of a training and kept in the checkpoint.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from math import log

import numpy as np
import torch

from skipreel.features.batching.collate import (
    EVALUATION_BATCH,
    Example,
    Task,
    collate,
    load_examples,
    videos_with_features,
)
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import LearnedGate, Recognizer
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import Manifest

VALIDATION_SPLITS = ("validation", "val", "valid")
MAX_VIDEOS = 100
MAX_POINTS = 17
LOWEST_SHARE = 0.02  # the curve need not go below
LARGEST_DELTA = 32.0  # here the probabilities of any network are practically 0 or 1
FINEST_DELTA = 0.05  # a change between two δ closer than this is a jump of the curve; more points do not smooth it


def has_budget(recognizer: Recognizer) -> bool:
    """Whether a budget can be set: the network has a learned gate. Controls and the mean of frames have none."""
    return recognizer.recurrent is not None and isinstance(recognizer.config.gate, LearnedGate)


def calibration_examples(
    feature_set: FeatureSet, manifest: Manifest, training: Sequence[Example], *, task: Task
) -> Sequence[Example]:
    """The videos to measure a budget curve on: at most 100 of the validation split, else of the training split.

    The validation split is called validation, val or valid; one without features or of another task is not used.

    Args:
        training: the examples of the training split.

    Raises:
        FeatureSetError: the features of the validation split hold NaN or infinity.
    """
    examples = training
    for split in VALIDATION_SPLITS:
        try:
            videos_with_features(feature_set, manifest, split=split, task=task, skip_missing=True)
        except FeatureSetError:
            continue
        examples = load_examples(feature_set, manifest, split=split, task=task, skip_missing=True)
        break
    return examples[:: -(-len(examples) // MAX_VIDEOS)]


@torch.inference_mode()
def measure_curve(recognizer: Recognizer, examples: Sequence[Example]) -> list[tuple[float, float]]:
    """Measure the budget curve. Deterministic; the recogniser is not changed.

    Returns:
        Up to 17 pairs (δ, share of the frames looked at) by ascending δ, dense where the share changes much. The shares
        go from 0.02, or from the first frame of each video alone, up to 1 if any δ leads there.

    Raises:
        ValueError: the network has no learned gate.
    """
    if not has_budget(recognizer):
        raise ValueError(f"a {recognizer.config.cell} with {recognizer.config.gate} does not learn its gate")
    shares = _Shares(recognizer, examples)
    curve = {0.0: shares.at(0.0)}
    for sign, end in ((1.0, 1.0), (-1.0, max(LOWEST_SHARE, shares.lowest))):
        delta = 0.0
        while (end - curve[delta]) * sign > 0 and abs(delta) < LARGEST_DELTA:
            delta = 2 * delta or sign
            curve[delta] = shares.at(delta)
    while len(curve) < MAX_POINTS:
        gaps = [(low, high) for low, high in pairwise(sorted(curve)) if high - low > FINEST_DELTA]
        low, high = max(gaps, key=lambda gap: abs(log(curve[gap[1]] / curve[gap[0]])), default=(0.0, 0.0))
        if curve[low] == curve[high]:
            break
        curve[(low + high) / 2] = shares.at((low + high) / 2)
    return sorted(curve.items())


def with_budget(model: TrainedModel, share: float) -> TrainedModel:
    """A copy of a model that looks at about a given share of the frames on average.

    Args:
        share: above 0 and at most 1.

    Raises:
        InputError: the share is out of range or out of the model's reach, or the model has no learned gate or no
            budget curve.
    """
    if not 0 < share <= 1:
        raise InputError(f"the budget is {share:g}, it must be a share of the frames: above 0 and at most 1")
    if not has_budget(model.recognizer):
        raise InputError(
            f"a budget is for networks that learned when to look, not for {model.settings.get('model', 'this one')} "
            f"(cell {model.recognizer.config.cell}, {model.recognizer.config.gate}): leave the budget out"
        )
    if model.budget_curve is None:
        raise InputError(
            "the model has no budget curve, it was trained by an earlier version: "
            "train it again, or leave the budget out"
        )
    deltas, measured = zip(*model.budget_curve, strict=True)
    shares = np.maximum.accumulate(measured)
    if not shares[0] <= share <= shares[-1]:
        raise InputError(
            f"the budget is {share:g}, out of this model's reach: on the videos that it was measured on it can look at "
            f"{shares[0]:.3g} to {shares[-1]:.3g} of the frames"
        )
    delta = float(np.interp(log(share), np.log(shares), deltas))
    recognizer = deepcopy(model.recognizer)
    _shift_gate(recognizer, delta)
    curve = tuple((place - delta, at) for place, at in model.budget_curve)
    return replace(model, recognizer=recognizer, budget_curve=curve)


class _Shares:
    """The share of the frames that a network looks at, as a function of δ.

    Attributes:
        lowest: the share of the first frames, which are always looked at.
    """

    def __init__(self, recognizer: Recognizer, examples: Sequence[Example]) -> None:
        self._recognizer = recognizer
        device = recognizer.feature_mean.device
        by_length = sorted(examples, key=lambda example: len(example.sequence.features))  # for little padding
        batches = [
            collate(by_length[start : start + EVALUATION_BATCH]) for start in range(0, len(examples), EVALUATION_BATCH)
        ]
        self._inputs = [(batch.features.to(device), batch.lengths.to(device)) for batch in batches]
        self._num_frames = sum(int(lengths.sum()) for _, lengths in self._inputs)
        self.lowest = len(examples) / self._num_frames

    def at(self, delta: float) -> float:
        shifted = deepcopy(self._recognizer).eval()
        _shift_gate(shifted, delta)
        updates = sum(float(shifted(*inputs).gates.sum()) for inputs in self._inputs)
        return updates / self._num_frames


@torch.no_grad()
def _shift_gate(recognizer: Recognizer, delta: float) -> None:
    """Add δ to the logit of the update probability."""
    assert recognizer.recurrent is not None
    recognizer.recurrent.update_bias.add_(delta)
