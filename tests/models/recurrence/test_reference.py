"""The recurrence against numbers worked out here, with the standard library, for one hidden unit.

Letters: T steps; every network here has B = D = H = L = 1.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipreel.models.recurrence.reference import (
    LayerWeights,
    SkipState,
    SkipWeights,
    accumulate,
    binarise,
    gru_cell,
    gru_cell_reset_after,
    lstm_cell,
    normalise,
    skip_recurrence,
    update_probability,
)
from tests.support.tolerances import TOLERANCES, assert_close

DOUBLE = TOLERANCES[torch.float64]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def close(value: float) -> object:
    return pytest.approx(value, rel=DOUBLE.rtol, abs=DOUBLE.atol)


@dataclass(frozen=True)
class ScalarLSTM:
    """A Skip LSTM of one unit in plain floats: gate blocks i, f, g, o; `wp`, `bp` the update gate's."""

    w: tuple[float, ...] = (0.7, -0.4, 1.3, 0.5)
    u: tuple[float, ...] = (0.3, 0.6, -0.8, 0.2)
    b: tuple[float, ...] = (0.1, 0.9, -0.2, 0.05)
    wp: float = 0.8
    bp: float = -1.6
    h0: float = 0.25
    c0: float = -0.35

    def gates(self, x: float, h: float) -> tuple[float, float, float, float]:
        i, f, g, o = (w * x + u * h + b for w, u, b in zip(self.w, self.u, self.b, strict=True))
        return sigmoid(i), sigmoid(f), math.tanh(g), sigmoid(o)

    def candidate(self, x: float, h: float, c: float) -> tuple[float, float]:
        i, f, g, o = self.gates(x, h)
        c = f * c + i * g
        return o * math.tanh(c), c

    def tensors(self) -> tuple[SkipState, SkipWeights]:
        """The same network for the code under test; the bias is split over the two that torch has."""

        def leaf(values: tuple[float, ...], *shape: int) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64).reshape(shape).requires_grad_()

        bias = tuple(b / 4 for b in self.b), tuple(b * 3 / 4 for b in self.b)
        layer = LayerWeights(leaf(self.w, 4, 1), leaf(self.u, 4, 1), leaf(bias[0], 4), leaf(bias[1], 4))
        state = SkipState(
            leaf((self.h0,), 1, 1, 1),
            leaf((self.c0,), 1, 1, 1),
            torch.ones(1, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        )
        return state, SkipWeights((layer,), leaf((self.wp,), 1, 1), leaf((self.bp,), 1))


INPUTS = [0.5, -1.2, 0.8, 0.3, -0.7, 1.1, 0.2, -0.4, 0.9, -1.5, 0.6]


def run(net: ScalarLSTM, inputs: list[float]) -> tuple[torch.Tensor, SkipState, torch.Tensor, SkipState, SkipWeights]:
    start, weights = net.tensors()
    x = torch.tensor(inputs, dtype=torch.float64)[:, None, None]
    output, state, gates = skip_recurrence(x, start, weights, cell=lstm_cell)
    return output, state, gates, start, weights


def literal_equations(net: ScalarLSTM, inputs: list[float]) -> tuple[list[float], list[int], tuple[float, float]]:
    """Equations 2–5 word by word; state is (h, c), Δ is read from c and computed anew at every step."""
    h, c = net.h0, net.c0
    u_tilde = 1.0
    outputs, gates = [], []
    for x in inputs:
        u = 1 if u_tilde > 0.5 else 0
        if u:
            h, c = net.candidate(x, h, c)
        delta = sigmoid(net.wp * c + net.bp)
        u_tilde = u * delta + (1 - u) * (u_tilde + min(delta, 1 - u_tilde))
        outputs.append(h)
        gates.append(u)
    return outputs, gates, (h, c)


@pytest.mark.parametrize("bp", [-2.5, -1.6, -0.3, 1.0])
def test_outputs_and_gates_are_those_of_the_literal_equations(bp: float) -> None:
    net = ScalarLSTM(bp=bp)
    output, state, gates, _, _ = run(net, INPUTS)
    expected_output, expected_gates, (h, c) = literal_equations(net, INPUTS)
    assert gates.flatten().tolist() == expected_gates
    assert output.flatten().tolist() == close(expected_output)
    assert state.c is not None
    assert (state.h.item(), state.c.item()) == (close(h), close(c))


def test_these_inputs_both_update_and_skip() -> None:
    _, gates, _ = literal_equations(ScalarLSTM(), INPUTS)
    assert 2 < sum(gates) < len(gates) - 3


def adjoint(net: ScalarLSTM, inputs: list[float], *, drop_skipped: bool = False) -> dict[str, list[float]]:
    """The backward pass by hand for the loss Σ_t t·h_t + 0.3·Σ_t u_t: dL/d(w, u, b, wp, bp, h0, c0).

    dL/du_t = ⟨dL/ds_t, s̃_t − s_{t−1}⟩ + dL/dp_t·(p̃_t − p_{t−1}) − dL/da'_t·a_t, and du/da := 1, at every step. The cell
    sees only its share u_t. `drop_skipped` leaves s̃ and p̃ out at skipped steps: the tempting mistake.
    """
    tape = []
    h, c, p, held = net.h0, net.c0, 1.0, 0.0
    for x in inputs:
        clamped = p >= 1 - held
        a = held + min(p, 1 - held)
        u = 1.0 if a > 0.5 else 0.0
        gates = net.gates(x, h)
        h_new, c_new = net.candidate(x, h, c)
        p_new = sigmoid(net.wp * c_new + net.bp)
        tape.append((x, h, c, p, a, clamped, u, gates, h_new, c_new, p_new))
        if u:
            h, c, p = h_new, c_new, p_new
        held = (1 - u) * a
    grad = {"w": [0.0] * 4, "u": [0.0] * 4, "b": [0.0] * 4, "wp": [0.0], "bp": [0.0]}
    dh = dc = dp = dheld = 0.0
    for t, (x, h, c, p, a, clamped, u, (i, f, g, o), h_new, c_new, p_new) in reversed(list(enumerate(tape))):
        dh += t
        seen = 0.0 if drop_skipped and not u else 1.0
        du = 0.3 + seen * (dh * (h_new - h) + dc * (c_new - c) + dp * (p_new - p)) - dheld * a
        da = du + (1 - u) * dheld
        dpre = u * dp * p_new * (1 - p_new)
        grad["wp"][0] += dpre * c_new
        grad["bp"][0] += dpre
        dh_new = u * dh
        dc_new = u * dc + dpre * net.wp + dh_new * o * (1 - math.tanh(c_new) ** 2)
        pre = (
            dc_new * g * i * (1 - i),
            dc_new * c * f * (1 - f),
            dc_new * i * (1 - g * g),
            dh_new * math.tanh(c_new) * o * (1 - o),
        )
        for k, d in enumerate(pre):
            grad["w"][k] += d * x
            grad["u"][k] += d * h
            grad["b"][k] += d
        dh = (1 - u) * dh + sum(d * net.u[k] for k, d in enumerate(pre))
        dc = (1 - u) * dc + dc_new * f
        dp = (1 - u) * dp + (0.0 if clamped else da)
        dheld = 0.0 if clamped else da
    return {**grad, "h0": [dh], "c0": [dc]}


def autograd_gradients(net: ScalarLSTM, inputs: list[float]) -> dict[str, list[float]]:
    output, _, gates, start, weights = run(net, inputs)
    steps = torch.arange(len(inputs), dtype=torch.float64)
    ((steps * output.flatten()).sum() + 0.3 * gates.sum()).backward()
    layer = weights.layers[0]
    assert start.c is not None
    leaves = {
        "w": layer.weight_ih,
        "u": layer.weight_hh,
        "b": layer.bias_ih,
        "wp": weights.update_weight,
        "bp": weights.update_bias,
        "h0": start.h,
        "c0": start.c,
    }
    return {name: leaf.grad.flatten().tolist() for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("bp", [-2.5, -1.6, -0.3])
def test_straight_through_gradients_follow_the_formula(bp: float) -> None:
    net = ScalarLSTM(bp=bp)
    expected = adjoint(net, INPUTS)
    actual = autograd_gradients(net, INPUTS)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name] == close(values), name


def test_the_candidate_of_a_skipped_step_matters_to_the_gradient() -> None:
    net = ScalarLSTM()
    with_skipped, without = adjoint(net, INPUTS), adjoint(net, INPUTS, drop_skipped=True)
    assert abs(with_skipped["bp"][0] - without["bp"][0]) > 0.1 * abs(with_skipped["bp"][0])


def test_binarise_rounds_half_to_even_and_lets_the_gradient_through() -> None:
    above = math.nextafter(0.5, 1)
    a = torch.tensor([0.0, 0.25, 0.5, above, 0.75, 1.0], dtype=torch.float64, requires_grad=True)
    u = binarise(a)
    assert u.tolist() == [0, 0, 0, 1, 1, 1]
    (u * torch.arange(1.0, 7.0)).sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("delta", "period"), [(0.5, 2), (0.25, 3), (0.1, 6), (1 / 6, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_ties_the_period_is_that_of_rounding_half_to_even(delta: float, period: int, dtype: torch.dtype) -> None:
    p, a = torch.tensor([delta], dtype=dtype), torch.zeros(1, dtype=dtype)
    gates = []
    for _ in range(4 * period):
        a = accumulate(p, a)
        gates.append(int(binarise(a)))
        a = (1 - gates[-1]) * a
    used = [t for t, u in enumerate(gates, start=1) if u]
    assert {later - earlier for earlier, later in pairwise([0, *used])} == {period}


def test_accumulation_stops_at_one() -> None:
    assert accumulate(torch.tensor([0.7, 0.7]), torch.tensor([0.5, 0.125])).tolist() == [1.0, pytest.approx(0.825)]


def test_the_first_step_is_always_used() -> None:
    _, _, gates, _, _ = run(ScalarLSTM(bp=-30.0), INPUTS)
    assert gates.flatten().tolist() == [1.0] + [0.0] * (len(INPUTS) - 1)


def gru_by_hand(x: float, h: float, *, reset_after: bool) -> float:
    """Weights as in `gru_tensors`: blocks r, z, n."""
    r = sigmoid(0.4 * x + 0.3 * h + 0.2 - 0.1)
    z = sigmoid(-0.6 * x + 0.9 * h - 0.3 + 0.2)
    recurrent = r * (-0.7 * h + 0.5) if reset_after else -0.7 * (r * h) + 0.5
    n = math.tanh(1.1 * x + 0.1 + recurrent)
    return z * h + (1 - z) * n


@pytest.mark.parametrize("reset_after", [False, True])
def test_gru_candidate_by_hand(reset_after: bool) -> None:
    column = [torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.6, 1.1], [0.3, 0.9, -0.7])]
    bias = [torch.tensor(v, dtype=torch.float64) for v in ([0.2, -0.3, 0.1], [-0.1, 0.2, 0.5])]
    weights = LayerWeights(column[0][:, None], column[1][:, None], bias[0], bias[1])
    cell = gru_cell_reset_after if reset_after else gru_cell
    x, h = torch.full((1, 1), 0.8, dtype=torch.float64), torch.full((1, 1), -0.9, dtype=torch.float64)
    h_new, c_new = cell(x, h, None, weights)
    assert c_new is None
    assert h_new.item() == close(gru_by_hand(0.8, -0.9, reset_after=reset_after))


def normalised_by_hand(values: list[float], gain: list[float], bias: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [g * (v - mean) / (sigma + 1e-3) + b for v, g, b in zip(values, gain, bias, strict=True)]


def random_layer(blocks: int, *, normalised: int, size: int = 3) -> LayerWeights:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = blocks * size
    shapes = (rows, 2), (rows, size), (rows,), (rows,), (normalised * size,), (normalised * size,)
    return LayerWeights(*(draw(*shape) for shape in shapes))


def test_layer_normalisation_by_hand() -> None:
    layer = random_layer(4, normalised=4)
    assert layer.norm_weight is not None
    assert layer.norm_bias is not None
    a = torch.randn(2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = normalise(a, layer)
    for row in range(2):
        for start in range(0, 12, 3):
            block = slice(start, start + 3)
            gain, bias = layer.norm_weight[block].tolist(), layer.norm_bias[block].tolist()
            assert actual[row, block].tolist() == close(normalised_by_hand(a[row, block].tolist(), gain, bias))


def test_layer_normalisation_of_units_that_are_all_alike_is_the_bias_and_has_a_gradient() -> None:
    layer = random_layer(4, normalised=4)
    a = torch.full((1, 12), 0.3, dtype=torch.float64, requires_grad=True)
    actual = normalise(a, layer)
    assert layer.norm_bias is not None
    assert_close(actual.detach()[0], layer.norm_bias)
    (actual * torch.arange(12.0)).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_gru_normalises_r_and_z_but_not_its_candidate(reset_after: bool) -> None:
    """z far open by its bias: h̃ is h. z far shut: h̃ is n, which knows of the normalisation by r alone."""
    layer = random_layer(3, normalised=2)
    cell = gru_cell_reset_after if reset_after else gru_cell
    x, h = torch.tensor([[0.8, -0.3]], dtype=torch.float64), torch.tensor([[-0.9, 0.2, 0.4]], dtype=torch.float64)
    gain = torch.zeros(6, dtype=torch.float64)
    held, _ = cell(x, h, None, layer._replace(norm_weight=gain, norm_bias=torch.full_like(gain, 40)))
    assert_close(held, h)
    reset = torch.tensor([-40.0] * 6, dtype=torch.float64)
    n, _ = cell(x, h, None, layer._replace(norm_weight=gain, norm_bias=reset))
    pre_activation = x @ layer.weight_ih[6:].T + layer.bias_ih[6:] + (0 if reset_after else layer.bias_hh[6:])
    assert_close(n, torch.tanh(pre_activation))


def test_an_lstm_normalises_all_its_blocks() -> None:
    layer = random_layer(4, normalised=4)
    x, h = torch.tensor([[0.8, -0.3]], dtype=torch.float64), torch.tensor([[-0.9, 0.2, 0.4]], dtype=torch.float64)
    c = torch.tensor([[0.5, -1.0, 0.1]], dtype=torch.float64)
    bias = torch.tensor([-40.0, 40, 0, 40], dtype=torch.float64).repeat_interleave(3)
    h_new, c_new = lstm_cell(x, h, c, layer._replace(norm_weight=torch.zeros_like(bias), norm_bias=bias))
    assert_close(c_new, c)
    assert_close(h_new, torch.tanh(c))


def test_update_probability_by_hand() -> None:
    s = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    p = update_probability(
        s, torch.tensor([[2.0, 0.25]], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    )
    assert p.tolist() == [close(sigmoid(0.5 * 2.0 - 0.25 - 0.4))]


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_the_gate_stays_float32_for_narrow_states_and_under_autocast(narrow: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(16, 8, generator=generator).to(narrow)
    weight, bias = torch.randn(1, 8, generator=generator), torch.randn(1, generator=generator)
    expected = update_probability(s.float(), weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = update_probability(s, weight, bias)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@given(st.floats(0, 1, width=32), st.integers(1, 12))
def test_given_gates_are_followed_and_the_state_held_between(first: float, period: int) -> None:
    """Recorded gates decide, whatever (p, a) say."""
    net = ScalarLSTM(bp=4 * first - 2)
    recorded = [float(t % period == 0) for t in range(len(INPUTS))]
    start, weights = net.tensors()
    x = torch.tensor(INPUTS, dtype=torch.float64)[:, None, None]
    output, _, gates = skip_recurrence(x, start, weights, cell=lstm_cell, gates=torch.tensor(recorded)[:, None])
    h, c = net.h0, net.c0
    expected = []
    for value, u in zip(INPUTS, recorded, strict=True):
        h, c = net.candidate(value, h, c) if u else (h, c)
        expected.append(h)
    assert gates.flatten().tolist() == recorded
    assert output.flatten().tolist() == close(expected)


def test_a_given_gate_receives_the_gradient_of_the_formula() -> None:
    """One step with u given: dL/du = h̃ − h for the loss h."""
    net = ScalarLSTM()
    start, weights = net.tensors()
    gate = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    output, _, _ = skip_recurrence(x, start, weights, cell=lstm_cell, gates=gate)
    output.sum().backward()
    h_new, _ = net.candidate(0.4, net.h0, net.c0)
    assert gate.grad is not None
    assert_close(gate.grad, torch.full((1, 1), h_new - net.h0, dtype=torch.float64))


def test_a_stack_feeds_candidates_upwards_and_the_gate_from_the_top() -> None:
    """One skipped step of two LSTM layers with weights of their own; dL/du = h̃ − h of the top for the loss h_top."""
    lower, upper = ScalarLSTM(), ScalarLSTM(w=(-0.9, 0.2, 0.4, 1.5), u=(0.1, -0.6, 0.3, 0.7), h0=0.6, c0=0.15)
    start, weights = zip(*(net.tensors() for net in (lower, upper)), strict=True)
    state = start[0]._replace(h=torch.cat([s.h for s in start]), c=torch.cat([s.c for s in start if s.c is not None]))
    stack = SkipWeights((weights[0].layers[0], weights[1].layers[0]), *weights[1][1:])
    gate = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    h_lower, _ = lower.candidate(0.4, lower.h0, lower.c0)
    h_top, c_top = upper.candidate(h_lower, upper.h0, upper.c0)

    output, held, _ = skip_recurrence(x, state, stack, cell=lstm_cell, gates=gate)
    output.sum().backward()
    assert output.item() == upper.h0
    assert torch.equal(held.h, state.h)
    assert gate.grad is not None
    assert gate.grad.item() == close(h_top - upper.h0)

    _, updated, _ = skip_recurrence(x, state, stack, cell=lstm_cell)
    assert updated.h.flatten().tolist() == close([h_lower, h_top])
    assert updated.update_prob.item() == close(sigmoid(upper.wp * c_top + upper.bp))
