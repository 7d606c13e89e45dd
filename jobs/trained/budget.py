"""The dial of a trained Skip RNN: at inference it can be told how large a share of the frames to look at on average.

A constant δ is added to the logit of the gate's probability, p = σ(w·s + b + δ). What comes out is a Skip RNN like any
other: its dense pass, its steps and its jumps agree exactly. Which δ leads to which share is measured when training
ends, and kept with the checkpoint.
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
LOWEST_SHARE = 0.02  # the curve need not reach below
LARGEST_DELTA = 32.0  # from where a probability of any network is as good as 0 or 1
FINEST_DELTA = 0.05  # what lies closer together is a jump of the curve, which more points do not smooth


def has_dial(recognizer: Recognizer) -> bool:
    """Whether the network learned its gate: controls and the mean of frames have their budget by their settings."""
    return recognizer.recurrent is not None and isinstance(recognizer.config.gate, LearnedGate)


def calibration_examples(
    feature_set: FeatureSet, manifest: Manifest, training: Sequence[Example], *, task: Task
) -> Sequence[Example]:
    """The videos that a curve is measured on, at most 100: of a split for validation, else the training's own.

    The split is called validation, val or valid, and is passed over where it has no features or labels of another task.

    Raises:
        FeatureSetError: when its features hold NaN or infinity.
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
    """(δ, share of the frames looked at) at up to 17 places, δ ascending; close together where the share changes much.

    From the share 1, if any δ leads there, down to 0.02, or to the first frame of each video alone. Deterministic; the
    recogniser is left as it is.

    Raises:
        ValueError: for a network without a learned gate.
    """
    dial = _Dial(recognizer, examples)
    curve = {0.0: dial.share(0.0)}
    for sign, end in ((1.0, 1.0), (-1.0, max(LOWEST_SHARE, dial.least))):
        delta = 0.0
        while (end - curve[delta]) * sign > 0 and abs(delta) < LARGEST_DELTA:
            delta = 2 * delta or sign
            curve[delta] = dial.share(delta)
    while len(curve) < MAX_POINTS:
        gaps = [(low, high) for low, high in pairwise(sorted(curve)) if high - low > FINEST_DELTA]
        low, high = max(gaps, key=lambda gap: abs(log(curve[gap[1]] / curve[gap[0]])), default=(0.0, 0.0))
        if curve[low] == curve[high]:
            break
        curve[(low + high) / 2] = dial.share((low + high) / 2)
    return sorted(curve.items())


def with_budget(model: TrainedModel, share: float) -> TrainedModel:
    """A copy of a model that looks at about this share of the frames on average, above 0 and at most 1.

    Raises:
        InputError: for another share, one out of the model's reach, a model that does not learn its gate, or one that
            was trained before curves were measured.
    """
    if not 0 < share <= 1:
        raise InputError(f"the budget is {share:g}, it must be a share of the frames: above 0 and at most 1")
    if not has_dial(model.recognizer):
        raise InputError(
            f"a budget is for networks that learned when to look, not for {model.settings.get('model', 'this one')} "
            f"(cell {model.recognizer.config.cell}, {model.recognizer.config.gate}): leave the budget out"
        )
    if model.budget_curve is None:
        raise InputError(
            "the model does not say what its budgets lead to, it was trained by an earlier version: "
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
    _turn(recognizer, delta)
    curve = tuple((place - delta, at) for place, at in model.budget_curve)
    return replace(model, recognizer=recognizer, budget_curve=curve)


class _Dial:
    def __init__(self, recognizer: Recognizer, examples: Sequence[Example]) -> None:
        if not has_dial(recognizer):
            raise ValueError(f"a {recognizer.config.cell} with {recognizer.config.gate} does not learn its gate")
        self._recognizer = recognizer
        device = recognizer.feature_mean.device
        by_length = sorted(examples, key=lambda example: len(example.sequence.features))  # so that little is padding
        batches = [
            collate(by_length[start : start + EVALUATION_BATCH]) for start in range(0, len(examples), EVALUATION_BATCH)
        ]
        self._inputs = [(batch.features.to(device), batch.lengths.to(device)) for batch in batches]
        self._num_frames = sum(int(lengths.sum()) for _, lengths in self._inputs)
        self.least = len(examples) / self._num_frames

    def share(self, delta: float) -> float:
        turned = deepcopy(self._recognizer).eval()
        _turn(turned, delta)
        updates = sum(float(turned(*inputs).gates.sum()) for inputs in self._inputs)
        return updates / self._num_frames


@torch.no_grad()
def _turn(recognizer: Recognizer, delta: float) -> None:
    assert recognizer.recurrent is not None
    recognizer.recurrent.update_bias.add_(delta)
