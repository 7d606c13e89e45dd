"""A prediction: what a model says about one video, and what it cost.

Letters: T sampled frames, C classes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skipreel.models import Cost


@dataclass(slots=True)
class Seconds:
    """Wall-clock seconds by stage."""

    decode: float = 0.0
    encode: float = 0.0
    recognise: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.decode + self.encode + self.recognise

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about one video, and what it cost.

    Attributes:
        uri: the video.
        duration_s: its length in seconds, from the start of its first frame to the end of its last.
        frame_index: (T,) int64, the sampled frames' places in presentation order.
        pts_s: (T,) float64, their presentation times in seconds, counted from the first frame.
        used: (T,) bool, True where the network looked.
        scores: task frames: (T, C) float32, each class's probability; task video: (C,), summing to 1.
        start_s: the first frame's time by the file's own clock, in seconds.
    """

    uri: str
    duration_s: float
    frame_index: NDArray[np.int64]
    pts_s: NDArray[np.float64]
    used: NDArray[np.bool_]
    scores: NDArray[np.float32]
    cost: Cost
    seconds: Seconds = field(default_factory=Seconds)
    start_s: float = 0.0
