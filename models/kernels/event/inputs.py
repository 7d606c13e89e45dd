"""W x + b of layer 0: for all steps at once where most of them are needed, otherwise for the rows that are read.

Letters: B batch, T steps, D features, H hidden, G gate blocks, n rows.
"""

from typing import Final

import torch
from torch import Tensor

from models.kernels.event.cells import Layer
from models.kernels.problem import Problem
from models.kernels.segments import FlatRows

_NARROW: Final = 8
"""Up to so many features, multiplying again costs no more than fetching the product."""


def project_beforehand(problem: Problem, layer: Layer) -> Tensor | None:
    """(T, B, G·H), or None where it would not pay."""
    num_steps, _, width = problem.x.shape
    if width <= _NARROW or (problem.gates is not None and 2 * int(problem.gates.sum()) < problem.gates.numel()):
        return None
    flat = FlatRows.of(problem.x)
    return flat._replace(values=torch.addmm(layer.bias, flat.values, layer.weight_ih.t())).by_step(num_steps)


class Inputs:
    """Fetches W x + b, from `projection` (T, B, G·H) if there is one."""

    def __init__(self, problem: Problem, layer: Layer, *, projection: Tensor | None) -> None:
        x = problem.x if projection is None else projection
        self._weight: Tensor | None = None if projection is not None else layer.weight_ih.t()
        self._bias: Tensor | None = layer.bias
        if projection is None and x.shape[2] <= _NARROW:
            # A column of ones takes the bias along: one product, and nothing to be copied first.
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
            self._weight = torch.cat([layer.weight_ih, layer.bias[:, None]], 1).t()
            self._bias = None
        self._by_step = x
        self._flat = FlatRows.of(x)

    def at(self, step: int, *, out: Tensor) -> None:
        """All rows at one step: out (B, G·H)."""
        self._fill(self._by_step[step], out)

    def gather(self, rows: Tensor, steps: Tensor, *, out: Tensor) -> None:
        """rows and steps (n,) -> out (n, G·H)."""
        self._fill(self._flat.values.index_select(0, self._flat.places(rows, steps)), out)

    def _fill(self, values: Tensor, out: Tensor) -> None:
        if self._weight is None:
            out.copy_(values)
        elif self._bias is None:
            torch.mm(values, self._weight, out=out)
        else:
            torch.addmm(self._bias, values, self._weight, out=out)
