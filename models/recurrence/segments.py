"""How long segments last; and scans in (p, a), over all segments at once and as long as the longest wait.

Letters: B batch, T steps, D features, H hidden, S segments, n steps of rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skipreel.models.recurrence.interface import ForwardInputs
from skipreel.models.recurrence.reference import accumulate


class FlatRows(NamedTuple):
    """x (T, B, D) as values (T·B, D), no copy if rows or steps are contiguous; row b of step t is at `places`(b, t)."""

    values: Tensor
    per_row: int
    per_step: int

    @staticmethod
    def of(x: Tensor) -> "FlatRows":
        num_steps, batch_size, width = x.shape
        if not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
            return FlatRows(x.transpose(0, 1).reshape(-1, width), num_steps, 1)
        return FlatRows(x.reshape(-1, width), 1, batch_size)

    def places(self, rows: Tensor, steps: Tensor) -> Tensor:
        """All (n,)."""
        return rows * self.per_row + steps * self.per_step

    def by_step(self, num_steps: int) -> Tensor:
        """(T, B, D) again."""
        width = self.values.shape[1]
        if self.per_row == 1:
            return self.values.view(num_steps, -1, width)
        return self.values.view(-1, num_steps, width).transpose(0, 1)


def row_ends(inputs: ForwardInputs) -> Tensor:
    """(B,) int64: each row's number of valid steps."""
    num_steps, batch_size = inputs.x.shape[:2]
    if inputs.lengths is None:
        return torch.full((batch_size,), num_steps, device=inputs.x.device)
    return inputs.lengths.to(inputs.x.device, torch.int64)


def waits(inputs: ForwardInputs, index: Tensor) -> Tensor:
    """(S,) int64: for how many valid steps each segment of index (S, 4) holds its state."""
    row, step, previous, _ = index.unbind(1)
    batch_size = inputs.x.shape[1]
    end = row_ends(inputs).index_select(0, row)
    end[previous[batch_size:]] = step[batch_size:]
    return (end - step).sub_(1).clamp_(min=0)


def accumulate_for(p: Tensor, a: Tensor, count: Tensor) -> Tensor:
    """a after count steps of waiting, bit for bit as stepping; all (B,)."""
    for n in range(int(count.max())):
        a = torch.where(n < count, accumulate(p, a), a)
    return a


def clamp_slope(p: Tensor, a: Tensor) -> Tensor:
    """κ, the derivative of a + min(p, 1 − a) by p and by a alike: ½ at a tie, as torch.minimum shares it; all (n,)."""
    room = 1 - a
    return ((p < room).to(p.dtype) + (p <= room).to(p.dtype)) / 2


def wait_under_given_gates(p: Tensor, a: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of a after count steps by a and by p; all (B,). Given gates reset neither: the clamp may bind."""
    by_a, by_p = torch.ones_like(a), torch.zeros_like(a)
    for n in range(int(count.max())):
        waiting = n < count
        slope = clamp_slope(p, a)
        by_a = torch.where(waiting, slope * by_a, by_a)
        by_p = torch.where(waiting, slope * (by_p + 1), by_p)
        a = torch.where(waiting, accumulate(p, a), a)
    return by_a, by_p


def suffix_sums(grad: Tensor, *, starts: Tensor) -> Tensor:
    """(T, B, H): at each step, the sum of grad (T, B, H) from it to just before the next one in starts (T, B) bool."""
    total = torch.empty_like(grad, memory_format=torch.contiguous_format)
    goes_on = (~starts).to(grad.dtype)[:, :, None]
    total[-1] = grad[-1]
    for t in range(grad.shape[0] - 2, -1, -1):
        torch.addcmul(grad[t], total[t + 1], goes_on[t + 1], out=total[t])
    return total
