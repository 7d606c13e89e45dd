"""From pre-activation gradients to those of the parameters and of x: one for all implementations.

Letters: B batch, T steps, D features (H in upper layers), H hidden, P ≥ H, G gate blocks, N normalised blocks, m
updates at a time.
"""

from typing import Final

import torch
from torch import Tensor

from skipreel.models.recurrence.interface import CellName, ForwardInputs, PreactivationGrads, Trace
from skipreel.models.recurrence.reference import LayerWeights, SkipWeights
from skipreel.models.recurrence.segments import FlatRows

_CHUNK: Final = 2048
_SAVED_BLOCKS: Final[dict[CellName, int]] = {"lstm": 4, "gru": 3, "gru_reset_after": 4}


def parameter_gradients(
    inputs: ForwardInputs, trace: Trace, grads: PreactivationGrads, *, needs_x: bool
) -> tuple[Tensor | None, SkipWeights]:
    """Of x (T, B, D), 0 at skipped steps, or None unless needs_x; and of the weights, shaped as they are."""
    with torch.no_grad(), torch.autocast(inputs.x.device.type, enabled=False):
        layers = grads.layers or tuple(
            _layer_gradients(inputs, trace, grads, depth) for depth in range(len(inputs.weights.layers))
        )
        read_by_gate = trace.states[inputs.x.shape[1] :, -1, -1, : inputs.state.h.shape[2]]
        weights = SkipWeights(layers, (grads.logit @ read_by_gate)[None], grads.logit.sum()[None])
        return _input_gradient(inputs, trace, grads) if needs_x else None, weights


def _input_gradient(inputs: ForwardInputs, trace: Trace, grads: PreactivationGrads) -> Tensor:
    assert grads.pre_activation is not None
    num_steps, batch_size, width = inputs.x.shape
    weight = inputs.weights.layers[0].weight_ih
    grad = trace.states.new_zeros(num_steps * batch_size, width)
    row, step = trace.index[batch_size:, 0], trace.index[batch_size:, 1]
    place = step * batch_size + row
    for part in _chunks(place.shape[0]):
        pre = grads.pre_activation[part, 0, :, : inputs.state.h.shape[2]].flatten(1)
        grad.index_copy_(0, place[part], pre @ weight)
    return grad.view(num_steps, batch_size, width)


def _layer_gradients(inputs: ForwardInputs, trace: Trace, grads: PreactivationGrads, depth: int) -> LayerWeights:
    """Sums over the updates, some at a time: what was gathered is still in the cache when it is multiplied."""
    assert grads.pre_activation is not None
    batch_size = inputs.x.shape[1]
    weights = inputs.weights.layers[depth]
    size, width = inputs.state.h.shape[2], weights.weight_ih.shape[1]
    blocks, padded = grads.pre_activation.shape[2:]
    row, step, previous, _ = trace.index[batch_size:].unbind(1)
    flat = FlatRows.of(inputs.x)
    place = flat.places(row, step)
    # Columns: what the input weights read, 1 for their bias, what the recurrent ones read, 1 for theirs.
    operand = trace.states.new_ones(min(_CHUNK, row.shape[0]), width + size + 2)
    sums = trace.states.new_zeros(blocks * padded, operand.shape[1])
    for part in _chunks(row.shape[0]):
        pre = grads.pre_activation[part, depth]
        read = operand[: pre.shape[0]]
        if depth:
            read[:, :width] = trace.states[batch_size:, depth - 1, 0, :size][part]
        else:
            read[:, :width] = flat.values.index_select(0, place[part])
        read[:, width + 1 : -1] = trace.states[:, depth, 0].index_select(0, previous[part])[:, :size]
        _add_products(inputs.cell, sums, pre, read, trace.saved[part, depth], split=width + 1)
    sums = sums.view(blocks, padded, -1)[:, :size].flatten(0, 1)
    norm_weight, norm_bias = _norm_gradients(inputs, trace, grads, depth)
    return LayerWeights(
        weight_ih=sums[:, :width].contiguous(),
        weight_hh=sums[:, width + 1 : -1].contiguous(),
        bias_ih=sums[:, width].contiguous(),
        bias_hh=sums[:, -1].contiguous(),
        norm_weight=norm_weight,
        norm_bias=norm_bias,
    )


def _add_products(cell: CellName, sums: Tensor, pre: Tensor, read: Tensor, saved: Tensor, *, split: int) -> None:
    """Adds the product of pre (m, G, P) and read (m, D + H + 2), recurrent from `split` on, to sums (G·P, D + H + 2).

    In block n of a GRU r comes in between, before or after the recurrent matrix.
    """
    if cell == "lstm":
        sums.addmm_(pre.flatten(1).t(), read)
        return
    padded = pre.shape[2]
    sums_rz, sums_n = sums.tensor_split((2 * padded,))
    sums_rz.addmm_(pre[:, :2].flatten(1).t(), read)
    r, d_n = saved[:, :padded], pre[:, 2]
    if cell == "gru":
        read[:, split:-1].mul_(r[:, : read.shape[1] - split - 1])
        sums_n.addmm_(d_n.t(), read)
    else:
        sums_n[:, :split].addmm_(d_n.t(), read[:, :split])
        sums_n[:, split:].addmm_((d_n * r).t(), read[:, split:])


def _norm_gradients(
    inputs: ForwardInputs, trace: Trace, grads: PreactivationGrads, depth: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if grads.normalised is None:
        return None, None
    blocks, padded = grads.normalised.shape[2:]
    size = inputs.state.h.shape[2]
    start = _SAVED_BLOCKS[inputs.cell] * padded
    gain, bias = trace.states.new_zeros(2, blocks * padded)
    for part in _chunks(grads.normalised.shape[0]):
        adjoint = grads.normalised[part, depth].flatten(1)
        bias += adjoint.sum(0)
        gain += (adjoint * trace.saved[part, depth, start : start + blocks * padded]).sum(0)
    gain, bias = (grad.view(blocks, padded)[:, :size].flatten() for grad in (gain, bias))
    return gain, bias


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
