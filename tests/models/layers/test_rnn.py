"""SkipLSTM and SkipGRU: equal to torch with every gate open, and to themselves padded and in chunks.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import pytest
import torch
from torch import Tensor, nn

from skipreel.models import LearnedGate, SkipGRU, SkipLSTM, SkipState, StridedGate
from skipreel.models.recurrence.gates import Gate
from skipreel.models.recurrence.operator import Backend
from tests.support.layers import CELLS, Layer, drawn, each_cell, each_fast_backend, make_layer, state_tensors
from tests.support.tolerances import assert_close

D, H = 3, 5

each_depth = pytest.mark.parametrize("num_layers", [1, 2, 3])


def loss_of(output: Tensor, state: SkipState, gates: Tensor) -> Tensor:
    """Depends on everything a layer returns, unevenly, so that no gradient cancels."""
    weights = torch.arange(1, output.numel() + 1, dtype=output.dtype).reshape(output.shape) / output.numel()
    steps = torch.arange(1, len(gates) + 1, dtype=gates.dtype)[:, None] / len(gates)
    return (
        (weights * output).sum() + (steps * gates).sum() + sum(tensor.square().sum() for tensor in state_tensors(state))
    )


def gradients(layer: Layer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 0, f"{name} has no gradient to compare"
        assert_close(actual[name], grad)


def test_these_layers_both_update_and_skip() -> None:
    for cell in CELLS:
        for num_layers in (1, 2, 3):
            _, _, gates = make_layer(cell, D, H, num_layers)(drawn(20, 4, D))
            assert 0.1 < gates.mean().item() < 0.9


@each_fast_backend
@each_depth
@pytest.mark.parametrize("gate", [LearnedGate(), StridedGate(1.0)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_with_every_gate_open_it_is_torchs_layer_and_converts_both_ways(
    kind: type[nn.LSTM | nn.GRU], gate: Gate, num_layers: int, backend: Backend
) -> None:
    torch.manual_seed(0)
    peer = kind(D, H, num_layers, dtype=torch.float64)
    layer = (SkipLSTM if kind is nn.LSTM else SkipGRU).from_dense(peer, update_bias=30.0, backend=backend)
    layer.gate = gate
    nn.init.normal_(layer.initial_h)
    if isinstance(layer, SkipLSTM):
        nn.init.normal_(layer.initial_c)
    back = layer.to_dense()
    assert all(torch.equal(back.get_parameter(name), parameter) for name, parameter in peer.named_parameters())
    h0 = layer.initial_h.detach().expand(-1, 4, -1).clone().requires_grad_()
    c0 = layer.initial_c.detach().expand(-1, 4, -1).clone().requires_grad_() if isinstance(layer, SkipLSTM) else None
    x, x_peer = drawn(7, 4, D).requires_grad_(), drawn(7, 4, D).requires_grad_()

    output, state, gates = layer(x)
    expected, last = peer(x_peer, h0 if c0 is None else (h0, c0))
    h_last, c_last = (last, None) if c0 is None else last
    assert gates.eq(1).all()
    assert_close(output, expected)
    assert_close(state.h, h_last)
    if c_last is not None:
        assert_close(state.c, c_last)

    def loss(out: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        weights = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape) / out.numel()
        return (weights * out).sum() + h.square().sum() + (0 if c is None else c.square().sum())

    loss(output, state.h, state.c).backward()
    loss(expected, h_last, c_last).backward()
    for name, parameter in peer.named_parameters():
        assert_close(layer.get_parameter(name).grad, parameter.grad)
    assert_close(x.grad, x_peer.grad)
    assert_close(layer.initial_h.grad, h0.grad.sum(1, keepdim=True))
    if c0 is not None:
        assert_close(layer.initial_c.grad, c0.grad.sum(1, keepdim=True))


def test_reset_before_is_the_default_and_is_not_torchs_gru() -> None:
    default, after = make_layer("gru", D, H), make_layer("gru_reset_after", D, H)
    after.load_state_dict(default.state_dict())
    assert not torch.allclose(default(drawn(5, 2, D))[0], after(drawn(5, 2, D))[0])


@each_cell
@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradients_under_recorded_gates_are_those_of_finite_differences(cell: str, num_layers: int) -> None:
    layer = make_layer(cell, D, H, num_layers)
    x = drawn(4, 2, D).requires_grad_()
    recorded = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        call = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), {"gates": recorded})
        return torch.cat([call[0].flatten(), *(tensor.flatten() for tensor in state_tensors(call[1]))])

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


@each_cell
@pytest.mark.parametrize("num_layers", [1, 2])
def test_padding_changes_nothing(cell: str, num_layers: int) -> None:
    layer = make_layer(cell, D, H, num_layers)
    x, lengths = drawn(9, 3, D), torch.tensor([9, 1, 4])
    padded = x.clone()
    for row, length in enumerate(lengths.tolist()):
        padded[length:, row] = torch.nan  # padding is never read
    output, state, gates = layer(padded, lengths=lengths)
    loss = torch.zeros((), dtype=x.dtype)
    expected_loss = torch.zeros((), dtype=x.dtype)
    for row, length in enumerate(lengths.tolist()):
        alone, last, alone_gates = layer(x[:length, row : row + 1])
        assert_close(output[:length, row], alone[:, 0])
        assert_close(output[length:, row], alone[-1].expand(9 - length, -1))
        assert torch.equal(gates[:length, row], alone_gates[:, 0])
        assert gates[length:, row].eq(0).all()
        of_row = SkipState(
            *(None if tensor is None else tensor[..., row : row + 1, :] for tensor in state[:2]), *state[2:]
        )
        of_row = of_row._replace(
            update_prob=state.update_prob[row : row + 1], accumulated=state.accumulated[row : row + 1]
        )
        for actual, expected in zip(state_tensors(of_row), state_tensors(last), strict=True):
            assert_close(actual, expected)
        loss = loss + loss_of(output[:length, row : row + 1], of_row, gates[:length, row : row + 1])
        expected_loss = expected_loss + loss_of(alone, last, alone_gates)
    assert_same_gradients(gradients(layer, loss), gradients(layer, expected_loss))


@each_fast_backend
@each_cell
@pytest.mark.parametrize("cuts", [[1], [3, 4], [8], [1, 2, 10]])
def test_chunks_equal_the_whole(backend: Backend, cell: str, cuts: list[int]) -> None:
    layer = make_layer(cell, D, H, 2, backend=backend)
    x = drawn(11, 3, D)
    whole = layer(x)
    outputs, gates, state = [], [], None
    for chunk in torch.tensor_split(x, cuts):
        output, state, used = layer(chunk, state)
        outputs.append(output)
        gates.append(used)
    assert state is not None
    joined = (torch.cat(outputs), state, torch.cat(gates))
    assert torch.equal(joined[2], whole[2])
    assert_close(joined[0], whole[0])
    for actual, expected in zip(state_tensors(state), state_tensors(whole[1]), strict=True):
        assert_close(actual, expected)
    assert_same_gradients(gradients(layer, loss_of(*joined)), gradients(layer, loss_of(*whole)))


@each_cell
def test_recorded_gates_give_the_run_that_they_came_from(cell: str) -> None:
    layer = make_layer(cell, D, H)
    output, _, gates = layer(drawn(12, 3, D))
    again, _, given_back = layer(drawn(12, 3, D), gates=gates.detach().bool())
    assert_close(again, output)
    assert torch.equal(given_back, gates)


@each_cell
def test_batch_first_is_the_same_transposed(cell: str) -> None:
    layer, batch_first = make_layer(cell, D, H), make_layer(cell, D, H, batch_first=True)
    lengths, recorded = torch.tensor([6, 2]), torch.ones(2, 6)
    output, _, gates = layer(drawn(6, 2, D), lengths=lengths)
    swapped, _, swapped_gates = batch_first(drawn(6, 2, D).transpose(0, 1), lengths=lengths)
    assert_close(swapped.transpose(0, 1), output)
    assert torch.equal(swapped_gates.T, gates)
    assert batch_first(drawn(6, 2, D).transpose(0, 1), gates=recorded)[2].shape == (2, 6)


@each_cell
def test_one_step_of_one_row_is_an_update(cell: str) -> None:
    layer = make_layer(cell, D, H)
    output, state, gates = layer(drawn(1, 1, D))
    stepped, after, _ = layer.step(drawn(1, 1, D)[0])
    assert output.shape == (1, 1, H)
    assert gates.tolist() == [[1.0]]
    assert_close(output[0], stepped)
    assert_close(state.update_prob, after.update_prob)
    assert state.accumulated.tolist() == [0.0]


@each_cell
@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_the_gate_path_stays_float32(cell: str, autocast: bool) -> None:
    narrow, wide = torch.bfloat16, torch.float32
    layer = make_layer(cell, D, H, 2, dtype=wide if autocast else narrow)
    x = drawn(6, 3, D, dtype=wide if autocast else narrow)
    with torch.autocast("cpu", dtype=narrow, enabled=autocast):
        output, state, gates = layer(x)
    assert output.dtype == (wide if autocast else narrow)
    assert {gates.dtype, state.update_prob.dtype, state.accumulated.dtype} == {wide}
    exact = state.update_prob.bfloat16().float()
    assert not torch.equal(state.update_prob, exact)  # it never went through bfloat16
    recorded = make_layer(cell, D, H, 2, dtype=wide)
    recorded.load_state_dict(layer.state_dict())
    expected, _, _ = recorded(x.float(), gates=gates.detach())
    assert_close(output.bfloat16(), expected.bfloat16())


@pytest.mark.parametrize("layer", [SkipLSTM(D, H, 2), SkipGRU(D, H, 2)])
def test_parameters_are_named_and_shaped_as_torchs(layer: Layer) -> None:
    is_lstm = isinstance(layer, SkipLSTM)
    peer = (nn.LSTM if is_lstm else nn.GRU)(D, H, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in peer.named_parameters()}
    shapes |= {"update_weight": (1, H), "update_bias": (1,), "initial_h": (2, 1, H)}
    shapes |= {"initial_c": (2, 1, H)} if is_lstm else {}
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == shapes


def test_initialisation_is_the_released_codes() -> None:
    torch.manual_seed(0)
    lstm, gru = SkipLSTM(30, 40, 2), SkipGRU(30, 40, 2, update_bias=0.25)
    assert lstm.update_bias.item() == 1.0
    assert gru.update_bias.item() == 0.25
    assert lstm.bias_ih_l1.tolist() == [0.0] * 40 + [1.0] * 40 + [0.0] * 80
    assert gru.bias_ih_l0.tolist() == [1.0] * 80 + [0.0] * 40
    assert lstm.bias_hh_l0.eq(0).all()
    assert gru.bias_hh_l1.eq(0).all()
    for matrix, fan in ((lstm.weight_ih_l0, 30 + 40), (gru.weight_hh_l1, 40 + 40), (gru.update_weight, 40 + 1)):
        bound = (6 / fan) ** 0.5
        assert 0.8 * bound < matrix.abs().max().item() <= bound
    assert 0.6 < lstm.initial_c.std().item() < 1.4


def test_what_torch_has_no_counterpart_of_is_not_converted() -> None:
    with pytest.raises(ValueError, match=r"SkipLSTM takes over a torch.nn.LSTM, not one with the kind GRU"):
        SkipLSTM.from_dense(nn.GRU(3, 4))
    with pytest.raises(ValueError, match=r"not one with bidirectional=True"):
        SkipGRU.from_dense(nn.GRU(3, 4, bidirectional=True))
    with pytest.raises(ValueError, match="not one with proj_size"):
        SkipLSTM.from_dense(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(ValueError, match="only without layer_norm, and for a GRU with reset_after"):
        SkipGRU(3, 4).to_dense()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(4, 2, D + 1)}, r"x must be \(T, B, D\) with D = 3.*got shape \(4, 2, 4\)"),
        ({"x": torch.zeros(D)}, r"got shape \(3,\)"),
        ({"x": torch.zeros(0, 2, D)}, r"at least 1 step and 1 row, got shape \(0, 2, 3\)"),
        ({"x": torch.zeros(4, 2, D), "lengths": torch.tensor([5, 1])}, r"within 0\.\.4, the steps of x, got \[5, 1\]"),
        ({"x": torch.zeros(4, 2, D), "lengths": torch.tensor([4])}, r"\(2,\) integers, got \(1,\)"),
        ({"x": torch.zeros(4, 2, D), "gates": torch.ones(2, 4)}, r"gates must have shape \(4, 2\).*got \(2, 4\)"),
        ({"x": torch.zeros(4, 2, D), "gates": torch.full((4, 2), 0.5)}, "gates must be 0 or 1"),
    ],
)
def test_malformed_input_is_refused(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SkipGRU(D, H)(**arguments)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size must be 1 or more, got 0"):
        SkipLSTM(D, 0)
    with pytest.raises(ValueError, match=r"x must be \(B, 3\).*got shape \(2, 4\)"):
        SkipLSTM(D, H).step(torch.zeros(2, 4))
