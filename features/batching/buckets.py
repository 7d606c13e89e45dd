"""Which videos make a batch: `BatchPlan` for streams, `shuffled_batches` for training in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError

# Lengths are reduced at random by up to this share before sorting, so that batches differ by epoch with little padding.
_LENGTH_JITTER = 0.1


def shuffled_batches(num_videos: int, *, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Shuffle the positions of the videos of one epoch and cut them into batches; only the last may be smaller.

    The result depends on the arguments alone, so every worker knows the whole batch and takes its own share.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_videos)
    return [order[start : start + batch_size] for start in range(0, num_videos, batch_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Puts videos of similar length into batches, the same number of batches for every worker.

    Attributes:
        batch_size: maximum number of videos in a batch.
        max_frames: maximum number of frames in a batch, padding included; a longer video is a batch of its own. None:
            no limit.
        seed: seed of the order. None: always the same order, by increasing length.
        epoch: epoch number; the order follows from seed and epoch.
        rank: number of this worker, from 0.
        world_size: number of workers that share the videos.

    Raises:
        FeatureSetError: if a number is out of range.
    """

    batch_size: int = 16
    max_frames: int | None = None
    seed: int | None = None
    epoch: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("max_frames", 1), ("seed", 0), ("epoch", 0), ("world_size", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise FeatureSetError(f"{name} is {value}, it must be at least {lowest}")
        if not 0 <= self.rank < self.world_size:
            raise FeatureSetError(f"rank is {self.rank}, it must be 0 to {self.world_size - 1}, below world_size")

    def batches(self, num_frames: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Make this worker's batches from the lengths (V,) of all videos, each batch as int64 positions among them.

        No video is in two batches. At each step the workers' batches have similar lengths, so that no worker waits
        long. Videos are left out, at most ``world_size - 1``, only if all batches hold one video and the workers do
        not divide their number.

        Raises:
            FeatureSetError: if there are fewer videos than workers.
        """
        if len(num_frames) < self.world_size:
            raise FeatureSetError(f"{len(num_frames)} videos cannot be shared by {self.world_size} workers: use fewer")
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        lengths = num_frames if rng is None else num_frames * rng.uniform(1 - _LENGTH_JITTER, 1, len(num_frames))
        batches = list(self._cut(np.argsort(lengths, kind="stable"), num_frames))
        self._make_divisible(batches)
        steps = [batches[start : start + self.world_size] for start in range(0, len(batches), self.world_size)]
        if rng is not None:
            steps = [steps[place] for place in rng.permutation(len(steps))]
        return [step[self.rank] for step in steps]

    def _cut(self, order: NDArray[np.int64], num_frames: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        start = longest = 0
        for end, frames in enumerate(num_frames[order].tolist()):
            longest = max(longest, frames)
            size = end + 1 - start
            if size > 1 and (size > self.batch_size or (self.max_frames and size * longest > self.max_frames)):
                yield order[start:end]
                start, longest = end, frames
        yield order[start:]

    def _make_divisible(self, batches: list[NDArray[np.int64]]) -> None:
        """Halve the largest batches, in place, until the workers divide their number."""
        while surplus := len(batches) % self.world_size:
            sizes = [len(batch) for batch in batches]
            place = int(np.argmax(sizes))
            if sizes[place] == 1:
                del batches[-surplus:]
                return
            middle = sizes[place] // 2
            batches[place : place + 1] = batches[place][:middle], batches[place][middle:]
