"""Gates that are known beforehand: the updates alone are computed, and their outputs held in between.

Equal to the reference recurrence under the same gates, in as many steps as the busiest row has updates instead of T.
Letters: B batch, T steps, K largest number of updates in a row, D features, H hidden.
"""

import torch
from torch import Tensor

from models.reference import Cell, SkipState, SkipWeights, skip_recurrence


def scheduled_recurrence(
    x: Tensor, state: SkipState, weights: SkipWeights, *, cell: Cell, gates: Tensor
) -> tuple[Tensor, SkipState]:
    """Eq. 3 under gates (T, B) of {0, 1} that carry no gradient and are 0 in padding; x (T, B, D).

    Returns the top layer's h, held while skipping, (T, B, H), and the last state. Its (p, a) are those after each
    row's last update: no schedule consults them.
    """
    updates = gates > 0.5
    counts = updates.sum(0)
    num_updates = max(int(counts.max()), 1)
    # A stable sort puts each row's updated steps first, in their order.
    order = (~updates).to(torch.uint8).argsort(dim=0, stable=True)[:num_updates]
    rows = torch.arange(x.shape[1], device=x.device)
    wanted = torch.arange(num_updates, device=x.device)[:, None] < counts
    compact, last, _ = skip_recurrence(
        x[order, rows], state, weights, cell=cell, lengths=counts, gates=wanted.to(gates.dtype)
    )
    # Before a row's first update its output is the state it started with.
    from_start = torch.cat([state.h[-1][None].to(compact.dtype), compact])
    return from_start[updates.cumsum(0), rows], last
