"""The backward of models/recurrence/event.

Each row of a batch of updates has one vector of the adjoints of its state, of ũ and p, and a 1, W = L·K·H + 3 wide:
what skipped steps do is linear in that vector, and so is the gradient of a gate.

Letters: B batch, T steps, H hidden, L layers, G gate blocks, K state vectors of a layer, N normalised blocks, E updates
in all rows, S = B + E segments, n rows of a batch of updates, m of a few batches together.
"""

from bisect import bisect_left
from typing import Final, NamedTuple

import torch
from torch import Tensor

from skipreel.models.recurrence.event.cells import CELLS, BackwardStep, Vectors
from skipreel.models.recurrence.event.gate_terms import final_adjoint, gate_terms
from skipreel.models.recurrence.interface import ForwardInputs, OutputGrads, PreactivationGrads, Trace
from skipreel.models.recurrence.segments import suffix_sums

_CHUNK: Final = 1024
"""Updates whose factors are made at once: enough for wide operators, few enough to stay in the cache."""

_FLUSH_EVERY: Final = 16
_TINY: Final = 1e-30
"""Smaller adjoints become 0 now and then: if they went on shrinking to denormal floats, products would take ten times
as long."""


class _RowAdjoints:
    """The adjoints of the rows of a batch, values (n, W), and views of them: states is (h,) or (h, c) of each layer."""

    def __init__(self, values: Tensor, *, num_layers: int, vectors: int) -> None:
        self.values = values
        size = (values.shape[1] - 3) // (num_layers * vectors)
        states = values[:, :-3].view(values.shape[0], num_layers, vectors, size)
        self.states: list[Vectors] = [layer.unbind(1) for layer in states.unbind(1)]
        self.gate = values[:, -3:-1]
        self.prob = values[:, -2]


class _Factors(NamedTuple):
    """What several batches get at once, for m updates from place `start` on.

    extra: of the cell, (m, H) for each layer; change (m, W): its product with a `_RowAdjoints` is the gradient of a
    gate, None if gates are given; output (m, H): the adjoint from outputs, None if they have none.
    """

    start: int
    extra: list[Tensor | None]
    change: Tensor | None
    output: Tensor | None


class Backward:
    """One backward: `run` goes through the updates, the last ones first."""

    def __init__(self, inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads) -> None:
        num_steps, batch_size, _ = inputs.x.shape
        num_layers, _, size = inputs.state.h.shape
        self._trace = trace
        self._batch_size = batch_size
        self._size = size
        self._cell = CELLS[inputs.cell]
        self._layers = self._cell.layers(inputs)
        self._update_weight = inputs.weights.update_weight[0]
        self._row, self._step, self._previous, _ = trace.index[batch_size:].unbind(1)
        self._previous_list: list[int] = self._previous.tolist()
        self._place = self._step * batch_size + self._row
        count = self._row.shape[0]
        self._dense = count == num_steps * batch_size
        self._reached = self._output_adjoint(output_grads.output)
        self._gate = gate_terms(inputs, trace, output_grads, reached=self._reached) if inputs.gates is None else None
        self._final = final_adjoint(inputs, trace, output_grads)
        new = trace.states.new_empty
        self._pre = new(num_layers, count, self._cell.blocks, size)
        normalised = self._layers[0].norm is not None
        self._normalised = new(num_layers, count, self._cell.norm_blocks, size) if normalised else None
        prob = trace.prob[batch_size:]
        self._logit = prob - prob * prob

    def run(self) -> PreactivationGrads:
        adjoints = self._row_adjoints(self._final[:0])
        following = slice(0, 0)
        for batches in reversed(_together(_batches(self._previous_list, self._batch_size))):
            factors = self._factors(batches[0].start, batches[-1].stop)
            for number, batch in enumerate(reversed(batches), start=1):
                adjoints = self._joined(adjoints, following, self._row[batch], first=self._batch_size + batch.start)
                self._backward_step(adjoints, batch, factors)
                following = batch
                if number % _FLUSH_EVERY == 0 or number == len(batches):
                    adjoints.values.masked_fill_(adjoints.values.abs() < _TINY, 0)
        everyone = torch.arange(self._batch_size, device=self._row.device)
        adjoints = self._joined(adjoints, following, everyone, first=0)
        self._wait(adjoints, slice(0, self._batch_size))
        if self._reached is not None:
            not_at_once = torch.ones_like(self._final[:, 0])
            not_at_once[self._row[self._step == 0]] = 0
            adjoints.states[-1][0].addcmul_(self._reached[0], not_at_once[:, None])
        return PreactivationGrads(
            pre_activation=self._pre.transpose(0, 1),
            logit=self._logit,
            states=adjoints.values[:, :-3].reshape(self._batch_size, *self._trace.states.shape[1:]),
            update_prob=adjoints.values[:, -2],
            accumulated=adjoints.values[:, -3],
            normalised=None if self._normalised is None else self._normalised.transpose(0, 1),
        )

    def _output_adjoint(self, grad: Tensor | None) -> Tensor | None:
        """(T, B, H): of the top layer's h at each step, from its outputs there and later."""
        if grad is None or self._dense:
            return None if grad is None else grad.contiguous()
        updates = torch.zeros(grad.shape[:2], dtype=torch.bool, device=grad.device)
        updates.view(-1)[self._place] = True
        return suffix_sums(grad, starts=updates)

    def _row_adjoints(self, values: Tensor) -> _RowAdjoints:
        return _RowAdjoints(values, num_layers=len(self._layers), vectors=self._cell.vectors)

    def _joined(self, adjoints: _RowAdjoints, following: slice, row: Tensor, *, first: int) -> _RowAdjoints:
        """For rows `row` (n,), with segments from `first` on: `adjoints`, and final adjoints of those that end here."""
        if row.shape[0] == adjoints.values.shape[0]:
            return adjoints
        values = self._final.index_select(0, row)
        values.index_copy_(0, self._previous[following] - first, adjoints.values)
        return self._row_adjoints(values)

    def _factors(self, start: int, stop: int) -> _Factors:
        """For the updates start … stop; those of the cell go into the memory of its adjoints."""
        before = self._previous_list[start], self._previous_list[stop - 1] + 1
        contiguous = before[1] - before[0] == stop - start
        now = slice(start + self._batch_size, stop + self._batch_size)
        change = None if self._gate is None else self._final.new_empty(stop - start, self._final.shape[1])
        extra: list[Tensor | None] = []
        column = 0
        for depth, states in enumerate(self._trace.states.unbind(1)):
            vectors = states.unbind(1)
            if contiguous:
                old = tuple(vector[slice(*before)] for vector in vectors)
            else:
                old = tuple(vector.index_select(0, self._previous[start:stop]) for vector in vectors)
            new = tuple(vector[now] for vector in vectors)
            pre = self._pre[depth, start:stop]
            extra.append(self._cell.factors(self._trace.saved[start:stop, depth], old, new, pre))
            if self._normalised is not None:
                self._normalised[depth, start:stop] = pre[:, : self._cell.norm_blocks]
            for one, other in zip(new, old, strict=True):
                if change is not None:
                    torch.sub(one, other, out=change[:, column : column + self._size])
                column += self._size
        if change is not None and self._gate is not None:
            change[:, -3:] = self._gate.terms[start:stop]
        return _Factors(start, extra, change, self._outputs(start, stop))

    def _outputs(self, start: int, stop: int) -> Tensor | None:
        if self._reached is None:
            return None
        if self._dense:
            return self._reached.view(-1, self._size)[start:stop]
        return self._reached.view(-1, self._size).index_select(0, self._place[start:stop])

    def _wait(self, adjoints: _RowAdjoints, segments: slice) -> None:
        """Takes the adjoints of ũ and p back through the skipped steps of these segments, to their start."""
        if self._gate is not None and self._gate.waiting is not None:
            adjoints.gate.copy_((self._gate.waiting[:, segments] * adjoints.values).sum(-1).t())

    def _backward_step(self, adjoints: _RowAdjoints, batch: slice, factors: _Factors) -> None:
        """Through a batch of updates: `adjoints`, of the segments that they begin, becomes that of the ones before."""
        within = slice(batch.start - factors.start, batch.stop - factors.start)
        self._wait(adjoints, slice(batch.start + self._batch_size, batch.stop + self._batch_size))
        top = adjoints.states[-1]
        if factors.output is not None:
            top[0].add_(factors.output[within])
        gate = None if factors.change is None else (factors.change[within] * adjoints.values).sum(1)
        top[-1].addr_(self._logit[batch].mul_(adjoints.prob), self._update_weight)
        for depth in range(len(self._layers) - 1, -1, -1):
            self._backward_layer(depth, adjoints, batch, factors.extra[depth], within)
        if gate is None or self._gate is None:
            adjoints.gate.zero_()
        else:
            adjoints.gate.copy_(gate.mul_(self._gate.clamp[batch])[:, None])

    def _backward_layer(
        self, depth: int, adjoints: _RowAdjoints, batch: slice, extra: Tensor | None, within: slice
    ) -> None:
        pre = self._pre[depth, batch]
        step = BackwardStep(
            adjoint=adjoints.states[depth],
            below=adjoints.states[depth - 1][0] if depth else None,
            saved=self._trace.saved[batch, depth],
            extra=None if extra is None else extra[within],
            pre=pre,
            gates=pre[:, : self._cell.norm_blocks] if self._normalised is None else self._normalised[depth, batch],
        )
        self._cell.backward_step(step, self._layers[depth])


def _batches(previous: list[int], batch_size: int) -> list[slice]:
    """The batches of updates in their order: each update is in the one after its predecessor's; predecessors ascend."""
    batches = [slice(0, bisect_left(previous, batch_size))]
    while batches[-1].stop < len(previous):
        start = batches[-1].stop
        batches.append(slice(start, bisect_left(previous, batch_size + start, start)))
    return batches if previous else []


def _together(batches: list[slice]) -> list[list[slice]]:
    """Neighbouring batches together, about `_CHUNK` updates."""
    groups: list[list[slice]] = []
    for batch in batches:
        if not groups or groups[-1][-1].stop - groups[-1][0].start >= _CHUNK:
            groups.append([])
        groups[-1].append(batch)
    return groups
