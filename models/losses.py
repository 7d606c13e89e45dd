"""What training minimises: the task's loss and the cost of updates.

Letters: B batch, T steps, C classes.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skipreel.models.recognizer import Task
from skipreel.models.recurrence.reference import valid_steps


@dataclass(frozen=True, slots=True)
class Summed:
    """A loss as a sum and the number of its terms.

    The loss of a whole batch is the sum of its parts' totals divided by the sum of their counts. The mean of the parts'
    means would be a different loss where the parts differ in size.

    Attributes:
        total: A scalar, float32 or wider.
        count: 1 or more.
    """

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """total / count, a scalar."""
        return self.total / self.count


def task_loss(logits: Tensor, targets: Tensor, lengths: Tensor, *, task: Task) -> Summed:
    """The task's loss, in float32 or wider.

    Args:
        logits: (B, T, C) for "frames", (B, C) for "video".
        targets: {0, 1} (B, T, C) for "frames", class indices (B,) int64 for "video".
        lengths: (B,) int64, valid frames of each video; not used for "video".
        task: "frames" or "video".

    Returns:
        "frames": binary cross-entropy, summed over valid frames and classes; the count is their product. "video":
        cross-entropy, summed over the videos; the count is B.

    Raises:
        ValueError: When shapes do not fit together, or no frame is valid.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    if task == "video":
        if logits.dim() != 2 or targets.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be (B, C) and targets (B,), got {tuple(logits.shape)}, {tuple(targets.shape)}"
            )
        return Summed(F.cross_entropy(logits, targets, reduction="sum"), len(targets))
    if logits.dim() != 3 or targets.shape != logits.shape or lengths.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)}, {tuple(targets.shape)}, {tuple(lengths.shape)}"
        raise ValueError(f"logits and targets must be (B, T, C) and lengths (B,), got {shapes}")
    batch_size, num_steps = logits.shape[:2]
    valid = valid_steps(lengths, num_steps=num_steps, batch_size=batch_size, device=logits.device).T
    if not valid.any():
        raise ValueError(f"no frame is valid, got lengths {lengths.tolist()}")
    scores = logits[valid]
    total = F.binary_cross_entropy_with_logits(scores, targets[valid].to(logits.dtype), reduction="sum")
    return Summed(total, scores.numel())


def budget_loss(gates: Tensor, *, weight: float, lengths: Tensor | None = None) -> Summed:
    """λ · Σ_t u_t (eq. 8), summed over the sequences of the batch; the count is B.

    Args:
        gates: (B, T), as a recogniser returns them.
        weight: λ.
        lengths: (B,) int64. Layers return 0 in padding, so it matters only for gates from elsewhere.

    Raises:
        ValueError: When gates are not (B, T), or λ is negative or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the budget's weight λ must be finite, 0 or more, got {weight}")
    if gates.dim() != 2 or gates.shape[0] < 1:
        raise ValueError(f"gates must be (B, T), got shape {tuple(gates.shape)}")
    if lengths is not None:
        batch_size, num_steps = gates.shape
        gates = gates * valid_steps(lengths, num_steps=num_steps, batch_size=batch_size, device=gates.device).T
    return Summed(weight * gates.sum(), len(gates))
