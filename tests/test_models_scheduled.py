import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import RandomGate, SkipGRU, SkipLSTM, StridedGate
from tolerances import assert_close


def run(layer, x, lengths, gates, *, reference: bool):
    """Output and the gradients of x and of every parameter, through the schedule or through the step-by-step loop."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    layer.gate = StridedGate(1) if not reference else layer.gate
    output, state, used = layer(x, lengths=lengths, gates=gates)
    ((output * torch.linspace(-1, 1, output.numel()).view_as(output).to(output)).sum() + state.h.sum()).backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None and "update" not in name}
    return output, state, used, {"x": x.grad, **gradients}


@given(
    steps=st.integers(1, 9),
    rows=st.integers(1, 4),
    layers=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
    kind=st.sampled_from([SkipLSTM, SkipGRU]),
)
@settings(deadline=None, max_examples=60)
def test_computing_only_the_updates_equals_the_reference(steps, rows, layers, share, seed, kind):
    torch.manual_seed(seed)
    layer = kind(3, 4, layers, dtype=torch.float64)
    x = torch.randn(steps, rows, 3, dtype=torch.float64)
    lengths = torch.randint(1, steps + 1, (rows,))
    gates = (torch.rand(steps, rows) < share).double()
    expected = run(layer, x, lengths, gates, reference=True)
    actual = run(layer, x, lengths, gates, reference=False)
    assert torch.equal(actual[2], expected[2])
    assert_close(actual[0], expected[0])
    assert_close(actual[1].h, expected[1].h)
    assert actual[3].keys() == expected[3].keys()
    for name in expected[3]:
        assert_close(actual[3][name], expected[3][name])


@pytest.mark.parametrize("gate", [StridedGate(2.5), RandomGate(0.5, seed=3)])
def test_frames_outside_the_schedule_are_never_read(gate):
    torch.manual_seed(0)
    layer = SkipGRU(3, 4, gate=gate).eval()
    x = torch.randn(12, 2, 3)
    damaged = x.masked_fill(gate.schedule(12, batch_size=2)[:, :, None] == 0, float("nan"))
    assert torch.equal(layer(damaged)[0], layer(x)[0])
