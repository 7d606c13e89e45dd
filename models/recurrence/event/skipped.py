"""What skipped steps do to the gradient of learned gates, for all of them at once.

At a skipped step the adjoints z = (a, b) of (ũ, p) become M z + (1, 1)·(λ + ⟨A + C, D⟩) with M = [[1 − α, q],
[1 − α, 1 + q]]. D = s̃ − s_k is the candidate that was not taken less the state that is held, q = p̃ − p_k, α is ũ; λ is
the gradient of the gate, C that of the outputs from this step to the end of the segment, A that of the state behind it.

So z at the start of a segment is linear in (A, z behind it, 1), with coefficients that depend on no adjoint. They are
made before the backward runs. Only two scans of small vectors are sequential, as long as the longest wait.

Letters: B batch, T steps, H hidden, L layers, K state vectors of a layer, S segments, Q skipped steps, m of them at a
time, W = L·K·H + 3.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skipreel.models.recurrence.event.cells import CELLS, Vectors
from skipreel.models.recurrence.event.input_projection import InputProjection
from skipreel.models.recurrence.interface import ForwardInputs, Trace

_CHUNK: Final = 2048


class Skipped(NamedTuple):
    """coefficients (2, S, W): of a and b at a segment's start by (A, a, b, 1) behind it; accumulated (S,): ũ there."""

    coefficients: Tensor
    accumulated: Tensor


class _Steps(NamedTuple):
    """All skipped steps in the order of their segments, (Q,) each; position counts from 1 within the segment."""

    segment: Tensor
    position: Tensor
    row: Tensor
    step: Tensor


def skipped_steps(
    inputs: ForwardInputs, trace: Trace, waits: Tensor, *, reached: Tensor | None, gates: Tensor | None
) -> Skipped:
    """waits (S,), not all 0; reached (T, B, H), C at each step, and gates (T, B), λ, are None where they are 0."""
    steps = _steps(trace, waits)
    away, change = _Candidates(inputs, trace).compare(steps, reached)
    if gates is not None:
        away[:, -1] += gates[steps.step, steps.row]
    weights, product, accumulated = _scan(inputs, trace, waits, steps, change)
    each = torch.arange(steps.row.shape[0], device=waits.device)
    first = waits.cumsum(0) - waits
    # The fastest sum over runs of rows that torch has.
    coefficients = torch.stack(
        [F.embedding_bag(each, away, first, mode="sum", per_sample_weights=weight) for weight in weights.unbind(0)]
    )
    coefficients[:, :, -3:-1] = product
    return Skipped(coefficients, accumulated)


def _steps(trace: Trace, waits: Tensor) -> _Steps:
    segment = torch.repeat_interleave(waits)
    first = waits.cumsum(0) - waits
    position = torch.arange(1, segment.shape[0] + 1, device=waits.device) - first[segment]
    row, step, _, _ = trace.index.unbind(1)
    return _Steps(segment, position, row[segment], step[segment] + position)


class _Candidates:
    """The candidates of skipped steps, some at a time, in scratch memory that is small enough for the cache."""

    def __init__(self, inputs: ForwardInputs, trace: Trace) -> None:
        self._inputs = inputs
        self._trace = trace
        self._cell = CELLS[inputs.cell]
        self._layers = self._cell.layers(inputs)
        self._input_projection = InputProjection(inputs, self._layers[0], projection=trace.projection)
        size = inputs.state.h.shape[2]
        new = trace.prob.new_empty
        self._saved = new(_CHUNK, trace.saved.shape[2])
        # Layers alternate between two: each reads what the layer below it made.
        self._vectors = [tuple(new(_CHUNK, size) for _ in range(self._cell.vectors)) for _ in range(2)]

    def compare(self, steps: _Steps, reached: Tensor | None) -> tuple[Tensor, Tensor]:
        """(D, 0, 0, ⟨C, D⟩) for each step, (Q, W); and q (Q,)."""
        size = self._inputs.state.h.shape[2]
        count, columns = steps.row.shape[0], len(self._layers) * self._cell.vectors * size
        away = self._trace.prob.new_empty(count, columns + 3)
        away[:, columns:] = 0
        change = self._trace.prob.new_empty(count)
        top = columns - self._cell.vectors * size
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            some = _Steps(*(values[part] for values in steps))
            change[part] = self._candidate(some, away[part])
            if reached is not None:
                place = some.step * reached.shape[1] + some.row
                by_output = reached.view(-1, size).index_select(0, place).mul_(away[part, top : top + size])
                torch.sum(by_output, 1, out=away[part, -1])
        return away, change

    def _candidate(self, steps: _Steps, away: Tensor) -> Tensor:
        """D of some steps (m,), into the first columns of away (m, W), and their q (m,)."""
        trace, num_rows = self._trace, steps.row.shape[0]
        held = trace.index[:, 3].index_select(0, steps.segment)
        saved = self._saved[:num_rows]
        differences = away[:, :-3].view(num_rows, len(self._layers), self._cell.vectors, -1)
        new: Vectors = ()
        for depth, layer in enumerate(self._layers):
            pre_activation = saved[:, : layer.bias.shape[0]]
            if depth:
                torch.addmm(layer.bias, new[0], layer.weight_ih.t(), out=pre_activation)
            else:
                self._input_projection.gather(steps.row, steps.step, out=pre_activation)
            old = tuple(vector.index_select(0, steps.segment) for vector in trace.states[:, depth].unbind(1))
            new = tuple(vector[:num_rows] for vector in self._vectors[depth % 2])
            self._cell.forward_step(saved, old, new, layer, held=trace.held[:, depth].index_select(0, held))
            for place, (one, other) in enumerate(zip(new, old, strict=True)):
                torch.sub(one, other, out=differences[:, depth, place])
        weights = self._inputs.weights
        prob = torch.addmv(weights.update_bias, new[-1], weights.update_weight[0]).sigmoid_()
        return prob.sub_(trace.prob.index_select(0, steps.segment))


def _scan(
    inputs: ForwardInputs, trace: Trace, waits: Tensor, steps: _Steps, change: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """w = (∏ M of the steps before)·(1, 1) at each step, (2, Q); ∏ M of each segment, (2, S, 2), and its last ũ, (S,).

    Segments are put in order of their length, so that those that still wait at a position come first, and steps in
    order of position. With v the second column of ∏ M: v += w·q, and then w becomes w·(1 − α) + v.
    """
    order = torch.argsort(waits, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0], device=waits.device)
    longer = waits.shape[0] - torch.bincount(waits).cumsum(0)
    bounds = [0, *longer[:-1].cumsum(0).tolist()]
    starts = torch.tensor(bounds, device=waits.device)
    place = starts[steps.position - 1] + rank[steps.segment]

    accumulated = torch.zeros_like(trace.prob)
    accumulated[: inputs.x.shape[1]] = inputs.state.accumulated
    alpha = _accumulate_by_position(trace.prob[order], accumulated[order], bounds)
    room = 1 - alpha
    change = torch.empty_like(change).index_copy_(0, place, change)
    weights = change.new_ones(2, change.shape[0])
    column = change.new_zeros(2, bounds[1])
    column[1] = 1
    for (start, end), after in zip(pairwise(bounds), [*bounds[2:], bounds[-1]], strict=True):
        column[:, : end - start].addcmul_(weights[:, start:end], change[start:end])
        going_on = slice(start, start + after - end)
        torch.addcmul(column[:, : after - end], weights[:, going_on], room[going_on], out=weights[:, end:after])

    waited = waits > 0
    last = starts[waits[waited] - 1] + rank[waited]
    accumulated[waited] = alpha[last]
    product = torch.eye(2, dtype=change.dtype, device=change.device)[:, None, :].repeat(1, waits.shape[0], 1)
    product[:, waited, 0] = weights[:, last] * room[last]
    product[:, waited, 1] = column[:, rank[waited]]
    return weights[:, place], product, accumulated


def _accumulate_by_position(p: Tensor, a: Tensor, bounds: list[int]) -> Tensor:
    """ũ at each step, (Q,) in order of position; p and a (S,) in order of length. Where one skips no clamp binds."""
    alpha = p.new_empty(bounds[-1])
    for start, end in pairwise(bounds):
        a = torch.add(a[: end - start], p[: end - start], out=alpha[start:end])
    return alpha
