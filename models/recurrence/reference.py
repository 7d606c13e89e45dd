"""The Skip RNN recurrence step by step: the specification that every faster implementation is held to.

Campos et al., "Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks", ICLR 2018. Equation numbers are
the paper's. The update gate is carried as the pair (p, a) of the released code, p = Δ and a = the accumulated ũ, which
starts at (1, 0). Outputs equal eqs. 2–5; the straight-through gradients are the ones of the published results, which
eqs. 2–5 taken literally do not give.

Letters: B batch, T steps, D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), N of them that layer
normalisation reaches (LSTM 4, GRU 2: r and z).
"""

import math
from collections.abc import Callable
from itertools import repeat
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.utils._pytree import _register_namedtuple

NORM_EPSILON: Final = 1e-3
"""What layer normalisation adds to the standard deviation (not to the variance)."""


class SkipState(NamedTuple):
    """What one step hands to the next; given back to a layer, it continues a sequence where it stopped.

    h (L, B, H); c (L, B, H) for an LSTM, None for a GRU; update_prob (B,) is p; accumulated (B,) is a. The last two are
    float32 or wider whatever the dtype of h.
    """

    h: Tensor
    c: Tensor | None
    update_prob: Tensor
    accumulated: Tensor


# So that torch.load(weights_only=True) reads a saved state, and torch.export.save writes a layer, which returns one.
torch.serialization.add_safe_globals([SkipState])
_register_namedtuple(SkipState, serialized_type_name="skipreel.SkipState")


class LayerWeights(NamedTuple):
    """One layer, as torch lays it out: weight_ih (G·H, D), weight_hh (G·H, H), bias_ih and bias_hh (G·H,).

    norm_weight and norm_bias (N·H,) are the gain and the bias of layer normalisation, None without it.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


class SkipWeights(NamedTuple):
    """A whole stack: L layers, and the gate's w_p as update_weight (1, H) and b_p as update_bias (1,)."""

    layers: tuple[LayerWeights, ...]
    update_weight: Tensor
    update_bias: Tensor


Cell = Callable[[Tensor, Tensor, Tensor | None, LayerWeights], tuple[Tensor, Tensor | None]]
"""(x (B, D), h (B, H), c (B, H) or None, weights) -> candidate (h̃ (B, H), c̃ (B, H) or None)."""


def binarise(accumulated: Tensor) -> Tensor:
    """u = round(ũ), half to even, so that u = 1 iff ũ > 0.5; the gradient passes straight through (eqs. 2 and 7)."""
    fixed = accumulated.detach()
    # Plus exactly 0, whose derivative is 1: in every mode of torch, which an autograd.Function is not.
    return torch.round(fixed) + (accumulated - fixed)


def accumulate(p: Tensor, a: Tensor) -> Tensor:
    """One step of waiting, a + min(p, 1 − a): both cases of eq. 5, since an update leaves a = 0.

    p and a (B,), float32 or float64; the result has their shape and dtype.
    """
    return a + torch.minimum(p, 1 - a)


def update_probability(s: Tensor, update_weight: Tensor, update_bias: Tensor) -> Tensor:
    """Δ = σ(w_p · s + b_p) (eq. 4): s (B, H) -> (B,), float32 or wider.

    In bfloat16 a gate would flip in several sequences out of a hundred. A product and a sum, not a matrix product,
    because autocast leaves those in the dtype of their operands.
    """
    dtype = torch.promote_types(s.dtype, torch.float32)
    return torch.sigmoid((s.to(dtype) * update_weight.to(dtype)).sum(-1) + update_bias.to(dtype))


def normalise(pre_activation: Tensor, weights: LayerWeights) -> Tensor:
    """Layer normalisation of gates (B, N·H): each block a, H wide, becomes gain · (a − mean) / (σ + ε) + bias.

    mean and σ (of the population) are over the H units of a block. Unchanged if the layer does not normalise.
    """
    if weights.norm_weight is None or weights.norm_bias is None:
        return pre_activation
    hidden_size = weights.weight_hh.shape[-1]
    a = pre_activation.reshape(*pre_activation.shape[:-1], -1, hidden_size)
    centred = a - a.mean(-1, keepdim=True)
    # A norm rather than the root of a mean of squares: its gradient at 0 is 0, that of the root is not a number.
    sigma: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(hidden_size)
    unit = centred / (sigma + NORM_EPSILON)
    return unit.flatten(-2) * weights.norm_weight + weights.norm_bias


def lstm_cell(x: Tensor, h: Tensor, c: Tensor | None, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """The candidate (h̃, c̃) of an LSTM, gates in torch's order i, f, g, o; shapes as in `Cell`."""
    assert c is not None
    pre_activation = F.linear(x, weights.weight_ih, weights.bias_ih) + F.linear(h, weights.weight_hh, weights.bias_hh)
    i, f, g, o = normalise(pre_activation, weights).chunk(4, dim=-1)
    c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c_new), c_new


def gru_cell(x: Tensor, h: Tensor, c: Tensor | None, weights: LayerWeights) -> tuple[Tensor, None]:
    """The candidate h̃ of a GRU, gates in torch's order r, z, n; r multiplies h *before* the recurrent matrix.

    r, z = σ(W x + U h + b);  n = tanh(W x + b + U (r∘h));  h̃ = z∘h + (1 − z)∘n. c is None and stays so.
    """
    assert c is None
    split = 2 * h.shape[-1]
    x_rz, x_n = F.linear(x, weights.weight_ih, weights.bias_ih).tensor_split((split,), dim=-1)
    w_rz, w_n = weights.weight_hh.tensor_split((split,))
    b_rz, b_n = weights.bias_hh.tensor_split((split,))
    r, z = torch.sigmoid(normalise(x_rz + F.linear(h, w_rz, b_rz), weights)).chunk(2, dim=-1)
    n = torch.tanh(x_n + F.linear(r * h, w_n, b_n))
    return torch.lerp(n.to(h.dtype), h, z.to(h.dtype)), None  # autocast leaves n and z in a narrower dtype


def gru_cell_reset_after(x: Tensor, h: Tensor, c: Tensor | None, weights: LayerWeights) -> tuple[Tensor, None]:
    """The candidate h̃ of torch.nn.GRU: as `gru_cell`, but n = tanh(W x + b + r∘(U h + b_hn))."""
    assert c is None
    split = 2 * h.shape[-1]
    x_rz, x_n = F.linear(x, weights.weight_ih, weights.bias_ih).tensor_split((split,), dim=-1)
    h_rz, h_n = F.linear(h, weights.weight_hh, weights.bias_hh).tensor_split((split,), dim=-1)
    r, z = torch.sigmoid(normalise(x_rz + h_rz, weights)).chunk(2, dim=-1)
    n = torch.tanh(x_n + r * h_n)
    return torch.lerp(n.to(h.dtype), h, z.to(h.dtype)), None  # autocast leaves n and z in a narrower dtype


def candidate(x: Tensor, state: SkipState, weights: SkipWeights, *, cell: Cell, dropout: float = 0.0) -> SkipState:
    """The state after an update: s̃ = S(s, x) for the whole stack, p̃ = Δ from its top layer, and a = 0.

    x (B, D). Layer l reads the candidate h̃ of layer l − 1, of which a share `dropout` is drawn to be 0 and the rest
    divided by 1 − dropout. The gate reads the top layer's c̃ (LSTM) or h̃ (GRU).
    """
    old_c = repeat(None) if state.c is None else state.c.unbind(0)
    h_new: list[Tensor] = []
    c_new: list[Tensor] = []
    for layer, h, c in zip(weights.layers, state.h.unbind(0), old_c, strict=False):
        if dropout > 0 and h_new:
            x = F.dropout(x, dropout)
        x, c_layer = cell(x, h, c, layer)
        h_new.append(x)
        if c_layer is not None:
            c_new.append(c_layer)
    top = c_new[-1] if c_new else h_new[-1]
    return SkipState(
        h=torch.stack(h_new).to(state.h.dtype),  # under autocast a cell may return a narrower dtype
        c=None if state.c is None else torch.stack(c_new).to(state.c.dtype),
        update_prob=update_probability(top, weights.update_weight, weights.update_bias).to(state.update_prob.dtype),
        accumulated=torch.zeros_like(state.accumulated),
    )


def _hold(u: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """u · new + (1 − u) · old with u (B,), new and old (L, B, H) (eq. 3)."""
    return torch.lerp(old, new, u.to(old.dtype)[:, None])


def skip_step(
    x: Tensor,
    state: SkipState,
    weights: SkipWeights,
    *,
    cell: Cell,
    valid: Tensor,
    gate: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[SkipState, Tensor]:
    """One time step (eqs. 2–5): x (B, D), valid (B,) bool, gate (B,) or None for the learned one -> (state, u (B,)).

    A row that is not valid is padding: its gate is 0, and its state, p and a stay. A given gate takes the place of
    round(a); (p, a) is still carried along, but nothing reads it.
    """
    a = accumulate(state.update_prob, state.accumulated)
    u = (binarise(a) if gate is None else gate) * valid
    new = candidate(x, state, weights, cell=cell, dropout=dropout)
    held = SkipState(
        h=_hold(u, new.h, state.h),
        c=None if state.c is None or new.c is None else _hold(u, new.c, state.c),
        update_prob=torch.lerp(state.update_prob, new.update_prob, u),
        accumulated=torch.where(valid, (1 - u) * a, state.accumulated),
    )
    return held, u


def valid_steps(lengths: Tensor | None, *, num_steps: int, batch_size: int, device: torch.device) -> Tensor:
    """(T, B) bool: True where step t < lengths[b]; all True without lengths."""
    if lengths is None:
        return torch.ones(num_steps, batch_size, dtype=torch.bool, device=device)
    return torch.arange(num_steps, device=device)[:, None] < lengths.to(device)[None, :]


def skip_recurrence(
    x: Tensor,
    state: SkipState,
    weights: SkipWeights,
    *,
    cell: Cell,
    lengths: Tensor | None = None,
    gates: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, SkipState, Tensor]:
    """The whole sequence: x (T, B, D), lengths (B,) int64, gates (T, B) or None for learned ones.

    Returns the top layer's h, held while skipping, (T, B, H); the state after each row's last valid step; and the gates
    (T, B) in the dtype of p, which carry the straight-through gradient. What stands in padded steps of x is never read.
    """
    valid = valid_steps(lengths, num_steps=x.shape[0], batch_size=x.shape[1], device=x.device)
    # Zeros, since 0 · NaN in the backward of a padded step would still be NaN.
    x = x.masked_fill(~valid[:, :, None], 0)
    given = repeat(None) if gates is None else gates.to(state.update_prob.dtype).unbind(0)
    outputs: list[Tensor] = []
    used: list[Tensor] = []
    # unbind, because the backward of x[t] fills a whole zero (T, B, D) for each t.
    for x_t, valid_t, gate_t in zip(x.unbind(0), valid.unbind(0), given, strict=False):
        state, u = skip_step(x_t, state, weights, cell=cell, valid=valid_t, gate=gate_t, dropout=dropout)
        outputs.append(state.h[-1])
        used.append(u)
    return torch.stack(outputs), state, torch.stack(used)
