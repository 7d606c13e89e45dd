"""What the benchmarks of the layers run: sizes, and layers whose gates open in a given share of the steps.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from skipreel.models import SkipGRU, SkipLSTM
from skipreel.models.recurrence.operator import Backend

Cell = Literal["lstm", "gru"]
Mode = Literal["train", "infer"]
Layer = SkipLSTM | SkipGRU

OPEN: Final = 30.0
"""An update bias at which every gate is open."""
LOGIT_SPREAD: Final = 0.8
"""Standard deviation of the gate's logit over rows and steps, so that rows fall out of step as they do when trained."""


@dataclass(frozen=True)
class Size:
    name: str
    batch: int
    steps: int
    features: int
    hidden: int
    layers: int

    def __str__(self) -> str:
        depth = f",L={self.layers}" if self.layers > 1 else ""
        return f"{self.name} (B={self.batch},T={self.steps},D={self.features},H={self.hidden}{depth})"

    def multiply_accumulates(self, share: float, *, cell: Cell, mode: Mode) -> float:
        """Of one pass: what the exact gradient needs, so the candidates of skipped steps too; x wants no gradient."""
        blocks = 4 if cell == "lstm" else 3
        steps = self.batch * self.steps
        inputs = [self.features] + [self.hidden] * (self.layers - 1)
        total = 0.0
        for layer, width in enumerate(inputs):
            by_input, by_hidden = blocks * self.hidden * width, blocks * self.hidden**2
            if mode == "infer":
                total += share * (by_input + by_hidden)
                continue
            total += by_input + share * by_input + 3 * share * by_hidden
            total += share * by_input if layer > 0 else 0.0
            total += (1 - share) * self.hidden**2 if cell == "gru" else 0.0  # U_n (r∘h) changes with x
        return steps * total


TRAINING: Final = (
    Size("A", 256, 50, 2, 110, 1),
    Size("B", 64, 784, 1, 110, 1),
    Size("C", 32, 250, 2048, 512, 2),
    Size("D", 16, 180, 4096, 256, 2),
)
INFERENCE: Final = (
    Size("A64", 64, 50, 2, 110, 1),
    Size("A1", 1, 50, 2, 110, 1),
    Size("B64", 64, 784, 1, 110, 1),
    Size("B1", 1, 784, 1, 110, 1),
    *TRAINING[2:],
)
SHARES: Final = (1.0, 0.5, 0.25, 0.1, 0.03)


def make_dense(size: Size, cell: Cell) -> nn.LSTM | nn.GRU:
    torch.manual_seed(0)
    return (nn.LSTM if cell == "lstm" else nn.GRU)(size.features, size.hidden, size.layers)


def make_skip(dense: nn.LSTM | nn.GRU, x: Tensor, share: float) -> Layer:
    """A layer with torch's weights whose gates open in `share` of the steps of x (T, B, D), or in little more."""
    torch.manual_seed(1)
    arguments = dense.input_size, dense.hidden_size, dense.num_layers
    layer: Layer = (SkipLSTM(*arguments) if isinstance(dense, nn.LSTM) else SkipGRU(*arguments)).to(x)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            layer.get_parameter(name).copy_(parameter)
        layer.update_bias.fill_(OPEN)
        _, state, _ = layer(x)
        top = state.h[-1] if state.c is None else state.c[-1]
        logits = top @ layer.update_weight[0]
        layer.update_weight.mul_(LOGIT_SPREAD / logits.std() if len(logits) > 1 else 0.1)
        low, high = -OPEN, OPEN
        for _ in range(0 if share == 1 else 20):
            layer.update_bias.fill_((low + high) / 2)
            if layer(x)[2].mean() > share:
                high = layer.update_bias.item()
            else:
                low = layer.update_bias.item()
        layer.update_bias.fill_(high)
    return layer


def with_backend(layer: Layer, backend: Backend) -> Layer:
    """The same weights, computed by another implementation."""
    other = copy.deepcopy(layer)
    other.backend = backend
    return other


def step(layer: nn.Module, x: Tensor, weights: Tensor, mode: Mode) -> Callable[[], None]:
    """One training step with a loss on all outputs, or one inference."""

    def train() -> None:
        layer.zero_grad()
        output, *rest = layer(x)
        loss = (output * weights).sum()
        (loss + 1e-4 * rest[1].sum() if len(rest) > 1 else loss).backward()

    def infer() -> None:
        with torch.inference_mode():
            layer(x)

    return train if mode == "train" else infer
