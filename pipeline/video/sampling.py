"""Which frames to look at: a target rate on the video's own presentation times."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.errors import InputError

# Presentation times come from integer clocks of at least a microsecond: this only absorbs float rounding.
_EPSILON_S = 1e-6

_Times = TypeVar("_Times", np.float64, NDArray[np.float64])


@dataclass(frozen=True)
class Sampling:
    """Frames at `rate_hz` per second; InputError where the rate is not a positive number."""

    rate_hz: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz < math.inf:
            raise InputError(f"the sampling rate must be a positive number of frames per second, got {self.rate_hz}")

    def select(self, pts_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices (T,) int64, strictly increasing, of the frames on screen at pts_seconds[0] + j / rate_hz, j = 0, 1…

        The frame on screen at a time is the last one presented at or before it, so variable frame rates come out right,
        and a video slower than the rate gives each of its frames once. `pts_seconds` is (N,) float64, in seconds and
        ascending; memory is O(N) whatever the times are. ValueError where `pts_seconds` is not ascending.
        """
        pts = np.asarray(pts_seconds, dtype=np.float64)
        if pts.ndim != 1 or not np.isfinite(pts).all() or (np.diff(pts) < 0).any():
            raise ValueError(f"pts_seconds must be one ascending row of finite times, got shape {pts.shape}")
        if pts.size == 0:
            return np.empty(0, dtype=np.int64)
        # A frame is shown at some target if the first target it does not miss comes before the next frame does; working
        # per frame, not per target, keeps a stray timestamp far in the future from asking for billions of targets.
        target_s = _first_target_s(pts, pts[0], self.rate_hz)
        last_s = pts[-1] + 2 * _EPSILON_S
        shown = (target_s < np.append(pts[1:], np.inf)) & (target_s <= last_s)
        return np.flatnonzero(shown).astype(np.int64)


class OnlineSampling:
    """What `Sampling.select` chooses, told while frames arrive; it remembers one frame, however many there are."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._start_s = self._last_s = self._target_s = math.nan

    def push(self, pts_s: float) -> bool:
        """Whether the frame given before this one, presented at `pts_s`, is chosen; False for the first frame.

        ValueError where a time is not finite or lies before the last.
        """
        if not math.isfinite(pts_s) or pts_s < self._last_s:
            raise ValueError(f"presentation times must ascend and be finite, got {pts_s} after {self._last_s}")
        chosen = self._target_s < pts_s
        if math.isnan(self._start_s):
            self._start_s = pts_s
        self._last_s = pts_s
        self._target_s = float(_first_target_s(np.float64(pts_s), self._start_s, self._sampling.rate_hz))
        return chosen

    def end(self) -> bool:
        """Whether the frame given last is chosen, now that none follows; False where there was none."""
        return self._target_s <= self._last_s + 2 * _EPSILON_S


def _first_target_s(pts: _Times, start_s: float, rate_hz: float) -> _Times:
    """The first target that a frame presented at `pts` does not miss, with what absorbs rounding added."""
    target: _Times = start_s + np.ceil((pts - start_s - _EPSILON_S) * rate_hz) / rate_hz + _EPSILON_S
    return target
