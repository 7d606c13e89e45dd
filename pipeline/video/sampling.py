"""Sampling: which frames to use, at a target rate on the video's own presentation times."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.errors import InputError

# Absorbs float rounding only: presentation times come from integer clocks with ticks of a microsecond or more.
_EPSILON_S = 1e-6

_Times = TypeVar("_Times", np.float64, NDArray[np.float64])


@dataclass(frozen=True)
class Sampling:
    """Sampling at `rate_hz` frames per second.

    Raises:
        InputError: if the rate is not a positive finite number.
    """

    rate_hz: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz < math.inf:
            raise InputError(f"the sampling rate must be a positive number of frames per second, got {self.rate_hz}")

    def select(self, pts_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Select the frames on screen at pts_seconds[0] + j / rate_hz, j = 0, 1…

        The frame on screen at a time is the last one presented at or before it. So variable frame rates are sampled
        correctly, and a video slower than the rate gives each frame once. Memory is O(N), whatever the times are.

        Args:
            pts_seconds: (N,) float64, ascending presentation times in seconds.

        Returns:
            (T,) int64, strictly increasing frame numbers.

        Raises:
            ValueError: if `pts_seconds` is not ascending.
        """
        pts = np.asarray(pts_seconds, dtype=np.float64)
        if pts.ndim != 1 or not np.isfinite(pts).all() or (np.diff(pts) < 0).any():
            raise ValueError(f"pts_seconds must be one ascending row of finite times, got shape {pts.shape}")
        if pts.size == 0:
            return np.empty(0, dtype=np.int64)
        # A frame is shown at a target if the first target at or after it comes before the next frame. The work is per
        # frame, not per target, so that one stray timestamp far in the future does not need billions of targets.
        target_s = _first_target_s(pts, pts[0], self.rate_hz)
        last_s = pts[-1] + 2 * _EPSILON_S
        shown = (target_s < np.append(pts[1:], np.inf)) & (target_s <= last_s)
        return np.flatnonzero(shown).astype(np.int64)


class OnlineSampling:
    """Selects the same frames as `Sampling.select` while they arrive, in constant memory."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._start_s = self._last_s = self._target_s = math.nan

    def push(self, pts_s: float) -> bool:
        """Add a frame presented at `pts_s` seconds.

        Returns:
            Whether the frame before this one is selected; False for the first frame.

        Raises:
            ValueError: if the time is not finite or lies before the last one.
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
        """Whether the last frame is selected, now that none follows; False if there was no frame."""
        return self._target_s <= self._last_s + 2 * _EPSILON_S


def _first_target_s(pts: _Times, start_s: float, rate_hz: float) -> _Times:
    """The first target at or after `pts` in seconds, plus the rounding tolerance."""
    target: _Times = start_s + np.ceil((pts - start_s - _EPSILON_S) * rate_hz) / rate_hz + _EPSILON_S
    return target
