"""The recurrence from update to update, in torch operators: what it has beyond test_conformance.

Letters: B batch, T steps, H hidden, L layers, P padded H.
"""

from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skipreel.models.recurrence import event
from skipreel.models.recurrence.event.memory import Memory
from skipreel.models.recurrence.gradients import parameter_gradients
from skipreel.models.recurrence.interface import CellName, OutputGrads
from tests.support.recurrence_inputs import (
    BATCH_SIZE,
    CELLS,
    LENGTHS,
    check,
    gradients,
    make_inputs,
    reference,
    run,
    uneven,
)
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

each_cell = pytest.mark.parametrize("cell", CELLS)
each_norm = pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])


@each_cell
def test_inputs_of_dense_stretches_are_projected_together(cell: CellName) -> None:
    """All gates are open until one is shut: from then on that row is one step ahead of the others."""
    gates = torch.ones(80, 3, dtype=torch.bool)
    gates[40, 1] = False
    inputs = make_inputs(cell, shape=(80, 3, 12), gates=gates)
    check("event", inputs)
    with mock.patch.object(F, "linear", wraps=F.linear) as linear:
        event.forward(inputs, save=False)
    assert [call.args[0].shape[0] for call in linear.call_args_list] == [16, 16]


@each_cell
def test_constant_rows_under_normalisation_give_numbers(cell: CellName) -> None:
    """σ is 0 if all units of a block are alike, or if there is but one."""
    check("event", make_inputs(cell, size=1, norm=True))
    inputs = make_inputs(cell, norm=True)
    layer = inputs.weights.layers[0]
    alike = layer._replace(**{n: torch.ones_like(t).mul_(0.25).requires_grad_() for n, t in layer._asdict().items()})
    weights = inputs.weights._replace(layers=(alike,))
    state = inputs.state._replace(h=torch.full_like(inputs.state.h, 0.5).requires_grad_())
    inputs = inputs._replace(weights=weights, state=state)
    check("event", inputs)
    _, actual = run("event", inputs, uneven(reference(inputs)))
    assert all(gradient.isfinite().all() for gradient in actual.values())


@pytest.mark.parametrize("save", [False, True])
def test_there_are_as_many_batches_as_the_busiest_row_has_updates(save: bool, monkeypatch: Any) -> None:
    batches = []
    batch = Memory.batch

    def counted(self: Memory, start: int, count: int) -> object:
        batches.append(count)
        return batch(self, start, count)

    monkeypatch.setattr(Memory, "batch", counted)
    outputs = event.forward(make_inputs("lstm", shape=(60, 6, 3), sharpness=8), save=save)
    assert len(batches) == outputs.gates.sum(0).max() < 60
    assert sum(batches) == outputs.gates.sum()
    assert len(set(batches)) > 1


def test_adjoints_do_not_shrink_to_denormal_numbers() -> None:
    """Products with such numbers take ten times as long."""
    inputs = make_inputs("lstm", shape=(300, 2, 1), size=4, update_bias=30.0, dtype=torch.float32)
    layer = inputs.weights.layers[0]
    halving = layer._replace(weight_hh=layer.weight_hh * 0.1, weight_ih=layer.weight_ih * 0.1, bias_ih=-layer.bias_hh)
    inputs = inputs._replace(weights=inputs.weights._replace(layers=(halving,)))
    outputs = event.forward(inputs, save=True)
    assert outputs.trace is not None
    at_the_end = OutputGrads(None, torch.ones_like(outputs.state.h), None, None, None, None)
    pre = event.backward(inputs, outputs.trace, at_the_end, needs_x=False).pre_activation
    assert pre is not None
    assert (pre[-20:] != 0).all()
    assert (pre[:200] == 0).all()
    assert not ((pre != 0) & (pre.abs() < torch.finfo(torch.float32).tiny)).any()


@each_cell
def test_a_trace_tells_where_each_segment_comes_from(cell: CellName) -> None:
    outputs = event.forward(make_inputs(cell, num_layers=2, lengths=LENGTHS, update_bias=-1.0), save=True)
    assert outputs.trace is not None
    index = outputs.trace.index
    num_updates = int(outputs.gates.sum())
    assert index.shape == (BATCH_SIZE + num_updates, 4)
    assert index[:BATCH_SIZE, :3].tolist() == [[row, -1, -1] for row in range(BATCH_SIZE)]
    used = set()
    last = dict(enumerate(range(BATCH_SIZE)))
    ends = {}
    for segment, (row, step, previous, _) in enumerate(index[BATCH_SIZE:].tolist(), start=BATCH_SIZE):
        assert outputs.gates[step, row] == 1
        assert previous == last[row]
        assert torch.equal(outputs.output[step, row], outputs.trace.states[segment, -1, 0])
        used.add((row, step))
        last[row], ends[previous] = segment, step
    assert len(used) == num_updates
    for segment, (row, step, _, held) in enumerate(index.tolist()):
        waited = ends.get(segment, int(LENGTHS[row])) - step - 1
        assert (held >= 0) == (waited > 0)
    places = index[index[:, 3] >= 0, 3]
    assert len(set(places.tolist())) == len(places)
    assert places.max() < len(outputs.trace.held)


class Padding(NamedTuple):
    """Widens blocks of `size` to `padded` with numbers that must not matter."""

    size: int
    padded: int

    def widen(self, t: Tensor) -> Tensor:
        """(…, k · size) -> (…, k · padded)."""
        blocks = t.reshape(*t.shape[:-1], -1, self.size)
        filler = torch.full((*blocks.shape[:-1], self.padded - self.size), torch.nan, dtype=t.dtype)
        return torch.cat([blocks, filler], -1).flatten(-2)


@each_cell
@each_norm
def test_parameter_gradients_do_not_read_padding(cell: CellName, norm: bool) -> None:
    inputs = make_inputs(cell, num_layers=2, norm=norm)
    upstream = uneven(reference(inputs))
    outputs, expected = run("event", inputs, upstream)
    assert outputs.trace is not None
    adjoints = event.backward(inputs, outputs.trace, OutputGrads(*upstream), needs_x=True)
    blocks = {"lstm": 4, "gru": 3, "gru_reset_after": 4}[cell] + norm * (4 if cell == "lstm" else 2)
    padding = Padding(5, 8)
    trace = outputs.trace._replace(
        states=padding.widen(outputs.trace.states), saved=padding.widen(outputs.trace.saved[..., : blocks * 5])
    )
    wide = adjoints._replace(
        pre_activation=padding.widen(adjoints.pre_activation),
        normalised=None if adjoints.normalised is None else padding.widen(adjoints.normalised),
    )
    for name, gradient in gradients(inputs, trace, wide).items():
        assert_close(gradient, expected[name])


def test_the_gradient_of_x_is_made_on_demand() -> None:
    inputs = make_inputs("lstm")
    outputs = event.forward(inputs, save=True)
    assert outputs.trace is not None
    adjoints = event.backward(inputs, outputs.trace, OutputGrads(outputs.output, *[None] * 5), needs_x=True)
    by_x, _ = parameter_gradients(inputs, outputs.trace, adjoints, needs_x=False)
    assert by_x is None
    by_x, _ = parameter_gradients(inputs, outputs.trace, adjoints, needs_x=True)
    assert by_x is not None
    assert (by_x[outputs.gates == 0] == 0).all()
    assert (by_x[outputs.gates == 1] != 0).all()
