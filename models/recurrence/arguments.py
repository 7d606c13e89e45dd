"""What every implementation of the recurrence may rely on: one dtype, one device and the right shapes.

C++ gets bare addresses: with a wrong size it would overwrite memory, with a wrong dtype read noise.

Letters: B batch, T steps, D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), N of them that layer
normalisation acts on (LSTM 4, GRU 2).
"""

from typing import Final

import torch
from torch import Tensor

from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.reference import LayerWeights, SkipState, SkipWeights

_CONVERSIONS: Final = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
}


def check_arguments(x: Tensor | None, state: SkipState, weights: SkipWeights, *, cell: CellName) -> None:
    """Raises ValueError unless x, state and weights fit each other; looks at no value.

    x (T, B, D) or (B, D), or None where only a state was given. x, h, c and all parameters have one dtype; the state's
    update_prob and accumulated are float32 or wider. All are on one device.
    """
    like = weights.update_weight
    dtype, device = like.dtype, like.device
    gate_dtype = torch.promote_types(dtype, torch.float32)
    for name, tensor, shape in _expected(x, state, weights, cell):
        wanted = gate_dtype if name in _OF_THE_GATE else dtype
        if tensor.dtype != wanted:
            raise ValueError(_wrong_dtype(name, tensor.dtype, wanted))
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, the layer on {device}: pass {name}.to({str(device)!r}), or move the "
                f"layer with layer.to({str(tensor.device)!r})"
            )


_OF_THE_GATE: Final = ("state.update_prob", "state.accumulated")
_NAMES: Final = LayerWeights._fields


def _expected(
    x: Tensor | None, state: SkipState, weights: SkipWeights, cell: CellName
) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Each tensor by name, and the shape it must have."""
    hidden, depth = weights.update_weight.shape[-1], len(weights.layers)
    rows, normalised = (4 * hidden, 4 * hidden) if cell == "lstm" else (3 * hidden, 2 * hidden)
    width = weights.layers[0].weight_ih.shape[-1]
    expected: list[tuple[str, Tensor, tuple[int, ...]]] = []
    if x is not None:
        expected.append(("x", x, (*x.shape[:-1], width)))
    batch = state.update_prob.numel() if x is None else x.shape[-2]
    of_states = depth, batch, hidden
    expected.append(("state.h", state.h, of_states))
    if (state.c is None) == (cell == "lstm"):
        raise ValueError(
            "the state has no c, as a GRU's, but this is an LSTM: pass a state that this layer made"
            if state.c is None
            else "the state has a c, as an LSTM's, but this is a GRU: pass a state that this layer made"
        )
    if state.c is not None:
        expected.append(("state.c", state.c, of_states))
    expected.append(("state.update_prob", state.update_prob, (batch,)))
    expected.append(("state.accumulated", state.accumulated, (batch,)))
    for index, layer in enumerate(weights.layers):
        shapes = ((rows, width), (rows, hidden), (rows,), (rows,), (normalised,), (normalised,))
        for name, tensor, shape in zip(_NAMES, layer, shapes, strict=True):
            if tensor is not None:
                expected.append((f"{name}_l{index}", tensor, shape))
        width = hidden
    expected.append(("update_weight", weights.update_weight, (1, hidden)))
    expected.append(("update_bias", weights.update_bias, (1,)))
    return expected


def _wrong_dtype(name: str, given: torch.dtype, wanted: torch.dtype) -> str:
    advice = f"pass {name}.{_CONVERSIONS.get(wanted, 'float')}()"
    if given in _CONVERSIONS and name not in _OF_THE_GATE:
        advice += f", or make the layer layer.{_CONVERSIONS[given]}()"
    if not name.startswith(("x", "state")):
        advice = f"all parameters of a layer share one dtype, call layer.{_CONVERSIONS.get(wanted, 'float')}()"
    return f"{name} must be {wanted}, as update_weight asks, got {given}: {advice}"
