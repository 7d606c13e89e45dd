"""The recurrence from update to update, in torch operators, against autograd through the reference.

Letters: B batch, T steps, D features, H hidden, L layers, P padded H.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from models.kernels import event
from models.kernels.event.memory import Memory
from models.kernels.gradients import parameter_gradients
from models.kernels.problem import Adjoints, Answer, CellName, Incoming, Problem, Trace
from models.reference import (
    LayerWeights,
    SkipState,
    SkipWeights,
    accumulate,
    gru_cell,
    gru_cell_reset_after,
    lstm_cell,
    skip_recurrence,
)
from tolerances import assert_close

CELLS = {"lstm": lstm_cell, "gru": gru_cell, "gru_reset_after": gru_cell_reset_after}
NUM_STEPS, BATCH_SIZE = 11, 5
LENGTHS = torch.tensor([11, 0, 6, 1, 8])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine each of thousands of tiny products would wait for the second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


each_cell = pytest.mark.parametrize("cell", CELLS)
each_norm = pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])


def make_problem(
    cell: CellName,
    *,
    shape: tuple[int, int, int] = (NUM_STEPS, BATCH_SIZE, 3),
    size: int = 5,
    num_layers: int = 1,
    norm: bool = False,
    update_bias: float = -1.5,
    sharpness: float = 1.0,
    midway: bool = False,
    lengths: Tensor | None = None,
    gates: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Nothing at zero. midway: each row has its own p and a; sharpness: how much the gate depends on the state."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, scale: float = 0.6) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    _, batch_size, width = shape
    blocks, normalised = (4, 4) if cell == "lstm" else (3, 2)
    layers = tuple(
        LayerWeights(
            leaf(blocks * size, size if depth else width),
            leaf(blocks * size, size),
            leaf(blocks * size),
            leaf(blocks * size),
            *((leaf(normalised * size), leaf(normalised * size)) if norm else ()),
        )
        for depth in range(num_layers)
    )
    weights = SkipWeights(
        layers, leaf(1, size, scale=0.6 * sharpness), torch.full((1,), update_bias, dtype=dtype, requires_grad=True)
    )
    p, a = torch.ones(batch_size), torch.zeros(batch_size)
    if midway:
        p, a = torch.rand(2, batch_size, generator=generator) * torch.tensor([[1.0], [0.5]])
    state = SkipState(
        leaf(num_layers, batch_size, size),
        leaf(num_layers, batch_size, size) if cell == "lstm" else None,
        p.to(dtype).requires_grad_(),
        a.to(dtype).requires_grad_(),
    )
    return Problem(leaf(*shape, scale=1.0), state, weights, cell, lengths, gates)


def leaves(problem: Problem) -> dict[str, Tensor]:
    named = {"x": problem.x, **{f"state.{name}": t for name, t in problem.state._asdict().items()}}
    for depth, layer in enumerate(problem.weights.layers):
        named |= {f"{name}_l{depth}": t for name, t in layer._asdict().items()}
    named |= {"update_weight": problem.weights.update_weight, "update_bias": problem.weights.update_bias}
    return {name: t for name, t in named.items() if t is not None}


def reference(problem: Problem) -> list[Tensor | None]:
    """output, h, c, p, a, gates."""
    x, state, weights, cell, lengths, gates = problem
    output, last, used = skip_recurrence(x, state, weights, cell=CELLS[cell], lengths=lengths, gates=gates)
    return [output, *last, used]


def uneven(parts: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients for the parts, each entry another one."""
    generator = torch.Generator().manual_seed(1)
    return [None if p is None else torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parts]


def autograd(problem: Problem, parts: list[Tensor | None], upstream: list[Tensor | None]) -> dict[str, Tensor]:
    pairs = [
        (p, g) for p, g in zip(parts, upstream, strict=True) if p is not None and g is not None and p.requires_grad
    ]
    named = leaves(problem)
    found = torch.autograd.grad(
        [p for p, _ in pairs], list(named.values()), [g for _, g in pairs], allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, found, strict=True))


def run(problem: Problem, upstream: list[Tensor | None]) -> tuple[Answer, dict[str, Tensor]]:
    """The answer and all gradients of the code under test."""
    answer = event.forward(problem, save=True)
    assert answer.trace is not None
    incoming = Incoming(*upstream)._replace(**({} if problem.gates is None else {"gates": None}))
    adjoints = event.backward(problem, answer.trace, incoming, needs_x=True)
    return answer, gradients(problem, answer.trace, adjoints)


def gradients(problem: Problem, trace: Trace, adjoints: Adjoints) -> dict[str, Tensor]:
    by_x, by_weights = parameter_gradients(problem, trace, adjoints, needs_x=True)
    assert by_x is not None
    h, *c = adjoints.states.permute(2, 1, 0, 3)
    state = SkipState(h, c[0] if c else None, adjoints.update_prob, adjoints.accumulated)
    return leaves(problem._replace(x=by_x, state=state, weights=by_weights))


def check(problem: Problem) -> None:
    """Both kinds of forward, and every gradient of a loss that depends on everything."""
    parts = reference(problem)
    upstream = uneven(parts)
    answer, actual = run(problem, upstream)
    for one in (answer, event.forward(problem, save=False)):
        *values, gates = [one.output, *one.state, one.gates]
        assert torch.equal(gates, parts[-1])
        for value, expected in zip(values, parts, strict=False):
            assert (value is None) == (expected is None)
            if value is not None:
                assert_close(value, expected.detach())
    expected = autograd(problem, parts, upstream)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        try:
            assert_close(actual[name], gradient)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


GATING = {"open": (1.0, 1.0), "mixed": (-1.5, 1.0), "shut": (-30.0, 1.0), "sharp": (-1.5, 8.0)}


@each_cell
@each_norm
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("gating", GATING)
def test_equal_to_stepping(cell: CellName, norm: bool, num_layers: int, gating: str) -> None:
    bias, sharpness = GATING[gating]
    for seed, (midway, lengths) in enumerate((m, n) for m in (False, True) for n in (None, LENGTHS)):
        check(
            make_problem(
                cell,
                num_layers=num_layers,
                norm=norm,
                update_bias=bias,
                sharpness=sharpness,
                midway=midway,
                lengths=lengths,
                seed=seed,
            )
        )


@pytest.mark.parametrize(("gating", "fewest", "most"), [("mixed", 0.2, 0.6), ("sharp", 0.2, 0.8), ("open", 0.9, 1)])
def test_these_gates_are_what_they_are_called(gating: str, fewest: float, most: float) -> None:
    bias, sharpness = GATING[gating]
    gates = event.forward(make_problem("lstm", update_bias=bias, sharpness=sharpness), save=False).gates
    assert fewest < gates.mean() <= most
    if gating == "sharp":
        assert len(set(gates.sum(0).tolist())) > 1


@each_cell
@each_norm
@pytest.mark.parametrize("midway", [False, True])
def test_equal_to_stepping_under_given_gates(cell: CellName, norm: bool, midway: bool) -> None:
    alternating = (torch.arange(NUM_STEPS) % 2 == 1)[:, None].expand(-1, BATCH_SIZE)
    drawn = torch.rand(NUM_STEPS, BATCH_SIZE, generator=torch.Generator().manual_seed(2)) < 0.4
    always = torch.ones_like(drawn)
    for gates in (alternating, drawn, always, ~always):
        for lengths in (None, LENGTHS):
            problem = make_problem(cell, num_layers=2, norm=norm, midway=midway, lengths=lengths, gates=gates)
            check(problem)


@each_cell
def test_inputs_of_dense_stretches_are_projected_together(cell: CellName) -> None:
    """All gates are open until one is shut: from then on that row is one step ahead of the others."""
    gates = torch.ones(80, 3, dtype=torch.bool)
    gates[40, 1] = False
    problem = make_problem(cell, shape=(80, 3, 12), gates=gates)
    check(problem)
    with mock.patch.object(F, "linear", wraps=F.linear) as linear:
        event.forward(problem, save=False)
    assert [call.args[0].shape[0] for call in linear.call_args_list] == [16, 16]


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_ties_and_clamps_of_a_wait_under_given_gates(p: float) -> None:
    """Nothing resets ũ there, so min(p, 1 − ũ) is either, or both at once."""
    problem = make_problem("gru", gates=torch.zeros(NUM_STEPS, BATCH_SIZE, dtype=torch.bool), lengths=LENGTHS)
    state = problem.state._replace(
        update_prob=torch.full((BATCH_SIZE,), p, dtype=torch.float64, requires_grad=True),
        accumulated=torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64, requires_grad=True),
    )
    check(problem._replace(state=state))


@each_cell
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_equal_to_stepping_at_any_shape(cell: CellName, data: st.DataObject) -> None:
    draw = data.draw
    num_steps, batch_size = draw(st.integers(1, 9), label="T"), draw(st.integers(1, 4), label="B")
    padded = draw(st.lists(st.integers(0, num_steps), min_size=batch_size, max_size=batch_size), label="lengths")
    check(
        make_problem(
            cell,
            shape=(num_steps, batch_size, draw(st.sampled_from([1, 8, 9, 13]), label="D")),
            size=draw(st.integers(1, 4), label="H"),
            num_layers=draw(st.integers(1, 2), label="L"),
            norm=draw(st.booleans(), label="norm"),
            update_bias=draw(st.sampled_from([1.0, -1.0, -2.5, -30.0]), label="bias"),
            midway=draw(st.booleans(), label="midway"),
            lengths=draw(st.sampled_from([None, torch.tensor(padded)]), label="padded"),
            seed=draw(st.integers(0, 99), label="seed"),
        )
    )


@each_cell
@pytest.mark.parametrize("batch_size", [1, BATCH_SIZE])
@pytest.mark.parametrize("num_steps", [1, NUM_STEPS])
def test_one_row_or_one_step(cell: CellName, batch_size: int, num_steps: int) -> None:
    for bias in (1.0, -1.5):
        for midway in (False, True):
            check(make_problem(cell, shape=(num_steps, batch_size, 3), update_bias=bias, midway=midway))


def test_no_row_has_a_valid_step() -> None:
    check(make_problem("lstm", lengths=torch.zeros(BATCH_SIZE, dtype=torch.int64), midway=True))


@pytest.mark.parametrize("width", [2, 12], ids=["narrow", "wide"])
@pytest.mark.parametrize("update_bias", [1.0, -1.5])
def test_steps_or_rows_first_in_memory(width: int, update_bias: float) -> None:
    problem = make_problem("lstm", shape=(NUM_STEPS, BATCH_SIZE, width), update_bias=update_bias)
    rows_first = problem.x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    every_other = torch.stack([problem.x.detach()] * 2, -1)[..., 0].requires_grad_()
    for x in (rows_first, every_other):
        assert not x.is_contiguous()
        check(problem._replace(x=x))


@each_cell
@pytest.mark.parametrize("width", [2, 12], ids=["narrow", "wide"])
def test_padding_is_never_read(cell: CellName, width: int) -> None:
    problem = make_problem(cell, shape=(NUM_STEPS, BATCH_SIZE, width), lengths=LENGTHS)
    upstream = uneven(reference(problem))
    expected, by_expected = run(problem, upstream)
    padding = torch.arange(NUM_STEPS)[:, None] >= LENGTHS
    filled = problem._replace(x=problem.x.detach().masked_fill(padding[:, :, None], torch.nan))
    actual, by_actual = run(filled, upstream)
    assert torch.equal(actual.output, expected.output)
    for name, gradient in by_expected.items():
        assert torch.equal(by_actual[name], gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.5, 0.25, 0.125, 1.0])
def test_ties_are_those_of_stepping_bit_for_bit(p: float, dtype: torch.dtype) -> None:
    """p that adds up to ½ exactly, in the state and after each update: σ(0) = ½, and σ(40) is 1."""
    bias = 40.0 if p == 1 else math.log(p / (1 - p))
    problem = make_problem("lstm", update_bias=bias, sharpness=0, lengths=LENGTHS, dtype=dtype)
    state = problem.state._replace(update_prob=torch.full((BATCH_SIZE,), p, dtype=dtype, requires_grad=True))
    problem = problem._replace(state=state)
    parts = reference(problem)
    answer = event.forward(problem, save=False)
    assert torch.equal(answer.gates, parts[-1])
    assert torch.equal(answer.state.update_prob, parts[-3])
    assert torch.equal(answer.state.accumulated, parts[-2])
    if dtype == torch.float64:
        check(problem)


@each_cell
def test_the_last_accumulation_is_that_of_stepping_bit_for_bit(cell: CellName) -> None:
    problem = make_problem(cell, shape=(40, BATCH_SIZE, 3), update_bias=-3, midway=True)
    answer = event.forward(problem, save=False)
    waited = 39 - torch.where(answer.gates > 0, torch.arange(40)[:, None], -1).amax(0)
    assert waited.max() > 2
    for row, steps in enumerate(waited.tolist()):
        a = problem.state.accumulated[row] * (steps == 40)
        for _ in range(steps):
            a = accumulate(answer.state.update_prob[row], a)
        assert answer.state.accumulated[row] == a


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_runs_are_equal_bit_for_bit(cell: CellName, dtype: torch.dtype) -> None:
    problem = make_problem(cell, shape=(30, 7, 3), size=20, num_layers=2, norm=True, update_bias=-2.0, dtype=dtype)
    upstream = uneven(reference(problem))
    (one, first), (other, second) = run(problem, upstream), run(problem, upstream)
    assert torch.equal(one.output, other.output)
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


@each_cell
@each_norm
@pytest.mark.parametrize("update_bias", [1.0, -2.0])
def test_float32_gradients_are_those_of_float64(cell: CellName, norm: bool, update_bias: float) -> None:
    problem = make_problem(cell, num_layers=2, norm=norm, update_bias=update_bias)
    check_float32(problem)
    output = event.forward(narrowed(problem), save=False).output
    assert_close(output, event.forward(problem, save=False).output.float())


@pytest.mark.parametrize("part", ["output", "h", "c", "update_prob", "accumulated", "gates"])
@pytest.mark.parametrize("gates", [None, torch.arange(NUM_STEPS * BATCH_SIZE).view(NUM_STEPS, BATCH_SIZE) % 3 == 0])
def test_a_loss_on_one_part_alone(part: str, gates: Tensor | None) -> None:
    problem = make_problem("lstm", num_layers=2, lengths=LENGTHS, gates=gates)
    parts = reference(problem)
    upstream = [g if name == part else None for name, g in zip(Incoming._fields, uneven(parts), strict=True)]
    if part == "gates" and gates is not None:
        return
    _, actual = run(problem, upstream)
    for name, gradient in autograd(problem, parts, upstream).items():
        assert_close(actual[name], gradient)


def test_an_expanded_gradient_of_the_output() -> None:
    """As that of a sum is: one number, of no strides."""
    for bias in (1.0, -1.5):
        problem = make_problem("lstm", update_bias=bias)
        parts = reference(problem)
        upstream = [torch.ones((), dtype=torch.float64).expand_as(parts[0]), *[None] * 5]
        _, actual = run(problem, upstream)
        for name, gradient in autograd(problem, parts, upstream).items():
            assert_close(actual[name], gradient)


@each_cell
def test_constant_rows_under_normalisation_give_numbers(cell: CellName) -> None:
    """σ is 0 if all units of a block are alike, or if there is but one."""
    check(make_problem(cell, size=1, norm=True))
    problem = make_problem(cell, norm=True)
    layer = problem.weights.layers[0]
    alike = layer._replace(**{n: torch.ones_like(t).mul_(0.25).requires_grad_() for n, t in layer._asdict().items()})
    weights = problem.weights._replace(layers=(alike,))
    state = problem.state._replace(h=torch.full_like(problem.state.h, 0.5).requires_grad_())
    problem = problem._replace(weights=weights, state=state)
    check(problem)
    _, actual = run(problem, uneven(reference(problem)))
    assert all(gradient.isfinite().all() for gradient in actual.values())


@pytest.mark.parametrize("bias", [-200.0, -95.0, 95.0, 200.0])
@each_cell
def test_saturated_gates(cell: CellName, bias: float) -> None:
    """Where σ is 0 or 1 to the last bit, or denormal; in float32 too."""
    for block in range(4 if cell == "lstm" else 3):
        problem = make_problem(cell)
        layer = problem.weights.layers[0]
        shift = torch.zeros_like(layer.bias_ih)
        shift[5 * block : 5 * block + 5] = bias
        saturated = layer._replace(bias_ih=(layer.bias_ih.detach() + shift).requires_grad_())
        problem = problem._replace(weights=problem.weights._replace(layers=(saturated,)))
        check(problem)
        check_float32(problem)


def check_float32(problem: Problem) -> None:
    """Its gradients against those of float64, in units of the largest entry of each."""
    parts = reference(problem)
    upstream = uneven(parts)
    answer, actual = run(narrowed(problem), [None if g is None else g.float() for g in upstream])
    assert torch.equal(answer.gates.double(), parts[-1])
    for name, gradient in autograd(problem, parts, upstream).items():
        unit = gradient.abs().max().clamp_min(1e-30)
        assert_close(actual[name] / unit.float(), (gradient / unit).float())


def narrowed(problem: Problem) -> Problem:
    def narrow(t: Tensor | None) -> Any:
        return None if t is None else t.detach().float()

    weights = problem.weights
    layers = tuple(LayerWeights(*map(narrow, layer)) for layer in weights.layers)
    return problem._replace(
        x=narrow(problem.x),
        state=SkipState(*map(narrow, problem.state)),
        weights=SkipWeights(layers, narrow(weights.update_weight), narrow(weights.update_bias)),
    )


@each_cell
@pytest.mark.parametrize("save", [False, True])
def test_a_row_that_is_not_a_number_updates_no_more_and_says_so(cell: CellName, save: bool) -> None:
    problem = make_problem(cell, update_bias=1.0)
    expected = event.forward(problem, save=False)
    x = problem.x.detach().clone()
    x[4, 2] = torch.nan
    answer = event.forward(problem._replace(x=x), save=save)
    assert answer.state.update_prob.isnan().tolist() == [False, False, True, False, False]
    assert answer.gates[:, 2].tolist() == [1] * 5 + [0] * 6
    others = [0, 1, 3, 4]
    assert_close(answer.output[:, others], expected.output[:, others])
    if answer.trace is not None:
        assert answer.trace.prob.isnan().sum() == 1
        upstream = uneven([answer.output, *answer.state, answer.gates])
        event.backward(problem._replace(x=x), answer.trace, Incoming(*upstream), needs_x=True)


def test_a_state_that_is_not_a_number_never_updates() -> None:
    problem = make_problem("gru", update_bias=1.0)
    p = problem.state.update_prob.detach().clone()
    p[1] = torch.nan
    answer = event.forward(problem._replace(state=problem.state._replace(update_prob=p)), save=True)
    assert answer.gates[:, 1].sum() == 0
    assert answer.gates[:, [0, 2, 3, 4]].all()


@pytest.mark.parametrize("save", [False, True])
def test_there_are_as_many_batches_as_the_busiest_row_has_updates(save: bool, monkeypatch: Any) -> None:
    batches = []
    batch = Memory.batch

    def counted(self: Memory, start: int, count: int) -> object:
        batches.append(count)
        return batch(self, start, count)

    monkeypatch.setattr(Memory, "batch", counted)
    answer = event.forward(make_problem("lstm", shape=(60, 6, 3), sharpness=8), save=save)
    assert len(batches) == answer.gates.sum(0).max() < 60
    assert sum(batches) == answer.gates.sum()
    assert len(set(batches)) > 1


def test_adjoints_do_not_shrink_to_denormal_numbers() -> None:
    """Products with such numbers take ten times as long."""
    problem = make_problem("lstm", shape=(300, 2, 1), size=4, update_bias=30.0, dtype=torch.float32)
    layer = problem.weights.layers[0]
    halving = layer._replace(weight_hh=layer.weight_hh * 0.1, weight_ih=layer.weight_ih * 0.1, bias_ih=-layer.bias_hh)
    problem = problem._replace(weights=problem.weights._replace(layers=(halving,)))
    answer = event.forward(problem, save=True)
    assert answer.trace is not None
    at_the_end = Incoming(None, torch.ones_like(answer.state.h), None, None, None, None)
    pre = event.backward(problem, answer.trace, at_the_end, needs_x=False).pre_activation
    assert pre is not None
    assert (pre[-20:] != 0).all()
    assert (pre[:200] == 0).all()
    assert not ((pre != 0) & (pre.abs() < torch.finfo(torch.float32).tiny)).any()


@each_cell
def test_autocast_around_it_changes_nothing(cell: CellName) -> None:
    problem = make_problem(cell, num_layers=2, dtype=torch.float32)
    upstream = uneven(reference(problem))
    expected, by_expected = run(problem, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, by_actual = run(problem, upstream)
    assert torch.equal(actual.output, expected.output)
    for name, gradient in by_expected.items():
        assert torch.equal(by_actual[name], gradient)


@each_cell
def test_a_trace_tells_where_each_segment_comes_from(cell: CellName) -> None:
    answer = event.forward(make_problem(cell, num_layers=2, lengths=LENGTHS, update_bias=-1.0), save=True)
    assert answer.trace is not None
    index = answer.trace.index
    num_updates = int(answer.gates.sum())
    assert index.shape == (BATCH_SIZE + num_updates, 4)
    assert index[:BATCH_SIZE, :3].tolist() == [[row, -1, -1] for row in range(BATCH_SIZE)]
    used = set()
    last = dict(enumerate(range(BATCH_SIZE)))
    ends = {}
    for segment, (row, step, previous, _) in enumerate(index[BATCH_SIZE:].tolist(), start=BATCH_SIZE):
        assert answer.gates[step, row] == 1
        assert previous == last[row]
        assert torch.equal(answer.output[step, row], answer.trace.states[segment, -1, 0])
        used.add((row, step))
        last[row], ends[previous] = segment, step
    assert len(used) == num_updates
    for segment, (row, step, _, held) in enumerate(index.tolist()):
        waited = ends.get(segment, int(LENGTHS[row])) - step - 1
        assert (held >= 0) == (waited > 0)
    places = index[index[:, 3] >= 0, 3]
    assert len(set(places.tolist())) == len(places)
    assert places.max() < len(answer.trace.held)


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
    problem = make_problem(cell, num_layers=2, norm=norm)
    upstream = uneven(reference(problem))
    answer, expected = run(problem, upstream)
    assert answer.trace is not None
    adjoints = event.backward(problem, answer.trace, Incoming(*upstream), needs_x=True)
    blocks = {"lstm": 4, "gru": 3, "gru_reset_after": 4}[cell] + norm * (4 if cell == "lstm" else 2)
    padding = Padding(5, 8)
    trace = answer.trace._replace(
        states=padding.widen(answer.trace.states), saved=padding.widen(answer.trace.saved[..., : blocks * 5])
    )
    wide = adjoints._replace(
        pre_activation=padding.widen(adjoints.pre_activation),
        normalised=None if adjoints.normalised is None else padding.widen(adjoints.normalised),
    )
    for name, gradient in gradients(problem, trace, wide).items():
        assert_close(gradient, expected[name])


def test_the_gradient_of_x_is_made_on_demand() -> None:
    problem = make_problem("lstm")
    answer = event.forward(problem, save=True)
    assert answer.trace is not None
    adjoints = event.backward(problem, answer.trace, Incoming(answer.output, *[None] * 5), needs_x=True)
    by_x, _ = parameter_gradients(problem, answer.trace, adjoints, needs_x=False)
    assert by_x is None
    by_x, _ = parameter_gradients(problem, answer.trace, adjoints, needs_x=True)
    assert by_x is not None
    assert (by_x[answer.gates == 0] == 0).all()
    assert (by_x[answer.gates == 1] != 0).all()
