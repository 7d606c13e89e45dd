"""What every fast implementation is given and returns: one contract for torch operators, C++ and Triton.

A *segment* is a state and the steps for which it is held. Segments 0 … B − 1 are those that the rows start with; each
update begins another. So there are S = B + E segments for E updates.

Letters: B batch, T steps, D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), E updates in all
rows, S segments, K state vectors of a layer (LSTM 2: h, c; GRU 1: h), N gate blocks that layer normalisation reaches
(LSTM 4, GRU 2: r and z).
"""

from typing import Literal, NamedTuple

from torch import Tensor

from skipreel.models.recurrence.reference import LayerWeights, SkipState, SkipWeights

CellName = Literal["lstm", "gru", "gru_reset_after"]


class ForwardInputs(NamedTuple):
    """x (T, B, D) of any strides; lengths (B,) int64 or None; gates (T, B) bool or None for learned ones.

    Given gates carry no gradient and may be anything in padding. All floating tensors share one dtype.
    """

    x: Tensor
    state: SkipState
    weights: SkipWeights
    cell: CellName
    lengths: Tensor | None
    gates: Tensor | None


class Trace(NamedTuple):
    """What a forward keeps for its backward, of any strides. P may be H or more: what lies beyond H is padding.

    states (S, L, K, P); saved (E, L, X), values of the cell at each update; held (M, L, Y), recurrent products of the
    segments that hold their state for at least one valid step (with given gates none are needed); prob (S,), the p of
    each segment; index (S, 4) int64: row, step (−1 for the first B), previous segment (−1 for the first B), and the row
    of `held` or −1. A segment comes after its predecessor.

    `saved` starts with blocks P wide: i, f, g, o (LSTM); r, z, n (GRU); r, z, n, U_n h + b_hn (GRU with reset after).
    With layer normalisation N blocks (a − mean) / (σ + ε) follow. The rest of X and all of Y are the implementation's
    own, and so is projection, W x + b of layer 0 at every step where that was made beforehand.
    """

    states: Tensor
    saved: Tensor
    held: Tensor
    prob: Tensor
    index: Tensor  # type: ignore[assignment] # in place of tuple.index
    projection: Tensor | None = None


class ForwardOutputs(NamedTuple):
    """output (T, B, H), the top layer's h, held while skipping and in padding; state, the last one; gates (T, B).

    Gates are 0 in padding. The trace is there if it was asked for.
    """

    output: Tensor
    state: SkipState
    gates: Tensor
    trace: Trace | None


class OutputGrads(NamedTuple):
    """Gradients of the loss by each part of `ForwardOutputs`; None where the loss does not depend on it."""

    output: Tensor | None
    h: Tensor | None
    c: Tensor | None
    update_prob: Tensor | None
    accumulated: Tensor | None
    gates: Tensor | None


class PreactivationGrads(NamedTuple):
    """Gradients by pre-activation and by what the rows started with; the parameters' follow from them.

    pre_activation (E, L, G, P), by W x + b_ih at each update, segment B + e at place e, before layer normalisation;
    logit (E,), by w_p · s + b_p; states (B, L, K, P); update_prob and accumulated (B,). normalised (E, L, N, P), by
    what layer normalisation makes of the pre-activation, gain and bias included; None without it.
    """

    pre_activation: Tensor | None
    logit: Tensor
    states: Tensor
    update_prob: Tensor
    accumulated: Tensor
    normalised: Tensor | None = None
    layers: tuple[LayerWeights, ...] | None = None
