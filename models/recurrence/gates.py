"""Where update gates come from: learned, at random, or at a stride; and the jump to the next learned update.

Letters: B batch, T steps.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.models.recurrence.reference import accumulate

MAX_WAIT: Final = 10_000
"""How many steps ahead to look for an update, unless the caller knows how many remain."""

TABLE_SIZE: Final = 256
"""Waits up to this are looked up in a table, which takes some 20 ms to make."""

FIRST_BLOCK: Final = 64
"""Steps that other jumps look ahead at first. Each further look covers as many as all looks before it."""

_DRAWS: Final = 1024


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

    In evaluation the gate at step t depends on (seed, key, t) alone, where the key names the sequence. A longer
    schedule begins with the shorter one, so neither the batch a row came in nor its padding changes its result.
    Average over seeds for the spread.

    Raises ValueError when p_skip is not in [0, 1] or seed is negative.
    """

    p_skip: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p_skip <= 1:
            raise ValueError(f"p_skip is a probability, allowed are 0 to 1, got {self.p_skip}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def schedule(self, num_steps: int, *, batch_size: int = 1, key: str | None = None) -> Tensor:
        """The gates of evaluation, {0, 1} float32 (T, B) on the CPU, the same for every row.

        key: the sequence's name, such as a video's id. Each has a mask of its own, so that the mean over many sequences
        comes close to 1 - p_skip; without a key there is one mask.
        """
        _check_shape(num_steps, batch_size)
        draws = torch.rand(num_steps, 1, generator=self._generator(key))
        return self._gates(draws).expand(-1, batch_size).clone()

    def stream(self, *, key: str | None = None) -> Iterator[bool]:
        """The gates of `schedule` one by one, without end."""
        generator = self._generator(key)
        yield bool(torch.rand(1, generator=generator) >= 0)  # drawn although the first step is always used
        while True:
            yield from (torch.rand(_DRAWS, generator=generator) >= self.p_skip).tolist()

    def sample(self, num_steps: int, *, batch_size: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Fresh gates for training, independent for each row, {0, 1} float32 (T, B) on the CPU.

        Drawn from `generator` (a CPU one), or from torch's global one. `seed` plays no part.
        """
        _check_shape(num_steps, batch_size)
        # torch.compile cannot trace `generator=None` with a dynamic number of steps.
        shape = num_steps, batch_size
        return self._gates(torch.rand(shape) if generator is None else torch.rand(shape, generator=generator))

    def _generator(self, key: str | None) -> torch.Generator:
        seed = self.seed
        if key is not None:
            seed = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "big")
        return torch.Generator().manual_seed(seed)

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

    def schedule(self, num_steps: int, *, batch_size: int = 1, key: str | None = None) -> Tensor:  # noqa: ARG002
        """{0, 1} float32 (T, B) on the CPU, the same for every row and every key."""
        _check_shape(num_steps, batch_size)
        cell = [math.floor(t / self.stride) for t in range(-1, num_steps)]  # t = −1 is cell −1, so step 0 is used
        gates = torch.tensor([float(now > before) for before, now in pairwise(cell)])
        return gates[:, None].repeat(1, batch_size)

    def stream(self, *, key: str | None = None) -> Iterator[bool]:  # noqa: ARG002 - as `RandomGate.stream` has it
        """The gates of `schedule` one by one, without end."""
        for t in count():
            yield math.floor(t / self.stride) > math.floor((t - 1) / self.stride)


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
    int64, limit + 1 where no update falls within `limit` steps: pass the number that remain. It adds as stepping
    does and so agrees with it bit for bit; eq. 6 in real arithmetic does not, near ties.

    Raises ValueError for a dtype narrower than float32, in which the gate is never kept, or a negative limit.
    """
    if p.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"update probabilities must be float32 or float64, got {p.dtype}")
    if limit < 0:
        raise ValueError(f"limit must be 0 steps or more, got {limit}")
    if a is None:
        # What is not a number lies behind all negated thresholds, and so is left to the sums, as are long waits.
        steps = torch.bucketize(-p.detach(), negated_thresholds(TABLE_SIZE, p.dtype, p.device))
        if not (steps > TABLE_SIZE).any():
            return steps.clamp_(max=limit + 1)
    return _steps_by_sums(_values(p), _values(torch.zeros_like(p) if a is None else a), limit).to(p.device)


def _steps_by_sums(p: NDArray[Any], a: NDArray[Any], limit: int) -> Tensor:
    steps, done = np.ones(p.shape, np.int64), 0
    while done < limit:
        block = min(max(done, FIRST_BLOCK), limit - done)
        sums = _running_sums(p, a, block)
        # Without the start, which may lie above 0.5 where gates were given.
        waiting = np.add.reduce(sums[..., 1:] <= 0.5, axis=-1)
        steps += waiting
        if not (waiting == block).any():
            break
        a = sums[..., -1]
        done += block
    return torch.from_numpy(steps)


def accumulate_steps(p: Tensor, a: Tensor, count: Tensor) -> Tensor:
    """`accumulate` done `count` times, bit for bit, for rows that wait so long: all (B,), count int64, 0 or more.

    Its gradients are those of a + count · p. A row that updates on the way comes out above 0.5, and means nothing else.
    """
    places = _values(count)
    sums = _running_sums(_values(p), _values(a), int(places.max(initial=0)))
    after = torch.from_numpy(sums[np.arange(len(places)), places]).to(a.device)
    if p.requires_grad or a.requires_grad:
        in_one_step = a + count * p
        after = after + (in_one_step - in_one_step.detach())  # plus 0, for its gradient
    return after


def _values(x: Tensor) -> NDArray[Any]:
    return x.detach().cpu().numpy()  # float addition rounds alike on all devices


def _running_sums(p: NDArray[Any], a: NDArray[Any], num_steps: int) -> NDArray[Any]:
    """(..., 1 + num_steps): a, a + p, a + p + p, …, added one after another, as torch.cumsum does not.

    These are `accumulate`'s values as long as they wait: min(p, 1 − a) is p up to the sum that passes 0.5.
    """
    terms = np.empty((*p.shape, 1 + num_steps), p.dtype)
    terms[..., 0] = a
    terms[..., 1:] = p[..., None]
    return np.add.accumulate(terms, axis=-1, out=terms)


@lru_cache(maxsize=32)
def negated_thresholds(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ascending (1 + size,): −∞, then −d at place n, d the smallest float whose accumulation passes 0.5 in n steps.

    So the place of −p among them is the wait of p. Rounding is monotone, and with it the wait: it is that of stepping,
    exactly. A sum of n floats d is within n roundings of n · d, which is the bracket that the search for d starts from.
    """
    n = torch.arange(1, size + 1)
    margin = (n + 2).to(torch.float64) * torch.finfo(dtype).eps
    middle = 0.5 / n.to(torch.float64)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    fails = (middle * (1 - margin)).to(dtype).view(bits).clone()
    passes = (middle * (1 + margin)).to(dtype).view(bits).clone()
    while bool((passes - fails > 1).any()):
        trial = fails + (passes - fails) // 2
        passed = _accumulate_each(trial.view(dtype)) > 0.5
        passes = torch.where(passed, trial, passes)
        fails = torch.where(passed, fails, trial)
    thresholds = passes.view(dtype)
    return torch.cat([thresholds.new_full((1,), -torch.inf), -thresholds]).to(device)


def _accumulate_each(p: Tensor) -> Tensor:
    """(size,): p[n − 1] accumulated for n steps from 0."""
    a = torch.zeros_like(p)
    for n in range(p.shape[0]):
        a[n:] = accumulate(p[n:], a[n:])
    return a
