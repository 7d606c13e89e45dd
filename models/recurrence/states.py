"""Single rows out of a state, and states joined into one, for callers whose rows update at different times.

Letters: B batch, H hidden, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skipreel.models.recurrence.reference import SkipState


def rows_of(state: SkipState, rows: Tensor | slice) -> SkipState:
    """The state of some rows, in the order given.

    rows: (n,) int64 or (B,) bool, which copies; or a slice, which gives views: what is written into them is written
    into `state`.
    """
    c = None if state.c is None else state.c[:, rows]
    return SkipState(state.h[:, rows], c, state.update_prob[rows], state.accumulated[rows])


def stack_states(states: Sequence[SkipState]) -> SkipState:
    """One state with the rows of all, in order: h and c (L, ΣB, H), update_prob and accumulated (ΣB,); a copy.

    Raises ValueError when there is none, or when some are of an LSTM and some of a GRU.
    """
    if not states:
        raise ValueError("there must be at least 1 state to stack, got none")
    cells = [state.c for state in states if state.c is not None]
    if cells and len(cells) < len(states):
        raise ValueError(f"{len(cells)} of {len(states)} states have a c, as an LSTM's, the others none, as a GRU's")
    return SkipState(
        h=torch.cat([state.h for state in states], dim=1),
        c=torch.cat(cells, dim=1) if cells else None,
        update_prob=torch.cat([state.update_prob for state in states]),
        accumulated=torch.cat([state.accumulated for state in states]),
    )
