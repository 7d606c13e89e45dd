"""Points of a trade-off curve (metric against state updates), their Pareto front and their means over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

# How each family chooses its frames, in the order of legends.
FAMILIES = {
    "skip": "learned skipping",
    "dense": "every frame",
    "stride": "uniform stride",
    "random": "random skipping",
    "mean": "mean of frames",
}


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """One trained and evaluated model.

    Attributes:
        name: the model, such as "Skip GRU".
        family: one of `FAMILIES`.
        setting: its place on the curve, such as "λ=1e-3"; empty for a model without one.
        metric: the task's metric, higher is better.
        updates: state updates per video, mean over videos.
        update_share: updates as a share of the sampled frames, 0 to 1.
        seed: seed of the training.
    """

    name: str
    family: str
    setting: str
    metric: float
    updates: float
    update_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        if not math.isfinite(self.metric):
            raise ValueError(f"{self.name}: metric must be finite, got {self.metric}")
        if not (math.isfinite(self.updates) and self.updates >= 0):
            raise ValueError(f"{self.name}: updates must be finite and not negative, got {self.updates}")
        if not 0 <= self.update_share <= 1:
            raise ValueError(f"{self.name}: update_share must lie in [0, 1], got {self.update_share}")


@dataclass(frozen=True, slots=True)
class SeedMean:
    """All seeds of one setting: the mean point, with the lowest seed, and the (lowest, highest) of both coordinates."""

    point: TradeoffPoint
    num_seeds: int
    metric_range: tuple[float, float]
    updates_range: tuple[float, float]


def pareto_front(points: Sequence[TradeoffPoint]) -> tuple[int, ...]:
    """Indices of the points that no other point dominates, by ascending updates.

    Point a dominates b if it needs no more updates, its metric is not lower, and one of the two is strictly better.
    Points that are equal in both are on the front together.
    """
    by_updates = sorted(range(len(points)), key=lambda i: (points[i].updates, -points[i].metric, i))
    front: list[int] = []
    for index in by_updates:
        best = points[front[-1]] if front else None
        point = points[index]
        ties = best is not None and (point.updates, point.metric) == (best.updates, best.metric)
        if best is None or point.metric > best.metric or ties:
            front.append(index)
    return tuple(front)


def mean_over_seeds(points: Sequence[TradeoffPoint]) -> tuple[SeedMean, ...]:
    """Mean over the seeds of each family, name and setting, in the order of their first points."""
    groups: dict[tuple[str, str, str], list[TradeoffPoint]] = {}
    for point in points:
        groups.setdefault((point.family, point.name, point.setting), []).append(point)
    return tuple(_mean(group) for group in groups.values())


def _mean(group: Sequence[TradeoffPoint]) -> SeedMean:
    metrics, updates = [p.metric for p in group], [p.updates for p in group]
    mean = TradeoffPoint(
        name=group[0].name,
        family=group[0].family,
        setting=group[0].setting,
        metric=fmean(metrics),
        updates=fmean(updates),
        update_share=fmean(p.update_share for p in group),
        seed=min(p.seed for p in group),
    )
    return SeedMean(mean, len(group), (min(metrics), max(metrics)), (min(updates), max(updates)))
