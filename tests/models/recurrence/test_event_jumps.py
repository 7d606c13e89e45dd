"""Jumps to the next update against stepping there."""

import pytest
import torch

from skipreel.models.recurrence.event.jumps import jumps
from skipreel.models.recurrence.gates import negated_thresholds, steps_until_update
from skipreel.models.recurrence.interface import ForwardInputs
from skipreel.models.recurrence.reference import SkipState, SkipWeights


def make_inputs(p: torch.Tensor, num_steps: int, *, gates: torch.Tensor | None = None) -> ForwardInputs:
    state = SkipState(torch.zeros(1, p.shape[0], 1, dtype=p.dtype), None, p, torch.zeros_like(p))
    weights = SkipWeights((), torch.zeros(1, 1), torch.zeros(1))
    return ForwardInputs(torch.zeros(num_steps, p.shape[0], 1, dtype=p.dtype), state, weights, "gru", None, gates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 100, 300])
def test_a_jump_ends_where_stepping_does_at_every_threshold_and_beside_it(num_steps: int, dtype: torch.dtype) -> None:
    edges = -negated_thresholds(512, dtype, torch.device("cpu"))[1:]
    below = torch.nextafter(edges, torch.zeros((), dtype=dtype))
    eq_6 = 0.5 / torch.arange(1, 400, dtype=dtype)
    drawn = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    p = torch.cat([edges, below, eq_6, drawn, drawn / 50, torch.tensor([0.0, 1.0, 1e-30], dtype=dtype)])
    rows = torch.arange(p.shape[0])
    jump = jumps(make_inputs(p, num_steps))
    steps = torch.zeros_like(rows)
    following = jump.following(rows, steps, p)
    assert torch.equal(following.clamp(max=num_steps + 1), steps_until_update(p, limit=num_steps))
    assert torch.equal(jump.first(), steps_until_update(p, limit=num_steps) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_a_number_never_updates(dtype: torch.dtype) -> None:
    p = torch.tensor([torch.nan, 0.5], dtype=dtype)
    jump = jumps(make_inputs(p, 16))
    assert (jump.first() >= 16).tolist() == [True, False]
    assert (jump.following(torch.arange(2), torch.zeros(2, dtype=torch.int64), p) >= 16).tolist() == [True, False]


def test_given_gates_are_followed() -> None:
    gates = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool).t()
    jump = jumps(make_inputs(torch.ones(3), 5, gates=gates))
    assert jump.first().tolist() == [1, 5, 0]
    rows, p = torch.tensor([0, 0, 0, 2, 2]), torch.zeros(5)
    assert jump.following(rows, torch.tensor([1, 2, 4, 0, 4]), p).tolist() == [2, 4, 5, 1, 5]
