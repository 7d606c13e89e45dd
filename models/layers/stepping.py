"""Single steps on states, for callers that read a sample only when the gate asks for it.

Letters: B batch, D features, H hidden.
"""

import torch
from torch import Tensor

from skipreel.models.recurrence.arguments import check_arguments
from skipreel.models.recurrence.gates import accumulate_steps, steps_until_update
from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.operator import CELLS
from skipreel.models.recurrence.reference import SkipState, SkipWeights, accumulate, candidate


def step(
    x: Tensor, state: SkipState, weights: SkipWeights, *, cell: CellName, dropout: float, limit: int
) -> tuple[Tensor, SkipState, Tensor]:
    """One update of every row; see `SkipRNNBase.step`. x (B, D) -> (output (B, H), state, wait (B,) int64)."""
    check_arguments(x, state, weights, cell=cell)
    early = accumulate(state.update_prob, state.accumulated) <= 0.5
    if early.any():
        rows = early.nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} are not due for an update: skip() them first, by the wait that step() gave")
    state = candidate(x, state, weights, cell=CELLS[cell], dropout=dropout)
    return state.h[-1], state, steps_until_update(state.update_prob, limit=limit) - 1


def skip(state: SkipState, num_steps: int | Tensor, weights: SkipWeights, *, cell: CellName) -> SkipState:
    """The state after num_steps steps without an update, an int or (B,) int64; see `SkipRNNBase.skip`."""
    check_arguments(None, state, weights, cell=cell)
    count = torch.as_tensor(num_steps, device=state.accumulated.device).expand_as(state.accumulated)
    if count.min() < 0:
        raise ValueError(f"num_steps must be 0 or more, got {count.tolist()}")
    accumulated = accumulate_steps(state.update_prob, state.accumulated, count)
    if ((accumulated > 0.5) & (count > 0)).any():
        raise ValueError(
            f"skipping {count.tolist()} steps would pass an update: skip at most the wait that step() gave"
        )
    return state._replace(accumulated=accumulated)
