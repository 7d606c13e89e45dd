"""The forward of models/recurrence/event.

Letters: B batch, T steps, H hidden, L layers, E updates in all rows, S = B + E segments, n rows of a batch of updates.
"""

import torch
from torch import Tensor

from skipreel.models.recurrence.event.active_rows import ActiveRows
from skipreel.models.recurrence.event.cells import CELLS, Vectors
from skipreel.models.recurrence.event.input_projection import InputProjection, project_beforehand
from skipreel.models.recurrence.event.jumps import jumps
from skipreel.models.recurrence.event.memory import Held, Memory, Updates, initial_vectors
from skipreel.models.recurrence.interface import ForwardInputs, ForwardOutputs, Trace
from skipreel.models.recurrence.reference import SkipState
from skipreel.models.recurrence.segments import accumulate_for, row_ends, waits


class Forward:
    """One forward: `run` makes the updates, `outputs` returns the results."""

    def __init__(self, inputs: ForwardInputs, *, save: bool) -> None:
        self._inputs = inputs
        self._cell = CELLS[inputs.cell]
        self._layers = self._cell.layers(inputs)
        self._projection = project_beforehand(inputs, self._layers[0]) if save else None
        self._input_projection = InputProjection(inputs, self._layers[0], projection=self._projection)
        self._memory = Memory(inputs, self._cell, self._layers, save=save)
        # The candidates of skipped steps need these; only gradients of learned gates need the candidates.
        self._held = Held(inputs, self._cell, self._layers) if save and inputs.gates is None else None
        self._updates = Updates(inputs.x.shape[1])
        self._last = _LastSegments(inputs)
        self._update_weight = inputs.weights.update_weight[0]

    def run(self) -> None:
        inputs = self._inputs
        num_steps, batch_size, _ = inputs.x.shape
        segments = torch.arange((num_steps + 1) * batch_size, device=inputs.x.device)
        jump = jumps(inputs)
        active = ActiveRows(jump.first(), row_ends(inputs))
        states, prob = initial_vectors(inputs), inputs.state.update_prob
        while len(active):
            places = active.going_on()
            if places is not None:
                self._last.write(active, states, prob)
                active.keep(places)
                states = [tuple(vector.index_select(0, places) for vector in layer) for layer in states]
                continue
            start = batch_size + self._updates.count
            states, prob = self._update(active, states, start=start)
            self._updates.add(active, prob)
            following = jump.following(active.row, active.step, prob)
            active.move(following, segments[start : start + len(active)])

    def _update(self, active: ActiveRows, old: list[Vectors], *, start: int) -> tuple[list[Vectors], Tensor]:
        """One update of every row: the new states (n, H), and their p (n,)."""
        new, saved = self._memory.batch(start, len(active))
        held: list[Tensor] | None = None
        if self._held is not None and active.any_waited:
            held = self._held.make(old, active.segment)
        for depth, layer in enumerate(self._layers):
            pre_activation = saved[depth][:, : layer.bias.shape[0]]
            if depth:
                torch.addmm(layer.bias, new[depth - 1][0], layer.weight_ih.t(), out=pre_activation)
            elif active.common_step is not None:
                self._input_projection.at(active.common_step, out=pre_activation)
            else:
                self._input_projection.gather(active.row, active.step, out=pre_activation)
            products = None if held is None else held[depth]
            self._cell.forward_step(saved[depth], old[depth], new[depth], layer, held=products)
        logit = torch.addmv(self._inputs.weights.update_bias, new[-1][-1], self._update_weight)
        return new, logit.sigmoid_()

    def outputs(self, *, save: bool) -> ForwardOutputs:
        index = self._updates.index(self._inputs.x.device)
        output, gates = self._spread(index)
        return ForwardOutputs(output, self._last.state(), gates, self._trace(index) if save else None)

    def _spread(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Output and gates of all steps."""
        num_steps, batch_size, _ = self._inputs.x.shape
        gates = self._inputs.state.update_prob.new_zeros(num_steps, batch_size)
        if self._updates.count == gates.numel():
            output = self._memory.top[batch_size:].view(num_steps, batch_size, -1)
            return output.clone(), gates.fill_(1)
        place = index[batch_size:, 1] * batch_size + index[batch_size:, 0]
        gates.view(-1)[place] = 1
        # Segments of a row ascend, so the one at a step is the largest one so far.
        segment = index.new_zeros(num_steps, batch_size)
        segment[0] = index[:batch_size, 0]
        segment.view(-1)[place] = torch.arange(batch_size, index.shape[0], device=index.device)
        segment = segment.cummax(0).values
        return self._memory.top.index_select(0, segment.flatten()).view(num_steps, batch_size, -1), gates

    def _trace(self, index: Tensor) -> Trace:
        memory = self._memory
        held = memory.saved[:0, :, :0]
        if self._held is not None:
            self._hold_last()
            held = self._held.finish(index[:, 3])
            index[waits(self._inputs, index) == 0, 3] = -1
        return Trace(
            states=memory.states[:, :, : index.shape[0]].permute(2, 0, 1, 3),
            saved=memory.saved[:, : self._updates.count].transpose(0, 1),
            held=held,
            prob=self._updates.prob(self._inputs.state.update_prob),
            index=index,
            projection=self._projection,
        )

    def _hold_last(self) -> None:
        """The products of segments that no update ends."""
        assert self._held is not None
        waiting = (self._last.waits() > 0).nonzero().flatten()
        states = [tuple(vector.index_select(0, waiting) for vector in layer) for layer in self._last.states]
        self._held.make(states, self._last.segment[waiting])


class _LastSegments:
    """The segment of each row, its states (B, H) for each layer, p and first step; written when some row has ended."""

    def __init__(self, inputs: ForwardInputs) -> None:
        self.states = [tuple(vector.clone() for vector in layer) for layer in initial_vectors(inputs)]
        self.segment = torch.arange(inputs.x.shape[1], device=inputs.x.device)
        self._prob = inputs.state.update_prob.clone()
        self._since = torch.full_like(self.segment, -1)
        self._initial = inputs.state
        self._ends = row_ends(inputs)

    def write(self, active: ActiveRows, states: list[Vectors], prob: Tensor) -> None:
        for layer, now in zip(self.states, states, strict=True):
            for vector, values in zip(layer, now, strict=True):
                vector.index_copy_(0, active.row, values)
        self._prob.index_copy_(0, active.row, prob)
        self._since.index_copy_(0, active.row, active.since)
        self.segment.index_copy_(0, active.row, active.segment)

    def waits(self) -> Tensor:
        """(B,): the valid steps for which it is held."""
        return (self._ends - self._since).sub_(1).clamp_(min=0)

    def state(self) -> SkipState:
        h, *c = (torch.stack(layers) for layers in zip(*self.states, strict=True))
        a = self._initial.accumulated.masked_fill(self._since >= 0, 0)
        return SkipState(
            h=h,
            c=c[0] if c else None,
            update_prob=self._prob,
            accumulated=accumulate_for(self._prob, a, self.waits()),
        )
