"""W x + b of layer 0: for all steps at once where most of them are needed, otherwise for the rows that are read.

Letters: B batch, T steps, D features, H hidden, G gate blocks, n rows.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skipreel.models.recurrence.event.cells import Layer
from skipreel.models.recurrence.interface import ForwardInputs
from skipreel.models.recurrence.segments import FlatRows

_NARROW: Final = 8
"""Up to so many features, computing the product again costs no more than fetching it."""

_AHEAD: Final = 16
"""After all rows have updated at so many consecutive steps, so many steps are projected together."""


def project_beforehand(inputs: ForwardInputs, layer: Layer) -> Tensor | None:
    """(T, B, G·H), or None where it would not pay."""
    num_steps, _, width = inputs.x.shape
    if width <= _NARROW or (inputs.gates is not None and 2 * int(inputs.gates.sum()) < inputs.gates.numel()):
        return None
    flat = FlatRows.of(inputs.x)
    return flat._replace(values=torch.addmm(layer.bias, flat.values, layer.weight_ih.t())).by_step(num_steps)


class InputProjection:
    """Fetches W x + b, from `projection` (T, B, G·H) if there is one."""

    def __init__(self, inputs: ForwardInputs, layer: Layer, *, projection: Tensor | None) -> None:
        x = inputs.x if projection is None else projection
        self._weight: Tensor | None = None if projection is not None else layer.weight_ih
        self._bias: Tensor | None = layer.bias
        if projection is None and x.shape[2] <= _NARROW:
            # A column of ones takes the bias along: one product, and nothing to be copied first.
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
            self._weight = torch.cat([layer.weight_ih, layer.bias[:, None]], 1)
            self._bias = None
        self._by_step = x
        self._flat = FlatRows.of(x)
        self._ahead = torch.empty(0)
        self._ahead_from = 0
        self._streak = 0

    def at(self, step: int, *, out: Tensor) -> None:
        """All rows at one step: out (B, G·H)."""
        if self._weight is None or self._bias is None:
            self._fill(self._by_step[step], out)
            return
        if step >= self._ahead_from + len(self._ahead) and self._streak >= _AHEAD:
            self._project(step)
        if step < self._ahead_from + len(self._ahead):
            out.copy_(self._ahead[step - self._ahead_from])
        else:
            self._fill(self._by_step[step], out)
        self._streak += 1

    def gather(self, rows: Tensor, steps: Tensor, *, out: Tensor) -> None:
        """rows and steps (n,) -> out (n, G·H)."""
        self._streak = 0
        self._fill(self._flat.values.index_select(0, self._flat.places(rows, steps)), out)

    def _project(self, start: int) -> None:
        """All rows at the next few steps: they will probably go on updating together, and large products are fast."""
        assert self._weight is not None
        self._ahead = F.linear(self._by_step[start : start + _AHEAD], self._weight, self._bias)
        self._ahead_from = start

    def _fill(self, values: Tensor, out: Tensor) -> None:
        if self._weight is None:
            out.copy_(values)
        elif self._bias is None:
            torch.mm(values, self._weight.t(), out=out)
        else:
            torch.addmm(self._bias, values, self._weight.t(), out=out)
