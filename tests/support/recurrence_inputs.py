"""Inputs of the recurrence, its results by autograd through the reference, and the comparison with them.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from skipreel.models.recurrence.gradients import parameter_gradients
from skipreel.models.recurrence.interface import (
    CellName,
    ForwardInputs,
    ForwardOutputs,
    OutputGrads,
    PreactivationGrads,
    Trace,
)
from skipreel.models.recurrence.operator import CELLS
from skipreel.models.recurrence.reference import LayerWeights, SkipState, SkipWeights, skip_recurrence
from tests.support.tolerances import assert_close

NUM_STEPS, BATCH_SIZE = 11, 5
LENGTHS = torch.tensor([11, 0, 6, 1, 8])
GATING = {"open": (1.0, 1.0), "mixed": (-1.5, 1.0), "shut": (-30.0, 1.0), "sharp": (-1.5, 8.0)}
"""Update bias, and how much the gate depends on the state."""


def implementation(name: str) -> Any:
    """The module of models/recurrence/ with this name, loaded where it runs: see models.recurrence.operator."""
    return importlib.import_module(f"skipreel.models.recurrence.{name}")


def make_inputs(
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
) -> ForwardInputs:
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
    return ForwardInputs(leaf(*shape, scale=1.0), state, weights, cell, lengths, gates)


def narrowed(inputs: ForwardInputs) -> ForwardInputs:
    """The same in float32, without gradients."""

    def narrow(t: Tensor | None) -> Any:
        return None if t is None else t.detach().float()

    weights = inputs.weights
    layers = tuple(LayerWeights(*map(narrow, layer)) for layer in weights.layers)
    return inputs._replace(
        x=narrow(inputs.x),
        state=SkipState(*map(narrow, inputs.state)),
        weights=SkipWeights(layers, narrow(weights.update_weight), narrow(weights.update_bias)),
    )


def leaves(inputs: ForwardInputs) -> dict[str, Tensor]:
    named = {"x": inputs.x, **{f"state.{name}": t for name, t in inputs.state._asdict().items()}}
    for depth, layer in enumerate(inputs.weights.layers):
        named |= {f"{name}_l{depth}": t for name, t in layer._asdict().items()}
    named |= {"update_weight": inputs.weights.update_weight, "update_bias": inputs.weights.update_bias}
    return {name: t for name, t in named.items() if t is not None}


def reference(inputs: ForwardInputs) -> list[Tensor | None]:
    """output, h, c, p, a, gates."""
    x, state, weights, cell, lengths, gates = inputs
    output, last, used = skip_recurrence(x, state, weights, cell=CELLS[cell], lengths=lengths, gates=gates)
    return [output, *last, used]


def uneven(parts: list[Tensor | None], *, scale: float = 1.0) -> list[Tensor | None]:
    """Gradients for the parts, each entry another one."""
    generator = torch.Generator().manual_seed(1)
    return [None if p is None else scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parts]


def autograd(inputs: ForwardInputs, parts: list[Tensor | None], upstream: list[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by all leaves through the reference; zeros where none of the parts wants one."""
    pairs = [
        (p, g) for p, g in zip(parts, upstream, strict=True) if p is not None and g is not None and p.requires_grad
    ]
    named = leaves(inputs)
    if not pairs:
        return {name: torch.zeros_like(leaf) for name, leaf in named.items()}
    found = torch.autograd.grad(
        [p for p, _ in pairs], list(named.values()), [g for _, g in pairs], allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, found, strict=True))


def output_grads(inputs: ForwardInputs, upstream: list[Tensor | None]) -> OutputGrads:
    """As autograd hands it on: given gates carry no gradient."""
    return OutputGrads(*upstream)._replace(**({} if inputs.gates is None else {"gates": None}))


def run(name: str, inputs: ForwardInputs, upstream: list[Tensor | None]) -> tuple[ForwardOutputs, dict[str, Tensor]]:
    """The outputs and all gradients of the implementation under test."""
    code = implementation(name)
    outputs = code.forward(inputs, save=True)
    grads = code.backward(inputs, outputs.trace, output_grads(inputs, upstream), needs_x=True)
    return outputs, gradients(inputs, outputs.trace, grads)


def gradients(inputs: ForwardInputs, trace: Trace, grads: PreactivationGrads) -> dict[str, Tensor]:
    """By all leaves, from what a backward returns."""
    by_x, by_weights = parameter_gradients(inputs, trace, grads, needs_x=True)
    assert by_x is not None
    h, *c = grads.states[..., : inputs.state.h.shape[2]].permute(2, 1, 0, 3)
    state = SkipState(h, c[0] if c else None, grads.update_prob, grads.accumulated)
    return leaves(inputs._replace(x=by_x, state=state, weights=by_weights))


def check(name: str, inputs: ForwardInputs, *, scale: float = 1.0) -> None:
    """Both kinds of forward, and every gradient of a loss that depends on everything; scale: of that loss."""
    parts = reference(inputs)
    upstream = uneven(parts, scale=scale)
    outputs, actual = run(name, inputs, upstream)
    for one in (outputs, implementation(name).forward(inputs, save=False)):
        *values, gates = [one.output, *one.state, one.gates]
        assert torch.equal(gates, parts[-1])
        for value, expected in zip(values, parts, strict=False):
            assert (value is None) == (expected is None)
            if value is not None:
                assert_close(value, expected.detach())
    assert_gradients(actual, autograd(inputs, parts, upstream), scale=scale)


def assert_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], *, scale: float = 1.0) -> None:
    """In float32 what counts is the error against the gradient's own size: it is a sum over many steps."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        unit = gradient.abs().max().clamp_min(scale) if gradient.dtype == torch.float32 else scale
        try:
            assert_close(actual[name] / unit, gradient / unit)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
