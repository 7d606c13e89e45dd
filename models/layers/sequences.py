"""torch's forms of sequences and states, converted to the recurrence's: x (T, B, D) and SkipState.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from skipreel.models.recurrence.reference import SkipState

State = SkipState | tuple[Tensor, Tensor] | Tensor
"""Where a sequence continues (SkipState), or where it starts: (h, c) for an LSTM, h for a GRU."""

Lengths = Tensor | Sequence[int] | NDArray[np.integer[Any]]
"""Valid steps of each row, (B,) integers."""

Run = Callable[[Tensor, SkipState | None, Tensor | None, Tensor | None], tuple[Tensor, SkipState, Tensor]]
"""(x (T, B, D), state, lengths (B,), gates (T, B)) -> (output (T, B, H), state, gates (T, B))."""


def as_state(state: State, *, has_cell_state: bool) -> SkipState:
    """A SkipState as it is; (h, c) or h, which start a sequence, with (p, a) = (1, 0): the first step is an update.

    h and c are (L, B, H), or (L, H) without a batch.

    Raises:
        ValueError: For anything else.
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


def run_sequences(
    run: Run,
    x: Tensor | PackedSequence,
    state: SkipState | None,
    lengths: Lengths | None,
    gates: Tensor | PackedSequence | None,
    *,
    batch_first: bool,
) -> tuple[Tensor | PackedSequence, SkipState, Tensor | PackedSequence]:
    """Calls `run` for a batch, one sequence (T, D) or packed sequences; output and gates are in the form of x.

    Raises:
        ValueError: When state, lengths or gates do not fit x.
    """
    if lengths is not None and (isinstance(x, PackedSequence) or x.dim() == 2):
        raise ValueError("lengths are for a padded batch: a PackedSequence has its own, and one sequence can be cut")
    if gates is not None and isinstance(gates, PackedSequence) != isinstance(x, PackedSequence):
        raise ValueError(f"gates must be packed where x is, and only there, got a {type(gates).__name__}")
    if isinstance(x, PackedSequence):
        return _run_packed(run, x, state, cast(PackedSequence | None, gates))
    gates = cast(Tensor | None, gates)
    if gates is not None and gates.shape != x.shape[:-1]:
        raise ValueError(
            f"gates must have shape {tuple(x.shape[:-1])}, as the input's rows and steps, got {tuple(gates.shape)}"
        )
    if x.dim() == 2:
        return _run_unbatched(run, x, state, gates)
    if batch_first:
        x = x.transpose(0, 1)
        gates = None if gates is None else gates.transpose(0, 1)
    output, last, used = run(x, state, None if lengths is None else _as_lengths(lengths, batch_size=x.shape[1]), gates)
    return (output.transpose(0, 1), last, used.transpose(0, 1)) if batch_first else (output, last, used)


def _as_lengths(lengths: Lengths, *, batch_size: int) -> Tensor:
    """(B,) int64; refuses bools too, since a mask is not a number of steps."""
    given = torch.as_tensor(lengths)
    if given.shape != (batch_size,) or given.dtype == torch.bool or given.is_floating_point():
        raise ValueError(f"lengths must be ({batch_size},) integers, got {tuple(given.shape)} of {given.dtype}")
    return given.to(torch.int64)


def _run_unbatched(
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


def _run_packed(
    run: Run, x: PackedSequence, state: SkipState | None, gates: PackedSequence | None
) -> tuple[PackedSequence, SkipState, PackedSequence]:
    """Packed sequences -> packed output and gates in the same order.

    Rows of the state are in the order of the sequences before they were packed, as torch's.
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
