"""The parameters of a Skip RNN layer: names and shapes as torch's, initial values, and conversion from and to torch.

Letters: D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), N of them that layer normalisation
acts on (LSTM 4, GRU 2: r and z).
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from skipreel.models.recurrence.reference import LayerWeights, SkipWeights

_BIASES: Final = ("bias_ih", "bias_hh")
_NORMS: Final = ("norm_weight", "norm_bias")


def parameter_shapes(
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    gate_blocks: int,
    normalised_blocks: int,
    bias: bool,
    has_cell_state: bool,
) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter by name, in the order of the state_dict; normalised_blocks is 0 without layer norm.

    Raises:
        ValueError: For a size below 1.
    """
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")
    shapes: dict[str, tuple[int, ...]] = {}
    rows = gate_blocks * hidden_size
    for layer in range(num_layers):
        shapes[f"weight_ih_l{layer}"] = (rows, input_size if layer == 0 else hidden_size)
        shapes[f"weight_hh_l{layer}"] = (rows, hidden_size)
        if bias:
            shapes |= dict.fromkeys((f"{name}_l{layer}" for name in _BIASES), (rows,))
        if normalised_blocks:
            shapes |= dict.fromkeys((f"{name}_l{layer}" for name in _NORMS), (normalised_blocks * hidden_size,))
    shapes |= {"update_weight": (1, hidden_size), "update_bias": (1,), "initial_h": (num_layers, 1, hidden_size)}
    return shapes | ({"initial_c": (num_layers, 1, hidden_size)} if has_cell_state else {})


@torch.no_grad()
def initialise(weights: SkipWeights, *, gate_blocks: int, update_bias: float) -> None:
    """Glorot-uniform matrices, one per gate block, as in the released code; biases 0, gains 1, b_p as given."""
    for layer in weights.layers:
        for matrix in (layer.weight_ih, layer.weight_hh):
            for block in matrix.chunk(gate_blocks):
                nn.init.xavier_uniform_(block)
        layer.bias_ih.zero_()
        layer.bias_hh.zero_()
        if layer.norm_weight is not None and layer.norm_bias is not None:
            layer.norm_weight.fill_(1)
            layer.norm_bias.zero_()
    nn.init.xavier_uniform_(weights.update_weight)
    weights.update_bias.fill_(update_bias)


def gather_weights(layer: Any) -> SkipWeights:
    """The parameters of a layer as the recurrence takes them, with zeros for missing biases."""
    zeros = None if layer.bias else layer.update_weight.new_zeros(layer.gate_blocks * layer.hidden_size)
    names = LayerWeights._fields if layer.layer_norm else LayerWeights._fields[:4]
    layers = (
        LayerWeights(
            *(zeros if zeros is not None and name in _BIASES else getattr(layer, f"{name}_l{index}") for name in names)
        )
        for index in range(layer.num_layers)
    )
    return SkipWeights(tuple(layers), layer.update_weight, layer.update_bias)


def common_arguments(layer: Any, *, like: Tensor) -> dict[str, Any]:
    """What torch's constructors and ours have in common, for a layer as this one on the device of `like`."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {**{name: getattr(layer, name) for name in names}, "device": like.device, "dtype": like.dtype}


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module, *, names: Iterable[str]) -> None:
    """Copies the parameters of these names."""
    for name in names:
        getattr(target, name).copy_(getattr(source, name))


def check_dense(dense: nn.RNNBase, *, kind: type[nn.RNNBase], name: str) -> None:
    """Raises ValueError for a layer of another kind, a bidirectional one, or one with projections."""
    foreign = {
        f"the kind {type(dense).__name__}": not isinstance(dense, kind),
        "bidirectional=True": dense.bidirectional,
        "proj_size": dense.proj_size > 0,
    }
    found = [reason for reason, applies in foreign.items() if applies]
    if found:
        raise ValueError(f"{name} takes over a torch.nn.{kind.__name__}, not one with {', '.join(found)}")
