"""The layers by every fast implementation: torch's operator around it, chunks, checks, compiled and under autocast.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from skipreel.models import RandomGate, SkipGRU, SkipLSTM, SkipState, StridedGate
from skipreel.models.recurrence import cpp
from skipreel.models.recurrence.operator import Backend
from tests.support.tolerances import TOLERANCES, assert_close

Layer = SkipLSTM | SkipGRU

BACKENDS: tuple[Backend, ...] = ("event", "cpp")
CELLS = {"lstm": (SkipLSTM, {}), "gru": (SkipGRU, {}), "gru_reset_after": (SkipGRU, {"reset_after": True})}

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(scope="module", autouse=True)
def _compiled_and_quick() -> Iterator[None]:
    assert cpp.library() is not None, "these tests need g++ and ninja"
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other over a few numbers take longer than the numbers
    yield
    torch.set_num_threads(before)


def build(cell: str, *sizes: int, update_bias: float = -2.0, seed: int = 0, **arguments: Any) -> Layer:
    """A reference layer with nothing at zero; at this update bias its gates both open and close."""
    torch.manual_seed(seed)
    kind, own = CELLS[cell]
    layer = kind(*sizes, update_bias=update_bias, backend="reference", **{"dtype": torch.float64, **own, **arguments})
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(("bias", "norm")):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer


class Result(NamedTuple):
    output: Tensor
    state: SkipState
    gates: Tensor
    gradients: dict[str, Tensor]


def run(layer: Layer, backend: Backend, x: Tensor, state: SkipState | None = None, **call: Any) -> Result:
    """The layer's answer and the gradients of a loss that depends on all of it, unevenly."""
    layer.backend = backend
    layer.zero_grad()
    x = x.clone().requires_grad_()
    given = None if state is None else SkipState(*(t if t is None else t.clone().requires_grad_() for t in state))
    output, last, gates = layer(x, given, **call)
    parts = [output, *(part for part in last if part is not None), gates]
    generator = torch.Generator().manual_seed(3)
    loss = sum((torch.randn(p.shape, generator=generator, dtype=p.dtype) * p).sum() for p in parts if p.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    leaves = {"x": x, **dict(layer.named_parameters())}
    if given is not None:
        leaves |= {f"state.{name}": part for name, part in given._asdict().items() if part is not None}
    gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return Result(output.detach(), last, gates.detach(), gradients)


def assert_equal(actual: Result, expected: Result) -> None:
    assert torch.equal(actual.gates, expected.gates)
    assert_close(actual.output, expected.output)
    for ours, theirs in zip(actual.state, expected.state, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert_close(ours.detach(), theirs.detach())
    assert actual.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        # A sum over many steps: what counts is the error against the gradient's own size.
        scale = gradient.abs().max().clamp_min(1)
        assert_close(actual.gradients[name] / scale, gradient / scale)


def inputs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@each_backend
@each_cell
@pytest.mark.parametrize("recorded", [False, True])
def test_equal_to_the_reference(backend: Backend, cell: str, recorded: bool) -> None:
    """From a state in the middle of a wait; the implementations by themselves: test_conformance."""
    layer = build(cell, 3, 7, 2)
    x, lengths = inputs(17, 5, 3), torch.tensor([17, 0, 1, 9, 17])
    p, a = torch.tensor([[0.1, 0.3, 0.9, 0.5, 0.2], [0.2, 0.45, 0.3, 0, 0.4]]).double()
    state = SkipState(inputs(2, 5, 7, seed=4), inputs(2, 5, 7, seed=5) if cell == "lstm" else None, p, a)
    gates = (inputs(17, 5, seed=6) > 0.3).float() if recorded else None
    expected = run(layer, "reference", x, state, lengths=lengths, gates=gates)
    assert 0.05 < expected.gates.mean() < 0.95
    assert_equal(run(layer, backend, x, state, lengths=lengths, gates=gates), expected)


@each_cell
def test_layer_normalisation(cell: str) -> None:
    layer = build(cell, 3, 7, 2, layer_norm=True)
    x, lengths = inputs(17, 5, 3), torch.tensor([17, 0, 1, 9, 17])
    expected = run(layer, "reference", x, lengths=lengths)
    assert_equal(run(layer, "event", x, lengths=lengths), expected)
    assert_equal(run(layer, "auto", x, lengths=lengths), expected)
    layer.backend = "cpp"
    with pytest.raises(
        ValueError, match=r"backend 'cpp' cannot do this \(layer normalisation\): use backend='auto' or 'event'"
    ):
        layer(x)


@each_backend
@each_cell
@pytest.mark.parametrize("sizes", [(3, 7, 2), (300, 40, 2)])
def test_gradients_of_the_weights_do_not_ask_whether_x_wants_one(
    backend: Backend, cell: str, sizes: tuple[int, int, int]
) -> None:
    """Small weights and large ones, which the C++ implementation sums in different ways."""
    layer = build(cell, *sizes)
    layer.backend = backend
    x = inputs(40, 14, sizes[0])
    parameters = list(layer.parameters())
    gradients = []
    for wants in (False, True):
        output, _, gates = layer(x.clone().requires_grad_(wants))
        gradients.append(torch.autograd.grad(output.square().sum() + gates.sum(), parameters))
    layer.backend = "reference"
    output, _, gates = layer(x)
    expected = torch.autograd.grad(output.square().sum() + gates.sum(), parameters)
    for without, with_x, reference in zip(*gradients, expected, strict=True):
        scale = reference.abs().max().clamp_min(1)
        assert_close(without / scale, reference / scale)
        assert_close(with_x / scale, reference / scale)


@each_backend
@each_cell
def test_float32_under_the_same_gates(backend: Backend, cell: str) -> None:
    layer = build(cell, 4, 20, 2, dtype=torch.float32)
    x = inputs(30, 6, 4, dtype=torch.float32)
    with torch.no_grad():
        gates = layer(x)[2]
    expected, actual = run(layer, "reference", x, gates=gates), run(layer, backend, x, gates=gates)
    assert_equal(actual, expected)


@each_backend
@each_cell
def test_float32_gates_decided_freely_agree_nearly_always(backend: Backend, cell: str) -> None:
    """One flipped gate changes all that follows in its row, so rows are counted."""
    layer = build(cell, 4, 20, dtype=torch.float32)
    x = inputs(60, 64, 4, dtype=torch.float32)
    with torch.no_grad():
        expected = layer(x)[2]
        layer.backend = backend
        actual = layer(x)[2]
    same = (actual == expected).all(0).float().mean().item()
    print(f"{backend} {cell}: {same:.3f} of the rows have the reference's gates")
    assert same >= 0.98


@each_backend
@each_cell
@pytest.mark.parametrize("cuts", [[5], [1, 2, 11]])
def test_chunks_equal_the_whole(backend: Backend, cell: str, cuts: list[int]) -> None:
    layer = build(cell, 3, 6, 2)
    layer.backend = backend
    x = inputs(14, 4, 3)
    output, last, gates = layer(x)
    state, outputs, used = None, [], []
    for chunk in x.tensor_split(cuts):
        part, state, u = layer(chunk, state)
        outputs.append(part)
        used.append(u)
    assert torch.equal(torch.cat(used), gates)
    assert_close(torch.cat(outputs), output)
    assert state is not None
    gradients = [
        torch.autograd.grad(o.square().sum() + u.sum() + s.h.sum() + s.accumulated.sum(), list(layer.parameters()))
        for o, u, s in ((output, gates, last), (torch.cat(outputs), torch.cat(used), state))
    ]
    for whole, chunked in zip(*gradients, strict=True):
        assert_close(chunked, whole)


@each_cell
def test_in_cpp_a_row_does_not_depend_on_its_neighbours_chunks_or_threads(cell: str) -> None:
    layer = build(cell, 5, 20, 2, dtype=torch.float32)
    layer.backend = "cpp"
    x = inputs(40, 9, 5, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            whole = layer(x)
            torch.set_num_threads(3)
            threaded = layer(x)
            first, state, _ = layer(x[:13])
            second, _, _ = layer(x[13:], state)
            alone, _, _ = layer(x[:, 4:5])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(threaded[0], whole[0])
    assert torch.equal(threaded[2], whole[2])
    assert torch.equal(torch.cat([first, second]), whole[0])
    assert torch.equal(alone, whole[0][:, 4:5])


@each_backend
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_every_gate_open_it_is_torchs_layer_and_converts_both_ways(
    backend: Backend, cell: str, num_layers: int
) -> None:
    torch.manual_seed(0)
    kind, _ = CELLS[cell]
    dense = (nn.LSTM if cell == "lstm" else nn.GRU)(4, 9, num_layers, batch_first=True, dtype=torch.float64)
    layer = kind.from_dense(dense, update_bias=30.0, backend=backend)
    x = inputs(3, 12, 4)
    ours, theirs = layer(x), dense(x)
    assert ours[2].eq(1).all()
    assert_close(ours[0], theirs[0])
    ours[0].square().sum().backward()
    theirs[0].square().sum().backward()
    for name, parameter in dense.named_parameters():
        assert_close(layer.get_parameter(name).grad, parameter.grad)
    back = layer.to_dense()
    assert all(torch.equal(back.get_parameter(name), parameter) for name, parameter in dense.named_parameters())


def test_what_torch_has_no_counterpart_of_is_not_converted() -> None:
    with pytest.raises(ValueError, match=r"SkipLSTM takes over a torch.nn.LSTM, not one with the kind GRU"):
        SkipLSTM.from_dense(nn.GRU(3, 4))
    with pytest.raises(ValueError, match=r"not one with bidirectional=True"):
        SkipGRU.from_dense(nn.GRU(3, 4, bidirectional=True))
    with pytest.raises(ValueError, match="not one with proj_size"):
        SkipLSTM.from_dense(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(ValueError, match="only without layer_norm, and for a GRU with reset_after"):
        SkipGRU(3, 4).to_dense()


@each_backend
@pytest.mark.parametrize("gates", [None, torch.ones(6, 3)])
def test_a_row_that_reads_nan_is_named(backend: Backend, gates: Tensor | None) -> None:
    layer = build("gru", 2, 4, update_bias=30.0)
    layer.backend = backend
    x = inputs(6, 3, 2)
    x[4, 1] = float("nan")
    with pytest.raises(ValueError, match=r"rows \[1\] became NaN: their x or state, or the weights, are not finite"):
        layer(x, gates=gates)


@each_backend
def test_nan_in_a_sample_that_is_not_read_changes_nothing(backend: Backend) -> None:
    layer = build("lstm", 2, 4, gate=StridedGate(2))
    layer.backend = backend
    x = inputs(8, 3, 2)
    damaged = x.clone()
    damaged[1::2] = float("nan")
    assert torch.equal(layer(damaged)[0], layer(x)[0])


@each_backend
def test_values_out_of_range_are_refused(backend: Backend) -> None:
    layer = build("gru", 2, 4)
    layer.backend = backend
    with pytest.raises(ValueError, match=r"lengths must be within 0\.\.4, the steps of x, got \[5, 1\]"):
        layer(inputs(4, 2, 2), lengths=torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="gates must be 0 or 1"):
        layer(inputs(4, 2, 2), gates=torch.full((4, 2), 0.5))
    with pytest.raises(
        ValueError, match=rf"'{backend}' cannot do this \(gates that want a gradient\): use .*'reference'"
    ):
        layer(inputs(4, 2, 2), gates=torch.ones(4, 2, requires_grad=True))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of auto, reference, event, cpp, triton, got 'cuda'"):
        SkipGRU(2, 3, backend="cuda")  # type: ignore[arg-type]


@each_backend
@pytest.mark.parametrize("gate", [RandomGate(0.6, seed=3), StridedGate(2.5)])
def test_scheduled_gates(backend: Backend, gate: RandomGate | StridedGate) -> None:
    layer = build("gru", 3, 6, gate=gate).eval()
    x = inputs(15, 4, 3)
    assert_equal(run(layer, backend, x), run(layer, "reference", x))


@each_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_torch_finds_the_operator_in_order(backend: Backend, cell: str) -> None:
    """torch.library.opcheck: schema, autograd registration, fake tensors, and ahead-of-time autograd with gradients."""
    from skipreel.models.recurrence import operator

    layer = build(cell, 3, 6, 2)
    weights = layer.weights()
    parameters = [
        *(tensor for each in weights.layers for tensor in each[:4]),
        weights.update_weight,
        weights.update_bias,
    ]
    h = inputs(2, 4, 6).requires_grad_()
    c = inputs(2, 4, 6, seed=2).requires_grad_() if cell == "lstm" else None
    one = torch.ones(4, dtype=torch.float64)
    x = inputs(9, 4, 3).requires_grad_()
    torch.library.opcheck(
        operator._skip_rnn, (x, h, c, one, 0 * one, parameters, None, None, cell, backend, False, True)
    )


@each_backend
def test_a_compiled_model_gives_the_same_without_a_break(backend: Backend) -> None:
    layer = build("gru", 3, 6, 2)
    layer.backend = backend
    head = nn.Linear(6, 2, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        output, _, gates = layer(torch.tanh(x))
        return head(output).square().mean() + gates.mean()

    x = inputs(9, 4, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(model(x), list(layer.parameters()))
    actual = torch.autograd.grad(compiled(x), list(layer.parameters()))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@each_backend
def test_autocast_leaves_the_recurrence_in_float32(backend: Backend) -> None:
    layer = build("lstm", 3, 6, dtype=torch.float32)
    layer.backend = backend
    x = inputs(9, 4, 3, dtype=torch.float32)
    outside = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
        narrow, _, _ = layer(x.bfloat16())
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[2], outside[2])
    assert narrow.dtype == torch.float32


def test_the_table_of_tolerances_is_what_decides() -> None:
    """A layer with one weight moved by more than the tolerance is found out."""
    layer = build("lstm", 3, 6)
    x = inputs(9, 4, 3)
    expected = run(layer, "reference", x)
    with torch.no_grad():
        layer.weight_hh_l0[3, 2] += 100 * TOLERANCES[torch.float64].atol
    with pytest.raises(AssertionError):
        assert_equal(run(layer, "cpp", x), expected)
