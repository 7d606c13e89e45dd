"""What nn.LSTM and nn.GRU take, the layers take too, held equal to those with every gate open; and states are saved.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import io
from collections.abc import Callable
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from skipreel.models import SkipGRU, SkipLSTM, SkipState, StridedGate
from skipreel.models.recurrence import cpp, event
from skipreel.models.recurrence.cpp.build import library
from tests.support.layers import drawn
from tests.support.tolerances import assert_close

D, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 3]
each_kind = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])


def pair(kind: type[nn.LSTM] | type[nn.GRU], num_layers: int = 2, **arguments: Any) -> tuple[Any, Any]:
    """torch's layer, and ours with its weights and every gate open."""
    torch.manual_seed(0)
    dense = kind(D, H, num_layers, dtype=torch.float64, **arguments)
    layer = (SkipLSTM if kind is nn.LSTM else SkipGRU).from_dense(dense)
    layer.gate = StridedGate(1.0)
    return dense, layer


def start(kind: type[nn.Module], *shape: int) -> Any:
    h, c = drawn(*shape, H, seed=2), drawn(*shape, H, seed=3)
    return (h, c) if kind is nn.LSTM else h


def assert_same_state(state: SkipState, expected: Any) -> None:
    for ours, theirs in zip(state[:2], expected if isinstance(expected, tuple) else (expected, None), strict=True):
        if theirs is not None:
            assert_close(ours, theirs)


@each_kind
@pytest.mark.parametrize("shape", [(T, B), (T,)])
def test_a_batch_or_one_sequence_starts_from_torchs_state(kind: Any, shape: tuple[int, ...]) -> None:
    dense, layer = pair(kind, batch_first=len(shape) == 1)
    x, state = drawn(*shape, D), start(kind, 2, *shape[1:])
    for given in (state, None):
        output, last, gates = layer(x, given)
        expected, expected_last = dense(x, given)
        assert_close(output, expected)
        assert_same_state(last, expected_last)
        assert gates.shape == shape
        assert last.accumulated.shape == shape[1:]


def test_one_sequence_in_chunks_is_the_whole() -> None:
    layer = SkipLSTM(D, H, 2, update_bias=-1.5, dtype=torch.float64)
    x = drawn(T, D)
    whole, last, gates = layer(x)
    first, state, _ = layer(x[:2])
    second, state, _ = layer(x[2:], state)
    assert_close(torch.cat([first, second]), whole)
    assert_close(state.update_prob, last.update_prob)
    assert_close(layer(x, gates=gates.detach())[0], whole)


@each_kind
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences_come_back_packed(kind: Any, enforce_sorted: bool) -> None:
    dense, layer = pair(kind)
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else LENGTHS
    ours, theirs = drawn(T, B, D).requires_grad_(), drawn(T, B, D).requires_grad_()
    state = start(kind, 2, B)
    output, last, gates = layer(pack_padded_sequence(ours, lengths, enforce_sorted=enforce_sorted), state)
    expected, expected_last = dense(pack_padded_sequence(theirs, lengths, enforce_sorted=enforce_sorted), state)
    assert isinstance(output, PackedSequence)
    assert_close(output.data, expected.data)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(output, field), getattr(expected, field)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert_same_state(last, expected_last)
    assert gates.data.tolist() == [1.0] * sum(lengths)
    output.data.square().sum().backward()
    expected.data.square().sum().backward()
    assert_close(ours.grad, theirs.grad)


def test_packed_gates_are_the_padded_ones_and_can_be_given_back() -> None:
    torch.manual_seed(0)
    layer = SkipGRU(D, H, update_bias=-1.5, dtype=torch.float64)
    x = drawn(T, B, D)
    output, _, gates = layer(x, lengths=LENGTHS)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    given, _, used = layer(packed)
    assert 0 < gates.mean().item() < 0.5
    assert_close(given.data, pack_padded_sequence(output, LENGTHS, enforce_sorted=False).data)
    assert torch.equal(pad_packed_sequence(used)[0], gates)
    again, _, _ = layer(packed, gates=used._replace(data=used.data.detach()))
    assert_close(again.data, given.data)
    with pytest.raises(ValueError, match="gates must be packed where x is, and only there, got a Tensor"):
        layer(packed, gates=gates.detach())


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda given: np.array(given, np.int32)])
def test_lengths_may_be_any_sequence_of_integers(form: Callable[[list[int]], Any]) -> None:
    layer = SkipGRU(D, H, dtype=torch.float64)
    x = drawn(T, B, D)
    assert torch.equal(layer(x, lengths=form(LENGTHS))[0], layer(x, lengths=torch.tensor(LENGTHS))[0])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (SkipGRU, {"lengths": [True] * B}, r"lengths must be \(4,\) integers, got \(4,\) of torch.bool"),
        (SkipGRU, {"lengths": [1.0] * B}, r"lengths must be \(4,\) integers, got \(4,\) of torch.float32"),
        (SkipGRU, {"lengths": [1]}, r"lengths must be \(4,\) integers, got \(1,\)"),
        (SkipLSTM, {"state": torch.zeros(1, B, H)}, r"a SkipState or \(h, c\), as torch.nn.LSTM's, got a Tensor"),
        (SkipLSTM, {"state": (torch.zeros(1, B, H),)}, r"a SkipState or \(h, c\)"),
        (SkipGRU, {"state": (torch.zeros(1, B, H),) * 2}, "a SkipState or a tensor h, as torch.nn.GRU's, got a tuple"),
        (SkipGRU, {"state": torch.zeros(2, B, H)}, r"state.h must have shape \(1, 4, 5\), got \(2, 4, 5\)"),
        (SkipLSTM, {"state": (torch.zeros(1, B, 8),) * 2}, r"state.h must have shape \(1, 4, 5\), got \(1, 4, 8\)"),
        (SkipGRU, {"x": torch.zeros(T, D), "state": torch.zeros(1, 1, H)}, r"state.h must be \(L, H\), got shape"),
        (SkipGRU, {"x": torch.zeros(T, D), "lengths": [T]}, "lengths are for a padded batch"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make(D, H)(**{"x": torch.zeros(T, B, D), **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["bidirectional", "proj_size", "nonlinearity"])
def test_an_argument_of_torchs_that_is_missing_is_named(name: str) -> None:
    for make in (SkipLSTM, SkipGRU):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            make(D, H, **{name: 1})


@pytest.mark.parametrize("layer", [SkipLSTM(D, H, 2), SkipGRU(D, H)])
def test_a_saved_state_is_loaded_as_weights_only(layer: SkipLSTM | SkipGRU) -> None:
    state, file = layer(torch.zeros(T, B, D))[1], io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, SkipState)
    assert torch.equal(loaded.update_prob, state.update_prob)


def test_an_exported_layer_is_saved() -> None:
    layer, file = SkipGRU(D, H).eval(), io.BytesIO()
    x = torch.randn(T, B, D)
    with torch.no_grad():
        torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    output, state, _ = torch.export.load(file).module()(x)
    assert_close(output, layer(x)[0].detach())
    assert isinstance(state, SkipState)


@pytest.mark.parametrize("make", [SkipLSTM, SkipGRU])
@pytest.mark.parametrize("implementation", [cpp, event])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_layers_are_computed_in_float32_by_the_fast_implementations(
    make: Any, implementation: Any, dtype: torch.dtype
) -> None:
    if implementation is cpp and library() is None:
        pytest.skip("the C++ implementation cannot be built here")
    torch.manual_seed(0)
    layer = make(D, H, 2, update_bias=-1.5, backend=implementation.__name__.rsplit(".", maxsplit=1)[-1]).to(dtype)
    x = torch.randn(T, B, D).to(dtype).requires_grad_()
    with mock.patch.object(implementation, "forward", wraps=implementation.forward) as forward:
        output, state, gates = layer(x)
    assert forward.call_args.args[0].x.dtype == torch.float32
    assert (output.dtype, state.h.dtype, gates.dtype, state.update_prob.dtype) == (dtype, dtype, *[torch.float32] * 2)
    output.float().square().sum().backward()
    wide = make(D, H, 2, backend="reference")
    wide.load_state_dict(layer.state_dict())
    exact = x.detach().float().requires_grad_()
    expected, _, expected_gates = wide(exact)
    assert torch.equal(gates, expected_gates)
    assert_close(output.bfloat16(), expected.bfloat16())
    expected.backward(2 * output.detach().float())
    assert x.grad is not None
    assert_close(x.grad.bfloat16(), exact.grad.bfloat16())  # type: ignore[union-attr]
    assert layer.update_weight.grad.dtype == dtype
    layer.backend = "reference"
    assert_close(layer(x, gates=gates.detach())[0].bfloat16(), output.bfloat16())


@each_kind
def test_without_biases_it_is_torchs_layer_without_them(kind: Any) -> None:
    dense, layer = pair(kind, bias=False)
    ours, theirs = drawn(T, B, D).requires_grad_(), drawn(T, B, D).requires_grad_()
    output, expected = layer(ours)[0], dense(theirs)[0]
    assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in dense.named_parameters():
        assert_close(layer.get_parameter(name).grad, parameter.grad)
    back = layer.to_dense()
    assert not back.bias
    assert back.state_dict().keys() == dense.state_dict().keys()
    assert not any(name.startswith("bias") for name in layer.state_dict())


@each_kind
def test_dropout_acts_between_layers_at_every_step_as_torchs(kind: Any) -> None:
    dense, layer = pair(kind, dropout=0.5)
    x, masks, step = drawn(T, B, D), 2.0 * (drawn(T, B, H, seed=5) > 0), count()
    with mock.patch("skipreel.models.recurrence.reference.F.dropout", side_effect=lambda h, _: h * masks[next(step)]):
        output = layer(x)[0]
    assert next(step) == T
    lower, upper = (kind(size, H, dtype=torch.float64) for size in (D, H))
    lower.load_state_dict({name: value for name, value in dense.state_dict().items() if name.endswith("l0")})
    upper.load_state_dict({name[:-1] + "0": value for name, value in dense.state_dict().items() if "l1" in name})
    assert_close(output, upper(lower(x)[0] * masks)[0])


@each_kind
def test_dropout_of_everything_is_torchs_and_in_evaluation_there_is_none(kind: Any) -> None:
    dense, layer = pair(kind, num_layers=3, dropout=1.0)
    x = drawn(T, B, D)
    assert_close(layer(x)[0], dense(x)[0])
    assert layer.to_dense().dropout == 1.0
    dense.eval()
    layer.eval()
    with mock.patch(
        "skipreel.models.recurrence.operator.skip_recurrence", side_effect=AssertionError("the reference is not needed")
    ):
        assert_close(layer(x)[0], dense(x)[0])


def test_dropout_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and at most 1, got 1\.5"):
        SkipLSTM(D, H, 2, dropout=1.5)
    with pytest.warns(UserWarning, match="acts between layers, and there is only 1"):
        SkipGRU(D, H, dropout=0.5)
    with pytest.raises(ValueError, match=r"backend 'event' cannot do this \(dropout between layers\)"):
        SkipLSTM(D, H, 2, dropout=0.5, backend="event")(torch.zeros(T, B, D))
