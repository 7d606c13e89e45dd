"""Small layers whose gates both open and close, and random inputs for them.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

from typing import Any, Final

import pytest
import torch
from torch import Tensor

from skipreel.models import SkipGRU, SkipLSTM, SkipState

Layer = SkipLSTM | SkipGRU

CELLS: Final[dict[str, tuple[type[Layer], dict[str, Any]]]] = {
    "lstm": (SkipLSTM, {}),
    "gru": (SkipGRU, {}),
    "gru_reset_after": (SkipGRU, {"reset_after": True}),
}

each_cell = pytest.mark.parametrize("cell", CELLS)
each_fast_backend = pytest.mark.parametrize("backend", ["event", "cpp"])


def make_layer(
    cell: str,
    *sizes: int,
    update_bias: float = -1.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **arguments: Any,
) -> Layer:
    """A layer of D, H and, unless it is 1, L, in which no parameter is 0; at this update bias it updates and skips."""
    torch.manual_seed(seed)
    kind, own = CELLS[cell]
    layer = kind(*sizes, update_bias=update_bias, dtype=dtype, **own, **arguments)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(("bias", "norm")):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def state_tensors(state: SkipState) -> list[Tensor]:
    return [tensor for tensor in state if tensor is not None]
