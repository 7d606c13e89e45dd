"""When each row updates next: by its update probability, or by given gates; never by stepping through the wait.

Letters: B batch, T steps, n rows that are looked at.
"""

from typing import Protocol

import torch
from torch import Tensor

from skipreel.models.recurrence.gates import negated_thresholds, steps_until_update
from skipreel.models.recurrence.interface import ForwardInputs
from skipreel.models.recurrence.reference import valid_steps


class Jumps(Protocol):
    """T or more as a step means: not within this sequence."""

    def first(self) -> Tensor:
        """The step of each row's first update, (B,) int64."""

    def following(self, rows: Tensor, steps: Tensor, prob: Tensor) -> Tensor:
        """The step of the update after the one at `steps`, which left p = prob; all (n,)."""


def jumps(inputs: ForwardInputs) -> Jumps:
    return _LearnedJumps(inputs) if inputs.gates is None else _GivenJumps(inputs, inputs.gates)


class _LearnedJumps:
    def __init__(self, inputs: ForwardInputs) -> None:
        self._state = inputs.state
        self._num_steps = inputs.x.shape[0]
        size = 1 << (self._num_steps - 1).bit_length()  # so that few tables serve sequences of all lengths
        prob = inputs.state.update_prob
        self._negated = negated_thresholds(size, prob.dtype, prob.device)

    def first(self) -> Tensor:
        p, a = self._state.update_prob, self._state.accumulated
        steps = steps_until_update(p, a=a, limit=self._num_steps) - 1
        return steps.masked_fill(torch.isnan(p + a), self._num_steps)

    def following(self, rows: Tensor, steps: Tensor, prob: Tensor) -> Tensor:  # noqa: ARG002 - given gates need them
        # Negated, because what is not a number then lies behind all thresholds: such a row is never due again.
        return torch.bucketize(-prob, self._negated).add_(steps)


class _GivenJumps:
    def __init__(self, inputs: ForwardInputs, gates: Tensor) -> None:
        num_steps, self._batch_size = gates.shape
        valid = valid_steps(inputs.lengths, num_steps=num_steps, batch_size=self._batch_size, device=gates.device)
        update = torch.where(gates & valid, torch.arange(num_steps, device=gates.device)[:, None], num_steps)
        never = update.new_full((1, self._batch_size), num_steps)
        self._next = torch.cat([update, never]).flip(0).cummin(0).values.flip(0)

    def first(self) -> Tensor:
        return self._next[0]

    def following(self, rows: Tensor, steps: Tensor, prob: Tensor) -> Tensor:  # noqa: ARG002 - learned gates need it
        return self._next.take((steps + 1) * self._batch_size + rows)
