"""The recurrence at its boundary: what it refuses, and how it behaves under torch's transforms and recorders.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from skipreel.models import RandomGate, SkipGRU, SkipLSTM, SkipState
from skipreel.models.recurrence.operator import Backend
from tests.support.layers import Layer, drawn, each_cell, each_fast_backend, make_layer
from tests.support.tolerances import assert_close

T, B, D, H = 7, 3, 4, 5

each_backend = pytest.mark.parametrize("backend", get_args(Backend))
each_cpu_backend = pytest.mark.parametrize("backend", ["auto", "reference", "event", "cpp"])


def build(cell: str = "lstm", *, num_layers: int = 1, **arguments: Any) -> Layer:
    return make_layer(cell, D, H, num_layers, **arguments)


def total(layer: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """A number that depends on every output, and on none linearly."""
    result: Tensor = layer(x)[0].square().sum()
    return result


def converted(state: SkipState, *names: str) -> SkipState:
    return state._replace(**{name: getattr(state, name).double() for name in names})


WRONG_STATES: dict[str, tuple[Callable[[Layer], SkipState], str]] = {
    "fewer rows": (lambda layer: layer.initial_state(B - 1), r"state.h must have shape \(1, 3, 5\), got \(1, 2, 5\)"),
    "one row": (lambda layer: layer.initial_state(1), r"state.h must have shape \(1, 3, 5\), got \(1, 1, 5\)"),
    "more rows": (lambda layer: layer.initial_state(64), r"state.h must have shape \(1, 3, 5\), got \(1, 64, 5\)"),
    "p of other rows": (
        lambda layer: layer.initial_state(B)._replace(update_prob=torch.ones(1)),
        r"state.update_prob must have shape \(3,\), got \(1,\)",
    ),
    "a of other rows": (
        lambda layer: layer.initial_state(B)._replace(accumulated=torch.zeros(B, 1)),
        r"state.accumulated must have shape \(3,\), got \(3, 1\)",
    ),
    "other hidden size": (
        lambda _: SkipLSTM(D, H + 3).initial_state(B),
        r"state.h must have shape \(1, 3, 5\), got \(1, 3, 8\)",
    ),
    "more layers": (
        lambda _: SkipLSTM(D, H, 2).initial_state(B),
        r"state.h must have shape \(1, 3, 5\), got \(2, 3, 5\)",
    ),
    "of a GRU": (lambda _: SkipGRU(D, H).initial_state(B), "the state has no c, as a GRU's, but this is an LSTM"),
    "h of float64": (
        lambda layer: converted(layer.initial_state(B), "h"),
        r"state.h must be torch.float32, .* got torch.float64: pass state.h.float\(\), or make the layer layer.double",
    ),
    "c of float64": (lambda layer: converted(layer.initial_state(B), "c"), "state.c must be torch.float32"),
    "p of float64": (
        lambda layer: converted(layer.initial_state(B), "update_prob"),
        r"state.update_prob must be torch.float32, .* pass state.update_prob.float\(\)$",
    ),
    "a of float64": (
        lambda layer: converted(layer.initial_state(B), "accumulated"),
        "state.accumulated must be torch.float32",
    ),
    "all of float64": (
        lambda layer: converted(layer.initial_state(B), "h", "c", "update_prob", "accumulated"),
        "state.h must be torch.float32",
    ),
    "on another device": (
        lambda _: SkipLSTM(D, H, device="meta").initial_state(B),
        r"state.h is on meta, the layer on cpu: pass state.h.to\('cpu'\), or move the layer with layer.to\('meta'\)",
    ),
}


@each_backend
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_state_that_does_not_fit_is_refused(backend: Backend, wrong: str) -> None:
    layer = build(dtype=torch.float32, backend=backend)
    make, message = WRONG_STATES[wrong]
    x = drawn(T, B, D, dtype=torch.float32)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=message):
            layer(x, make(layer))
    with pytest.raises(ValueError, match=message):
        layer.step(x[0], make(layer))


@pytest.mark.parametrize("wrong", ["p of other rows", "other hidden size", "of a GRU", "p of float64", "a of float64"])
def test_a_wait_refuses_a_state_that_does_not_fit(wrong: str) -> None:
    layer = build(dtype=torch.float32)
    with pytest.raises(ValueError, match="state"):
        layer.skip(WRONG_STATES[wrong][0](layer), 0)


@each_backend
def test_the_state_of_an_lstm_is_refused_by_a_gru(backend: Backend) -> None:
    layer = build("gru", dtype=torch.float32, backend=backend)
    with pytest.raises(ValueError, match="the state has a c, as an LSTM's, but this is a GRU"):
        layer(drawn(T, B, D, dtype=torch.float32), SkipLSTM(D, H).initial_state(B))


@each_backend
@pytest.mark.parametrize(
    ("given", "of_layer", "advice"),
    [
        (torch.float64, torch.float32, r"pass x.float\(\), or make the layer layer.double\(\)"),
        (torch.float32, torch.float64, r"pass x.double\(\), or make the layer layer.float\(\)"),
        (torch.bfloat16, torch.float32, r"pass x.float\(\), or make the layer layer.bfloat16\(\)"),
        (torch.float32, torch.float16, r"pass x.half\(\), or make the layer layer.float\(\)"),
        (torch.int64, torch.float32, r"pass x.float\(\)$"),
    ],
)
def test_an_input_of_another_dtype_is_refused(
    backend: Backend, given: torch.dtype, of_layer: torch.dtype, advice: str
) -> None:
    layer = build(dtype=of_layer, backend=backend)
    for gradients in (True, False):
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises(ValueError, match=f"x must be {of_layer}, as update_weight asks, got {given}: {advice}"),
        ):
            layer(torch.ones(T, B, D, dtype=given))


@each_backend
def test_an_input_on_another_device_is_refused(backend: Backend) -> None:
    layer = build(dtype=torch.float32, backend=backend)
    with pytest.raises(ValueError, match=r"x is on meta, the layer on cpu: pass x.to\('cpu'\)"):
        layer(torch.ones(T, B, D, device="meta"))


@each_backend
@pytest.mark.parametrize(
    "name",
    ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1", "norm_weight_l0", "norm_bias_l1", "update_bias"],
)
def test_a_parameter_that_does_not_fit_the_others_is_refused(backend: Backend, name: str) -> None:
    x = drawn(T, B, D, dtype=torch.float32)
    layer = build(num_layers=2, dtype=torch.float32, backend=backend, layer_norm=True)
    right = getattr(layer, name)
    setattr(layer, name, nn.Parameter(right.detach().double()))
    with pytest.raises(ValueError, match=rf"{name} must be torch.float32, .* got torch.float64: .* layer.float\(\)"):
        layer(x)
    setattr(layer, name, nn.Parameter(right.detach()[1:]))
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        layer(x)


def gradients_twice(layer: nn.Module, x: Tensor, **call: Any) -> list[Tensor]:
    """The gradients of a penalty on the gradients by x and by the parameters, unevenly."""
    x = x.clone().requires_grad_()
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    first = torch.autograd.grad(
        total(lambda x: layer(x, **call), x), [x, *parameters], create_graph=True, allow_unused=True
    )
    penalty = sum(((k + 1) * each.square().sum() for k, each in enumerate(first) if each is not None), x.new_zeros(()))
    return list(torch.autograd.grad(penalty, [x, *parameters], allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("backend", ["auto", "event", "cpp"])
@each_cell
@pytest.mark.parametrize("call", ["learned", "padded", "recorded"])
def test_gradients_have_the_gradients_of_the_reference(backend: Backend, cell: str, call: str) -> None:
    layer = build(cell, num_layers=2, batch_first=True)
    arguments: dict[str, Any] = {}
    if call != "learned":
        arguments["lengths"] = torch.tensor([T, 0, 3])
    if call == "recorded":
        arguments["gates"] = (drawn(B, T, seed=5) > 0).double()
    layer.bias_ih_l0.requires_grad_(False)
    layer.weight_ih_l1 = layer.weight_hh_l1 if cell == "lstm" else layer.weight_ih_l1  # tied
    layer.backend = "reference"
    expected = gradients_twice(layer, drawn(B, T, D), **arguments)
    layer.backend = backend
    for ours, theirs in zip(gradients_twice(layer, drawn(B, T, D), **arguments), expected, strict=True):
        assert_close(ours, theirs)


def test_with_every_gate_open_gradients_of_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    dense = nn.LSTM(D, H, dtype=torch.float64)
    layer = SkipLSTM.from_dense(dense, update_bias=50.0)
    for fixed in (layer.update_weight, layer.update_bias, layer.initial_h, layer.initial_c):
        fixed.requires_grad_(False)
    x = drawn(T, B, D)
    for ours, theirs in zip(gradients_twice(layer, x), gradients_twice(dense, x), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["auto", "event", "cpp"])
def test_several_gradients_at_once(backend: Backend) -> None:
    layer, x = build(backend=backend), drawn(T, B, D).requires_grad_()
    output, _, _ = layer(x)
    grads = drawn(2, *output.shape, seed=3)
    (together,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, retain_graph=True)
    for each, single in zip(together, grads, strict=True):
        assert_close(each, torch.autograd.grad(output, x, single, retain_graph=True)[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_mode_derivatives_are_those_of_reverse_mode(backend: Backend, gradients: bool) -> None:
    layer, x, v = build(backend=backend), drawn(T, B, D), drawn(T, B, D, seed=2)
    (by_x,) = torch.autograd.grad(total(layer, x.requires_grad_()), x)
    x, expected = x.detach(), (by_x * v).sum()
    with torch.set_grad_enabled(gradients):
        assert_close(jvp(lambda x: total(layer, x), (x,), (v,))[1].detach(), expected)
        assert_close(jacfwd(lambda x: total(layer, x))(x).detach(), by_x)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(total(layer, forward_ad.make_dual(x, v))).tangent
        assert tangent is not None
        assert_close(tangent.detach(), expected)
    assert_close(torch.autograd.functional.jvp(lambda x: total(layer, x), x, v)[1].detach(), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@each_cell
def test_reverse_mode_transforms_equal_autograd(backend: Backend, cell: str) -> None:
    layer, x = build(cell, backend=backend), drawn(T, B, D)
    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    single = [torch.autograd.grad(total(layer, x[:, [row]]), list(parameters.values())) for row in range(B)]

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return total(lambda x: functional_call(layer, parameters, (x,)), x[:, None])

    per_row = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for place, name in enumerate(parameters):
        assert_close(grad(loss)(parameters, x[:, 0])[name], single[0][place])
        assert_close(per_row[name], torch.stack([gradients[place] for gradients in single]))
    y = x.clone().requires_grad_()
    assert_close(jacrev(lambda x: total(layer, x))(x).detach(), torch.autograd.grad(total(layer, y), y)[0])


def test_an_ensemble_is_its_members_and_second_derivatives_agree() -> None:
    members, x = [build(), build(update_bias=0.5)], drawn(T, B, D)
    parameters, buffers = stack_module_state(list[nn.Module](members))
    base = copy.deepcopy(members[0]).to("meta")
    together = vmap(lambda p, b: functional_call(base, (p, b), (x,))[0])(parameters, buffers)
    for output, member in zip(together, members, strict=True):
        assert_close(output.detach(), member(x)[0].detach())
    small = x[:2, :1]
    twice = torch.autograd.functional.hessian(lambda x: total(members[0], x), small)
    assert_close(hessian(lambda x: total(members[0], x))(small).detach(), twice.detach())


@pytest.mark.parametrize("backend", ["event", "cpp", "triton"])
def test_a_backend_that_was_named_says_that_it_has_no_transforms(backend: Backend) -> None:
    layer, x = build(backend=backend), drawn(T, B, D)
    with pytest.raises(ValueError, match=f"backend '{backend}' cannot do this .* use backend='auto' or 'reference'"):
        vmap(lambda x: layer(x[:, None])[0], in_dims=1)(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@each_cpu_backend
@pytest.mark.parametrize("gradients", [True, False])
def test_a_recording_computes_what_the_layer_does(backend: Backend, gradients: bool) -> None:
    layer = build(backend=backend, batch_first=True)
    example, other = drawn(B, T, D), drawn(B, T, D, seed=2)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(layer, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        graph = make_fx(lambda x: layer(x)[0])(example)
    for x in (example, other):
        expected = layer(x)[0].detach()
        assert_close(traced(x)[0].detach(), expected)
        assert_close(graph(x).detach(), expected)


@each_cpu_backend
@each_cell
@pytest.mark.parametrize("gradients", [True, False])
def test_tensors_without_values_give_shapes(backend: Backend, cell: str, gradients: bool) -> None:
    layer = build(cell, num_layers=2, backend=backend)
    x = drawn(T, B, D)
    answers = layer(x)
    hollow = copy.deepcopy(layer).to("meta")
    with torch.set_grad_enabled(gradients):
        of_meta = hollow(x.to("meta"))
        with FakeTensorMode(allow_non_fake_inputs=True):
            of_fake = layer(torch.empty(T, B, D, dtype=x.dtype))
    for found in (of_meta, of_fake):
        assert found[0].shape == answers[0].shape
        assert found[2].shape == answers[2].shape
        assert [part is not None and part.shape for part in found[1]] == [
            part is not None and part.shape for part in answers[1]
        ]
    if gradients:
        of_meta[0].sum().backward()
        assert all(
            parameter.grad is None or parameter.grad.shape == parameter.shape for parameter in hollow.parameters()
        )


def test_a_compiled_model_takes_random_gates_of_any_length() -> None:
    layer = torch.compile(build(gate=RandomGate(0.5)).train(), backend="eager")
    for num_steps in (5, 9):
        assert layer(drawn(num_steps, B, D))[0].shape == (num_steps, B, H)


def test_transforms_can_be_compiled() -> None:
    layer, x = build(), drawn(T, B, D)
    by_x = grad(lambda x: total(layer, x))
    assert_close(torch.compile(by_x, backend="eager")(x).detach(), by_x(x).detach())


@pytest.mark.parametrize("backend", ["auto", "reference", "event"])
@each_cell
def test_layer_normalisation_is_refused_by_cpp_and_computed_by_event(backend: Backend, cell: str) -> None:
    layer, x = build(cell, num_layers=2, layer_norm=True, backend="reference"), drawn(T, B, D)
    expected = layer(x)
    layer.backend = backend
    output, _, gates = layer(x)
    assert torch.equal(gates, expected[2])
    assert_close(output, expected[0])
    layer.backend = "cpp"
    with pytest.raises(ValueError, match=r"cannot do this \(layer normalisation\): use backend='auto' or 'event'"):
        layer(x)


@each_cpu_backend
@pytest.mark.parametrize("gates", [None, torch.ones(T, B)])
def test_a_row_that_reads_nan_is_named(backend: Backend, gates: Tensor | None) -> None:
    layer, x = build("gru", update_bias=30.0, backend=backend), drawn(T, B, D)
    x[4, 1] = float("nan")
    with pytest.raises(ValueError, match=r"rows \[1\] became NaN: their x or state, or the weights, are not finite"):
        layer(x, gates=gates)


@each_cpu_backend
def test_values_out_of_range_are_refused(backend: Backend) -> None:
    layer = build("gru", backend=backend)
    with pytest.raises(ValueError, match=r"lengths must be within 0\.\.7, the steps of x, got \[8, 1, 7\]"):
        layer(drawn(T, B, D), lengths=torch.tensor([8, 1, 7]))
    with pytest.raises(ValueError, match="gates must be 0 or 1"):
        layer(drawn(T, B, D), gates=torch.full((T, B), 0.5))


@each_fast_backend
def test_gates_that_want_a_gradient_are_for_the_reference(backend: Backend) -> None:
    layer = build("gru", backend=backend)
    with pytest.raises(
        ValueError, match=rf"'{backend}' cannot do this \(gates that want a gradient\): use .*'reference'"
    ):
        layer(drawn(T, B, D), gates=torch.ones(T, B, requires_grad=True))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of auto, reference, event, cpp, triton, got 'cuda'"):
        SkipGRU(2, 3, backend="cuda")  # type: ignore[arg-type]


@each_fast_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_torch_finds_the_operator_in_order(backend: Backend, cell: str) -> None:
    """torch.library.opcheck: schema, autograd registration, fake tensors, and ahead-of-time autograd with gradients."""
    weights = build(cell, num_layers=2).weights()
    parameters = [
        *(tensor for each in weights.layers for tensor in each[:4]),
        weights.update_weight,
        weights.update_bias,
    ]
    h = drawn(2, B, H).requires_grad_()
    c = drawn(2, B, H, seed=2).requires_grad_() if cell == "lstm" else None
    one = torch.ones(B, dtype=torch.float64)
    x = drawn(T, B, D).requires_grad_()
    torch.library.opcheck(
        torch.ops.skipreel.skip_rnn.default,
        (x, h, c, one, 0 * one, parameters, None, None, cell, backend, False, True),
    )


@each_fast_backend
def test_a_compiled_model_gives_the_same_without_a_break(backend: Backend) -> None:
    layer = build("gru", num_layers=2, backend=backend)
    head = nn.Linear(H, 2, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        output, _, gates = layer(torch.tanh(x))
        return head(output).square().mean() + gates.mean()

    x = drawn(T, B, D)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(model(x), list(layer.parameters()))
    actual = torch.autograd.grad(compiled(x), list(layer.parameters()))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@each_fast_backend
def test_autocast_leaves_the_recurrence_in_float32(backend: Backend) -> None:
    layer = build(dtype=torch.float32, backend=backend)
    x = drawn(T, B, D, dtype=torch.float32)
    outside = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
        narrow, _, _ = layer(x.bfloat16())
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[2], outside[2])
    assert narrow.dtype == torch.float32
