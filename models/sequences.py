"""The forms in which torch.nn.LSTM and torch.nn.GRU take sequences and states, brought to one: x (T, B, D), SkipState.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from skipreel.models.recurrence.reference import SkipState

State = SkipState | tuple[Tensor, Tensor] | Tensor
"""Where a sequence continues (SkipState), or where one starts: (h, c) for an LSTM, h for a GRU."""

Lengths = Tensor | Sequence[int] | NDArray[np.integer[Any]]
"""Valid steps of each row, (B,) integers."""

Run = Callable[[Tensor, SkipState | None, Tensor | None, Tensor | None], tuple[Tensor, SkipState, Tensor]]
"""(x (T, B, D), state, lengths (B,), gates (T, B)) -> (output (T, B, H), state, gates (T, B))."""


def as_state(state: State, *, has_cell_state: bool) -> SkipState:
    """A SkipState as it is; (h, c) or h, which start a sequence, with (p, a) = (1, 0): the first step is an update.

    h and c are (L, B, H), or (L, H) without a batch. Raises ValueError for anything else.
    """
    if isinstance(state, SkipState):
        return state
    parts: tuple[Any, ...] = tuple(state) if has_cell_state and isinstance(state, (tuple, list)) else (state,)
    if len(parts) != 1 + has_cell_state or not all(isinstance(part, Tensor) for part in parts):
        wanted = "(h, c), as torch.nn.LSTM's" if has_cell_state else "a tensor h, as torch.nn.GRU's"
        raise ValueError(f"state must be a SkipState or {wanted}, got a {type(state).__name__}")
    h: Tensor = parts[0]
    ones = h.new_ones(h.shape[1:-1], dtype=torch.promote_types(h.dtype, torch.float32))
    return SkipState(h, parts[1] if has_cell_state else None, ones, torch.zeros_like(ones))


def as_lengths(lengths: Lengths, *, batch_size: int) -> Tensor:
    """(B,) int64. Raises ValueError for another shape, and for what are not integers, as a mask of bools."""
    given = torch.as_tensor(lengths)
    if given.shape != (batch_size,) or given.dtype == torch.bool or given.is_floating_point():
        raise ValueError(f"lengths must be ({batch_size},) integers, got {tuple(given.shape)} of {given.dtype}")
    return given.to(torch.int64)


def run_unbatched(
    run: Run, x: Tensor, state: SkipState | None, gates: Tensor | None
) -> tuple[Tensor, SkipState, Tensor]:
    """One sequence x (T, D) and a state without a batch, h (L, H) -> (output (T, H), such a state, gates (T,))."""
    if state is not None:
        if state.h.dim() != 2:
            raise ValueError(f"x (T, D) is one sequence: state.h must be (L, H), got shape {tuple(state.h.shape)}")
        h, c, update_prob, accumulated = state
        state = SkipState(h[:, None], None if c is None else c[:, None], update_prob[None], accumulated[None])
    output, last, used = run(x[:, None], state, None, None if gates is None else gates[:, None])
    c = None if last.c is None else last.c[:, 0]
    return output[:, 0], SkipState(last.h[:, 0], c, last.update_prob[0], last.accumulated[0]), used[:, 0]


def run_packed(
    run: Run, x: PackedSequence, state: SkipState | None, gates: PackedSequence | None
) -> tuple[PackedSequence, SkipState, PackedSequence]:
    """Packed sequences in, packed output and gates of the same order out.

    Rows of the state are in the order in which the sequences were given to be packed, as torch's.
    """
    padded, lengths = pad_packed_sequence(x)
    if gates is not None and not torch.equal(gates.batch_sizes, x.batch_sizes):
        raise ValueError("gates must be packed as x is, got other lengths")
    output, last, used = run(padded, state, lengths, None if gates is None else pad_packed_sequence(gates)[0])

    def packed(values: Tensor) -> PackedSequence:
        order = x.sorted_indices
        longest_first = lengths if order is None else lengths[order.to(lengths.device)]
        ordered = values if order is None else values.index_select(1, order)
        return PackedSequence(
            pack_padded_sequence(ordered, longest_first).data, x.batch_sizes, order, x.unsorted_indices
        )

    return packed(output), last, packed(used)
