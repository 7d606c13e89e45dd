"""Where update gates come from: learned, at random, or at a stride; and the jump to the next learned update.

Letters: B batch, T steps.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from models.reference import accumulate

MAX_WAIT: Final = 10_000
"""How many steps ahead an update is looked for unless the caller knows how many remain."""


def _check_shape(num_steps: int, batch_size: int) -> None:
    if num_steps < 1 or batch_size < 1:
        raise ValueError(
            f"a schedule needs at least 1 step and 1 row, got num_steps={num_steps}, batch_size={batch_size}"
        )


@dataclass(frozen=True)
class LearnedGate:
    """The network decides (eqs. 2–5)."""


@dataclass(frozen=True)
class RandomGate:
    """The paper's control: each update is skipped with probability p_skip; the first step is always used.

    In evaluation the gate at step t depends on (seed, t) alone: every row gets the same mask, and a longer schedule
    begins with the shorter one, so neither the batch a row came in nor its padding changes its result. Average over
    seeds for the spread.

    Raises ValueError when p_skip is not in [0, 1] or seed is negative.
    """

    p_skip: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p_skip <= 1:
            raise ValueError(f"p_skip is a probability, allowed are 0 to 1, got {self.p_skip}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def schedule(self, num_steps: int, *, batch_size: int = 1) -> Tensor:
        """The gates of evaluation, {0, 1} float32 (T, B) on the CPU, the same for every row."""
        _check_shape(num_steps, batch_size)
        draws = torch.rand(num_steps, 1, generator=torch.Generator().manual_seed(self.seed))
        return self._gates(draws).expand(-1, batch_size).clone()

    def sample(self, num_steps: int, *, batch_size: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Fresh gates for training, independent for each row, {0, 1} float32 (T, B) on the CPU.

        Drawn from `generator` (a CPU one), or from torch's global one. `seed` plays no part.
        """
        _check_shape(num_steps, batch_size)
        return self._gates(torch.rand(num_steps, batch_size, generator=generator))

    def _gates(self, draws: Tensor) -> Tensor:
        gates = (draws >= self.p_skip).float()
        gates[0] = 1
        return gates


@dataclass(frozen=True)
class StridedGate:
    """An update at step 0 and whenever ⌊t / stride⌋ grows: any budget T / stride can be met, 1.0 is a dense RNN.

    Raises ValueError when stride is below 1 or not finite.
    """

    stride: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stride) and self.stride >= 1):
            raise ValueError(f"stride must be a finite number of steps, 1 or more, got {self.stride}")

    def schedule(self, num_steps: int, *, batch_size: int = 1) -> Tensor:
        """{0, 1} float32 (T, B) on the CPU, the same for every row."""
        _check_shape(num_steps, batch_size)
        cell = [math.floor(t / self.stride) for t in range(-1, num_steps)]  # t = −1 is cell −1, so step 0 is used
        gates = torch.tensor([float(now > before) for before, now in pairwise(cell)])
        return gates[:, None].repeat(1, batch_size)


Gate = LearnedGate | RandomGate | StridedGate

LEARNED: Final = LearnedGate()

_GATES: Final[dict[str, type[Gate]]] = {"learned": LearnedGate, "random": RandomGate, "strided": StridedGate}


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """{"kind": "learned" | "random" | "strided", and the gate's own fields}."""
    kind = next(name for name, cls in _GATES.items() if isinstance(gate, cls))
    return {"kind": kind, **dataclasses.asdict(gate)}


def gate_from_json(data: Mapping[str, Any]) -> Gate:
    """The inverse of `gate_to_json`; ValueError for an unknown kind, unknown or missing fields, or a bad value."""
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _GATES:
        raise ValueError(f"unknown gate kind {kind!r}, allowed are {', '.join(_GATES)}")
    try:
        return _GATES[kind](**fields)
    except TypeError as error:
        raise ValueError(f"a {kind} gate cannot be made from {fields}: {error}") from None


def steps_until_update(p: Tensor, *, a: Tensor | None = None, limit: int = MAX_WAIT) -> Tensor:
    """How many steps on the next learned update falls: 1 means at once; N_skip of eq. 6 is one less.

    p (B,) and a (B,) as in `SkipState`, float32 or float64; a is 0, as after an update, unless given. Returns (B,)
    int64, limit + 1 where no update falls within `limit` steps: pass the number that remain. It runs the accumulation
    itself and so agrees with stepping bit for bit; eq. 6 in real arithmetic does not, near ties.

    Raises ValueError for a dtype narrower than float32, in which the gate is never kept, or a negative limit.
    """
    if p.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"update probabilities must be float32 or float64, got {p.dtype}")
    if limit < 0:
        raise ValueError(f"limit must be 0 steps or more, got {limit}")
    # On the CPU, where looking at a flag each step costs nothing; float addition rounds alike on all devices.
    probability = p.detach().cpu()
    accumulated = torch.zeros_like(probability) if a is None else a.detach().cpu()
    steps = torch.ones(probability.shape, dtype=torch.int64)
    for _ in range(limit):
        accumulated = accumulate(probability, accumulated)
        waiting = accumulated <= 0.5
        if not waiting.any():
            break
        steps += waiting
    return steps.to(p.device)
