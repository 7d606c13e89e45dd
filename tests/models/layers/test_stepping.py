"""SkipLSTM and SkipGRU from update to update, and with gates that follow a schedule.

Letters: B batch, T steps, D features.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skipreel.models import RandomGate, SkipState, StridedGate, rows_of
from skipreel.models.recurrence.operator import CELLS
from skipreel.models.recurrence.reference import candidate
from tests.support.layers import Layer, drawn, each_cell, make_layer, state_tensors
from tests.support.tolerances import assert_close

D, H = 3, 5


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), num_steps=st.integers(1, 25))
def test_stepping_from_update_to_update_equals_forward(
    cell: str, dtype: torch.dtype, seed: int, num_steps: int
) -> None:
    layer = make_layer(cell, D, H, 2, seed=seed, dtype=dtype)
    x = drawn(num_steps, 1, D, seed=seed, dtype=dtype)
    output, last, gates = layer(x)
    state, t, used, skipped = None, 0, [], 0
    while t < num_steps:
        used.append(t)
        stepped, state, wait = layer.step(x[t], state, limit=num_steps - t - 1)
        held = int(wait) + 1
        assert_close(stepped.expand(held, -1), output[t : t + held, 0])
        skipped = int(wait)
        state = layer.skip(state, skipped)
        t += held
    assert used == gates[:, 0].nonzero().flatten().tolist()
    assert state is not None
    for actual, expected in zip(state_tensors(state), state_tensors(last), strict=True):
        assert_close(actual, expected)


@each_cell
def test_rows_with_waits_of_their_own_can_be_stepped_as_they_fall_due(cell: str) -> None:
    layer = make_layer(cell, D, H)
    x = drawn(30, 6, D)
    _, _, gates = layer(x)
    _, state, wait = layer.step(x[0])
    next_due = 1 + wait
    state = layer.skip(state, wait)
    taken = torch.zeros_like(gates)
    taken[0] = 1
    for t in range(1, 30):
        due = (next_due == t).nonzero().flatten()
        if len(due) == 0:
            continue
        taken[t, due] = 1
        _, new, wait = layer.step(x[t, due], rows_of(state, due))
        new = layer.skip(new, wait)
        next_due[due] = t + 1 + wait
        state.h[:, due] = new.h
        if state.c is not None and new.c is not None:
            state.c[:, due] = new.c
        state.update_prob[due], state.accumulated[due] = new.update_prob, new.accumulated
        state = SkipState(*(None if tensor is None else tensor.detach() for tensor in state))
    assert torch.equal(taken, gates)


def test_a_row_that_is_not_due_is_not_stepped_and_an_update_is_not_skipped_over() -> None:
    layer = make_layer("lstm", D, H)
    with torch.no_grad():
        layer.update_weight.zero_()  # p = σ(−1.5) ≈ 0.18: a passes 0.5 at the third step
    x = drawn(1, 2, D)[0]
    _, state, wait = layer.step(x)
    assert wait.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"rows \[0, 1\] are not due"):
        layer.step(x, state)
    with pytest.raises(ValueError, match=r"skipping \[0, 3\] steps would pass an update"):
        layer.skip(state, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="num_steps must be 0 or more, got"):
        layer.skip(state, -1)
    layer.step(x, layer.skip(state, wait))


@pytest.mark.parametrize("gate", [RandomGate(0.5), StridedGate(2)])
def test_stepping_is_for_learned_gates(gate: RandomGate | StridedGate) -> None:
    layer = make_layer("gru", D, H, gate=gate)
    with pytest.raises(
        ValueError, match=r"step\(\) follows a learned gate, this layer has .*run forward on the samples"
    ):
        layer.step(drawn(1, 1, D)[0])


def test_a_scheduled_gate_equals_forward_on_the_scheduled_samples() -> None:
    layer = make_layer("lstm", D, H, gate=StridedGate(2.5))
    x = drawn(10, 2, D)
    output, _, gates = layer(x)
    used = gates[:, 0].bool()
    dense, _, _ = layer(x[used], gates=torch.ones(int(used.sum()), 2))
    assert_close(output[used], dense)


def test_a_scheduled_gate_needs_its_gates_to_continue_from_a_state() -> None:
    layer = make_layer("lstm", D, H, gate=StridedGate(3))
    x = drawn(8, 2, D)
    whole, _, gates = layer(x)
    first, state, _ = layer(x[:4])
    with pytest.raises(ValueError, match="pass gates="):
        layer(x[4:], state)
    second, _, _ = layer(x[4:], state, gates=layer.gate.schedule(8, batch_size=2)[4:])
    assert_close(torch.cat([first, second]), whole)
    assert gates[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 1, 0]


def test_a_random_gate_is_fresh_in_training_and_fixed_in_evaluation() -> None:
    layer = make_layer("gru", D, H, gate=RandomGate(0.5, seed=4))
    x = drawn(40, 2, D)
    assert not torch.equal(layer(x)[2], layer(x)[2])
    layer.eval()
    _, _, gates = layer(x)
    assert torch.equal(gates[:, :1], layer(x[:, 1:])[2])
    assert torch.equal(gates.float(), RandomGate(0.5, seed=4).schedule(40, batch_size=2))


class Update(nn.Module):
    """What `step` computes, without its looks at the values: whether rows are due, and how long they wait."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: SkipState) -> SkipState:
        return candidate(x, state, self.layer.weights(), cell=CELLS[self.layer.cell])


@each_cell
@pytest.mark.parametrize("batch_size", [2, 7])
def test_the_update_of_a_step_can_be_exported(cell: str, batch_size: int) -> None:
    layer = make_layer(cell, D, H, 2)
    x, state = drawn(1, 3, D)[0], layer.initial_state(3)
    rows, planes = {0: torch.export.Dim("batch", min=2)}, {1: torch.export.Dim("batch", min=2)}
    dims = [None if part is None else planes if part.dim() == 3 else rows for part in state]
    exported = torch.export.export(Update(layer), (x, state), dynamic_shapes=(rows, SkipState(*dims))).module()
    x, state = drawn(1, batch_size, D)[0], layer.initial_state(batch_size)
    output, expected, _ = layer.step(x, state)
    actual = exported(x, state)
    assert_close(actual.h[-1], output)
    for ours, part in zip(actual, expected, strict=True):
        assert (ours is None) == (part is None)
        if ours is not None:
            assert_close(ours, part)
