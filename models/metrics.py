"""How good the predictions are.

Letters: N scored examples, C classes.
"""

import math

import torch
from torch import Tensor


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Mean of the precision at the rank of each positive, without interpolation, as Charades defines it.

    Args:
        scores: (N,) float. Equal scores rank in the order given; infinities are allowed.
        positives: (N,) bool or {0, 1}. Without any the result is NaN.

    Raises:
        ValueError: For other shapes or a NaN score.
    """
    if scores.dim() != 1 or positives.shape != scores.shape:
        raise ValueError(f"scores and positives must be (N,), got {tuple(scores.shape)} and {tuple(positives.shape)}")
    if scores.isnan().any():
        raise ValueError("scores must not be NaN")
    order = scores.argsort(descending=True, stable=True)
    hits = positives.bool()[order]
    precision = hits.double().cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    return float(precision[hits].mean()) if hits.any() else math.nan


def mean_average_precision(scores: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """The mean of the classes' average precision.

    Args:
        scores: (N, C) float.
        targets: (N, C) bool or {0, 1}.

    Returns:
        mAP, and the AP of each class (C,) float64. A class without positives has AP NaN and does not count in the
        mean, which is NaN where no class has any.

    Raises:
        ValueError: For other shapes or a NaN score.
    """
    if scores.dim() != 2 or targets.shape != scores.shape:
        raise ValueError(f"scores and targets must be (N, C), got {tuple(scores.shape)} and {tuple(targets.shape)}")
    per_class = torch.tensor(
        [average_precision(score, target) for score, target in zip(scores.unbind(1), targets.unbind(1), strict=True)],
        dtype=torch.float64,
    )
    return float(per_class.nanmean()), per_class


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of rows whose highest logit is the target: logits (N, C), targets (N,) int64.

    Raises:
        ValueError: For other shapes or no rows.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or len(targets) < 1:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"logits must be (N, C) and targets (N,), N of 1 or more, got {shapes}")
    return float((logits.argmax(1) == targets).double().mean())
