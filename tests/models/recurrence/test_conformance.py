"""What every implementation of the recurrence must do: torch operators, C++ and Triton against the reference.

Most checks call an implementation directly; some go through torch's operator around it.

A check is a function of the implementation's name. Triton's run in its interpreter, in a process of its own: see
triton_process. Letters: B batch, T steps, D features, H hidden, L layers.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipreel.models.recurrence.cpp.build import library
from skipreel.models.recurrence.interface import CellName, ForwardInputs
from skipreel.models.recurrence.operator import Backend, recurrence
from skipreel.models.recurrence.reference import accumulate
from tests.support.recurrence_inputs import (
    BATCH_SIZE,
    CELLS,
    GATING,
    LENGTHS,
    NUM_STEPS,
    assert_gradients,
    autograd,
    check,
    implementation,
    leaves,
    make_inputs,
    narrowed,
    output_grads,
    reference,
    run,
    uneven,
)
from tests.support.tolerances import TOLERANCES, assert_close
from tests.support.triton_process import needs_triton, triton_process

Run = Callable[..., Any]

NAMES = ("event", "cpp", pytest.param("triton", marks=needs_triton))
MOST_LAYERS = {"event": 3, "cpp": 3, "triton": 1}
DTYPES = {"event": torch.float64, "cpp": torch.float64, "triton": torch.float32}

each_cell = pytest.mark.parametrize("cell", CELLS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    assert library() is not None, "these tests need g++ and ninja"


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with triton_process(tmp_path_factory.mktemp("triton"), interpret=True) as run_there:
        yield run_there


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run_check(name: str, request: pytest.FixtureRequest) -> Run:
    """Calls a check with the implementation's name, where that implementation runs."""
    run_there = request.getfixturevalue("interpreted") if name == "triton" else None

    def run_check(function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if run_there is None:
            function(name, *args, **kwargs)
        else:
            run_there(function, name, *args, **kwargs)

    return run_check


def check_each(name: str, cell: CellName, *variants: dict[str, Any], **arguments: Any) -> None:
    """`check` for several inputs; the line below the traceback says which one failed."""
    for variant in variants or ({},):
        try:
            check(name, make_inputs(cell, **{"dtype": DTYPES[name], **arguments, **variant}))
        except BaseException as error:
            error.add_note(f"{name}, {cell}: {arguments | variant}")
            raise


def depths(name: str) -> list[dict[str, Any]]:
    """Every number of layers that the implementation takes, with layer normalisation and without."""
    norms = (False, True) if name == "event" else (False,)
    return [{"num_layers": n, "norm": norm} for n in range(1, MOST_LAYERS[name] + 1) for norm in norms]


def some(name: str, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them, or every third where they are interpreted, which takes a hundred times as long."""
    return variants[::3] if name == "triton" else variants


DRAWN = torch.rand(NUM_STEPS, BATCH_SIZE, generator=torch.Generator().manual_seed(2)) < 0.4
STARTS = [{"midway": midway, "lengths": lengths} for midway in (False, True) for lengths in (None, LENGTHS)]


@each_cell
@pytest.mark.parametrize("gating", GATING)
def test_equal_to_stepping(name: str, run_check: Run, cell: CellName, gating: str) -> None:
    bias, sharpness = GATING[gating]
    for depth in depths(name):
        variants = some(name, [start | {"seed": seed} for seed, start in enumerate(STARTS)])
        run_check(check_each, cell, *variants, update_bias=bias, sharpness=sharpness, **depth)


@pytest.mark.parametrize(("gating", "fewest", "most"), [("mixed", 0.2, 0.6), ("sharp", 0.2, 0.8), ("open", 0.9, 1)])
def test_these_gates_are_what_they_are_called(gating: str, fewest: float, most: float) -> None:
    bias, sharpness = GATING[gating]
    gates = reference(make_inputs("lstm", update_bias=bias, sharpness=sharpness))[-1]
    assert gates is not None
    assert fewest < gates.mean() <= most
    if gating == "sharp":
        assert len(set(gates.sum(0).tolist())) > 1


@each_cell
def test_equal_to_stepping_under_given_gates(name: str, run_check: Run, cell: CellName) -> None:
    steps = torch.arange(NUM_STEPS)[:, None].expand(-1, BATCH_SIZE)
    gates = [steps % 2 == 1, steps % 2 == 0, DRAWN, steps >= 0, steps == 0, steps < 0]
    variants = [{"gates": given} | start for given in gates for start in STARTS]
    variants += [{"gates": DRAWN, "dtype": torch.float32} | start for start in STARTS]
    for depth in depths(name)[:4]:
        run_check(check_each, cell, *some(name, variants), **depth)


@each_cell
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 1), 1),
        ((1, 3, 2), 5),
        ((7, 1, 9), 4),
        ((9, 1, 2), 16),
        ((4, 3, 5), 17),
        ((6, 2, 40), 33),
        ((4, 17, 2), 23),
    ],
    ids=str,
)
def test_odd_sizes(name: str, run_check: Run, cell: CellName, shape: tuple[int, int, int], size: int) -> None:
    variants = [{"update_bias": bias, "midway": midway} for bias in (1.0, -1.5) for midway in (False, True)]
    run_check(check_each, cell, *some(name, variants), shape=shape, size=size)


def test_no_row_has_a_valid_step(run_check: Run) -> None:
    run_check(check_each, "lstm", lengths=torch.zeros(BATCH_SIZE, dtype=torch.int64), midway=True)


def test_sums_over_long_segments(run_check: Run) -> None:
    lengths = torch.tensor([37, 20, 0])
    run_check(check_each, "gru", shape=(37, 3, 1), size=3, update_bias=-3.0, lengths=lengths)


@pytest.mark.parametrize("name", ["event", "cpp"])
@settings(max_examples=50)
@given(data=st.data())
def test_equal_to_stepping_at_any_shape(name: str, data: st.DataObject) -> None:
    draw = data.draw
    num_steps, batch_size = draw(st.integers(1, 20), label="T"), draw(st.integers(1, 6), label="B")
    padded = draw(st.lists(st.integers(0, num_steps), min_size=batch_size, max_size=batch_size), label="lengths")
    inputs = make_inputs(
        draw(st.sampled_from(list(CELLS)), label="cell"),
        shape=(num_steps, batch_size, draw(st.sampled_from([1, 2, 5, 8, 9, 13]), label="D")),
        size=draw(st.integers(1, 20), label="H"),
        num_layers=draw(st.integers(1, 3), label="L"),
        norm=name == "event" and draw(st.booleans(), label="norm"),
        update_bias=draw(st.sampled_from([1.0, -1.0, -2.5, -30.0]), label="bias"),
        sharpness=draw(st.sampled_from([1.0, 8.0]), label="sharpness"),
        midway=draw(st.booleans(), label="midway"),
        lengths=draw(st.sampled_from([None, torch.tensor(padded)]), label="padded"),
        seed=draw(st.integers(0, 99), label="seed"),
    )
    check(name, inputs)


def check_strides(name: str, width: int, update_bias: float) -> None:
    inputs = make_inputs("lstm", shape=(9, 5, width), update_bias=update_bias, dtype=DTYPES[name])
    x = inputs.x.detach()
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([x, x], -1)[..., 0]):
        assert not other.is_contiguous()
        check(name, inputs._replace(x=other.requires_grad_()))


@pytest.mark.parametrize("width", [2, 12], ids=["narrow", "wide"])
@pytest.mark.parametrize("update_bias", [1.0, -1.5])
def test_steps_or_rows_first_in_memory(run_check: Run, width: int, update_bias: float) -> None:
    run_check(check_strides, width, update_bias)


def check_unread(name: str, cell: CellName, width: int, gates: Tensor | None) -> None:
    inputs = make_inputs(cell, shape=(NUM_STEPS, BATCH_SIZE, width), lengths=LENGTHS, gates=gates, dtype=DTYPES[name])
    upstream = uneven(reference(inputs))
    expected, by_expected = run(name, inputs, upstream)
    unread = torch.arange(NUM_STEPS)[:, None] >= LENGTHS
    if gates is not None:
        unread = unread | ~gates
    filled = inputs._replace(x=inputs.x.detach().masked_fill(unread[:, :, None], torch.nan))
    actual, by_actual = run(name, filled, upstream)
    assert torch.equal(actual.output, expected.output)
    for leaf, gradient in by_expected.items():
        assert torch.equal(by_actual[leaf], gradient), leaf


@each_cell
@pytest.mark.parametrize("width", [2, 12], ids=["narrow", "wide"])
@pytest.mark.parametrize("gates", [None, DRAWN], ids=["learned", "given"])
def test_padding_and_steps_that_given_gates_skip_are_never_read(
    run_check: Run, cell: CellName, width: int, gates: Tensor | None
) -> None:
    run_check(check_unread, cell, width, gates)


def check_ties(name: str, p: float, dtype: torch.dtype) -> None:
    bias = 40.0 if p == 1 else math.log(p / (1 - p))
    inputs = make_inputs("lstm", update_bias=bias, sharpness=0, lengths=LENGTHS, dtype=dtype)
    state = inputs.state._replace(update_prob=torch.full((BATCH_SIZE,), p, dtype=dtype, requires_grad=True))
    inputs = inputs._replace(state=state)
    parts = reference(inputs)
    assert parts[-1] is not None
    assert int(parts[-1][:, 0].argmax()) == {0.5: 1, 0.25: 2, 0.125: 4, 1.0: 0}[p]
    outputs = implementation(name).forward(inputs, save=False)
    assert torch.equal(outputs.gates, parts[-1])
    assert torch.equal(outputs.state.accumulated, parts[-2])
    if name == "event":
        assert torch.equal(outputs.state.update_prob, parts[-3])
    if dtype == torch.float64:
        check(name, inputs)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.125, 1.0])
def test_ties_are_those_of_stepping_bit_for_bit(name: str, run_check: Run, p: float) -> None:
    """p that adds up to ½ exactly, in the state and after each update: σ(0) = ½, and σ(40) is 1."""
    for dtype in {torch.float32, DTYPES[name]}:
        run_check(check_ties, p, dtype)


def check_clamps(name: str, p: float) -> None:
    dtype = DTYPES[name]
    gates = torch.zeros(NUM_STEPS, BATCH_SIZE, dtype=torch.bool)
    inputs = make_inputs("gru", gates=gates, lengths=LENGTHS, dtype=dtype)
    state = inputs.state._replace(
        update_prob=torch.full((BATCH_SIZE,), p, dtype=dtype, requires_grad=True),
        accumulated=torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=dtype, requires_grad=True),
    )
    check(name, inputs._replace(state=state))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_ties_and_clamps_of_a_wait_under_given_gates(run_check: Run, p: float) -> None:
    """Nothing resets ũ there, so min(p, 1 − ũ) is either, or both at once."""
    run_check(check_clamps, p)


def check_accumulation(name: str, cell: CellName) -> None:
    inputs = make_inputs(cell, shape=(40, BATCH_SIZE, 2), update_bias=-3.5, midway=True, dtype=DTYPES[name])
    outputs = implementation(name).forward(inputs, save=False)
    waited = 39 - torch.where(outputs.gates > 0, torch.arange(40)[:, None], -1).amax(0)
    assert waited.max() > 8
    for row, steps in enumerate(waited.tolist()):
        a = inputs.state.accumulated[row] * (steps == 40)
        for _ in range(steps):
            a = accumulate(outputs.state.update_prob[row], a)
        assert outputs.state.accumulated[row] == a


@each_cell
def test_the_last_accumulation_is_that_of_stepping_bit_for_bit(run_check: Run, cell: CellName) -> None:
    run_check(check_accumulation, cell)


def check_two_runs(name: str, cell: CellName, dtype: torch.dtype, **arguments: Any) -> None:
    inputs = make_inputs(cell, update_bias=-2.0, midway=True, dtype=dtype, **arguments)
    upstream = uneven(reference(inputs))
    (one, first), (other, second) = run(name, inputs, upstream), run(name, inputs, upstream)
    assert torch.equal(one.output, other.output)
    for leaf, gradient in first.items():
        assert torch.equal(gradient, second[leaf]), leaf


@each_cell
def test_two_runs_are_equal_bit_for_bit(name: str, run_check: Run, cell: CellName) -> None:
    for dtype in {torch.float32, DTYPES[name]}:
        sizes = {"shape": (9, 5, 3)} if name == "triton" else {"shape": (30, 7, 3), "size": 20, **depths(name)[-1]}
        run_check(check_two_runs, cell, dtype, **sizes)


def check_float32(name: str, *problems: tuple[CellName, dict[str, Any]]) -> None:
    """Its outputs and gradients against those of float64; gradients in units of the largest entry of each."""
    for cell, arguments in problems:
        assert_float32(name, make_inputs(cell, **arguments))


def assert_float32(name: str, inputs: ForwardInputs) -> None:
    parts = reference(inputs)
    upstream = uneven(parts)
    outputs, actual = run(name, narrowed(inputs), [None if g is None else g.float() for g in upstream])
    assert parts[0] is not None
    assert parts[-1] is not None
    assert torch.equal(outputs.gates.double(), parts[-1])
    assert_close(outputs.output, parts[0].detach().float())
    for leaf, gradient in autograd(inputs, parts, upstream).items():
        unit = gradient.abs().max().clamp_min(1e-30)
        assert_close(actual[leaf] / unit.float(), (gradient / unit).float())


@each_cell
@pytest.mark.parametrize("update_bias", [1.0, -2.0])
def test_float32_gradients_are_those_of_float64(name: str, run_check: Run, cell: CellName, update_bias: float) -> None:
    twice = [depth for depth in depths(name) if depth["num_layers"] == min(2, MOST_LAYERS[name])]
    run_check(check_float32, *((cell, depth | {"update_bias": update_bias}) for depth in twice))


def check_parts(name: str, *, given: bool) -> None:
    """A loss on one output alone, and gradients of the output of other strides: as of a sum, transposed."""
    steps = torch.arange(NUM_STEPS * BATCH_SIZE).view(NUM_STEPS, BATCH_SIZE)
    layers = MOST_LAYERS[name] > 1 and not given
    inputs = make_inputs(
        "lstm",
        num_layers=1 + layers,
        lengths=LENGTHS,
        gates=steps % 3 == 0 if given else None,
        dtype=DTYPES[name],
    )
    parts = reference(inputs)
    whole = uneven(parts)
    upstreams = [[grad if place == kept else None for place, grad in enumerate(whole)] for kept in range(len(whole))]
    by_output = whole[0]
    assert by_output is not None
    upstreams.append([torch.ones((), dtype=by_output.dtype).expand_as(by_output), *[None] * 5])
    upstreams.append([by_output.permute(1, 2, 0).contiguous().permute(2, 0, 1), *[None] * 5])
    for upstream in upstreams:
        _, actual = run(name, inputs, upstream)
        assert_gradients(actual, autograd(inputs, reference(inputs), upstream))


@pytest.mark.parametrize("given", [False, True])
def test_a_loss_on_one_part_alone(run_check: Run, given: bool) -> None:
    """With given gates, one on the gates alone leads nowhere: all gradients are 0."""
    run_check(check_parts, given=given)


def check_saturated(name: str, cell: CellName, bias: float) -> None:
    for block in range(4 if cell == "lstm" else 3):
        inputs = make_inputs(cell, shape=(5, 3, 3))
        layer = inputs.weights.layers[0]
        shift = torch.zeros_like(layer.bias_ih)
        shift[5 * block : 5 * block + 5] = bias
        saturated = layer._replace(bias_ih=(layer.bias_ih.detach() + shift).requires_grad_())
        inputs = inputs._replace(weights=inputs.weights._replace(layers=(saturated,)))
        if DTYPES[name] == torch.float64:
            check(name, inputs)
        if name != "cpp":  # its own exp is exact to the last bit of 1 and no further: what is left of 1 − σ is noise
            assert_float32(name, inputs)


@pytest.mark.parametrize("bias", [-200.0, -95.0, 95.0, 200.0])
@each_cell
def test_saturated_gates(run_check: Run, cell: CellName, bias: float) -> None:
    """Where σ is 0 or 1 to the last bit, or denormal; in float32 too."""
    run_check(check_saturated, cell, bias)


def check_nan(name: str, cell: CellName) -> None:
    """Row 1 starts with a p that is not a number, row 2 reads an x that is none."""
    inputs = make_inputs(cell, update_bias=30.0, dtype=DTYPES[name])
    p = inputs.state.update_prob.detach().clone()
    x = inputs.x.detach().clone()
    p[1], x[4, 2] = torch.nan, torch.nan
    damaged = inputs._replace(x=x, state=inputs.state._replace(update_prob=p))
    module = implementation(name)
    expected = module.forward(inputs, save=False)
    for save in (False, True):
        outputs = module.forward(damaged, save=save)
        assert outputs.state.update_prob.isnan().tolist() == [False, True, True, False, False]
        assert outputs.gates.sum(0).tolist() == [11, 0, 5, 11, 11]
        assert_close(outputs.output[:, [0, 3, 4]], expected.output[:, [0, 3, 4]])
    assert outputs.trace.prob.isnan().sum() == 2
    upstream = uneven([outputs.output, *outputs.state, outputs.gates])
    adjoints = module.backward(damaged, outputs.trace, output_grads(damaged, upstream), needs_x=True)
    assert adjoints.update_prob.isnan().tolist() == [False, True, True, False, False]


@each_cell
def test_a_row_that_is_not_a_number_updates_no_more_and_says_so(run_check: Run, cell: CellName) -> None:
    run_check(check_nan, cell)


def check_autocast(name: str, cell: CellName) -> None:
    inputs = make_inputs(cell, num_layers=MOST_LAYERS[name], dtype=torch.float32)
    upstream = uneven(reference(inputs))
    expected, by_expected = run(name, inputs, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, by_actual = run(name, inputs, upstream)
    assert torch.equal(actual.output, expected.output)
    for leaf, gradient in by_expected.items():
        assert torch.equal(by_actual[leaf], gradient), leaf


@each_cell
def test_autocast_around_it_changes_nothing(run_check: Run, cell: CellName) -> None:
    run_check(check_autocast, cell)


def check_operator(name: Backend, cell: CellName) -> None:
    """Values and gradients of the operator, for both orders of x in memory."""
    for depth in depths(name):
        for gates, rows_first in ((None, False), (None, True), (DRAWN, False)):
            inputs = make_inputs(cell, midway=True, lengths=LENGTHS, gates=gates, dtype=DTYPES[name], **depth)
            parts = reference(inputs)
            x = inputs.x.transpose(0, 1).contiguous().transpose(0, 1) if rows_first else inputs.x
            output, last, used = recurrence(
                x, inputs.state, inputs.weights, cell=cell, backend=name, lengths=LENGTHS, gates=gates
            )
            assert torch.equal(used, parts[-1])
            for value, expected in zip([output, *last], parts, strict=False):
                assert (value is None) == (expected is None)
                if value is not None:
                    assert_close(value.detach(), expected.detach())
            upstream = uneven(parts)
            actual = autograd(inputs, [output, *last, used], upstream)
            assert_gradients(actual, autograd(inputs, parts, upstream))


@each_cell
def test_equal_to_stepping_through_torchs_operator(run_check: Run, cell: CellName) -> None:
    run_check(check_operator, cell)


@pytest.mark.parametrize("name", ["event", "cpp"])
@each_cell
@pytest.mark.parametrize(("width", "size"), [(3, 7), (300, 40)])
def test_gradients_of_the_weights_do_not_depend_on_whether_x_wants_one(
    name: Backend, cell: CellName, width: int, size: int
) -> None:
    """Small weights and large ones, which the C++ implementation sums in different ways."""
    inputs = make_inputs(cell, shape=(40, 14, width), size=size, num_layers=2)
    parameters = [leaf for leaf_name, leaf in leaves(inputs).items() if leaf_name != "x"]

    def by_parameters(x: Tensor, backend: Backend) -> tuple[Tensor, ...]:
        output, last, gates = recurrence(x, inputs.state, inputs.weights, cell=cell, backend=backend)
        return torch.autograd.grad(output.square().sum() + last.h.sum() + gates.sum(), parameters)

    expected = by_parameters(inputs.x, "reference")
    for x in (inputs.x, inputs.x.detach()):
        for actual, gradient in zip(by_parameters(x, name), expected, strict=True):
            scale = gradient.abs().max().clamp_min(1)
            assert_close(actual / scale, gradient / scale)


@pytest.mark.parametrize("name", ["event", "cpp"])
@each_cell
def test_float32_gates_decided_freely_agree_nearly_always(name: str, cell: CellName) -> None:
    """One flipped gate changes all that follows in its row, so rows are counted."""
    inputs = make_inputs(cell, shape=(60, 64, 4), size=20, update_bias=-2.0, dtype=torch.float32)
    expected = reference(inputs)[-1]
    assert expected is not None
    same = (implementation(name).forward(inputs, save=False).gates == expected).all(0).float().mean().item()
    print(f"{name} {cell}: {same:.3f} of the rows have the reference's gates")
    assert same >= 0.98


def test_a_weight_off_by_more_than_the_tolerance_is_found() -> None:
    inputs = make_inputs("lstm")
    parts = reference(inputs)
    upstream = uneven(parts)
    layer = inputs.weights.layers[0]
    weight = layer.weight_hh.detach().clone()
    weight[3, 2] += 100 * TOLERANCES[torch.float64].atol
    moved = inputs._replace(weights=inputs.weights._replace(layers=(layer._replace(weight_hh=weight),)))
    outputs, gradients = run("cpp", moved, upstream)
    assert parts[0] is not None
    with pytest.raises(AssertionError):
        assert_close(outputs.output, parts[0].detach())
    with pytest.raises(AssertionError):
        assert_gradients(gradients, autograd(inputs, parts, upstream))
