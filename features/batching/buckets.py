"""Which videos make a batch: of similar length, shuffled by a seed, the same number of batches for every worker."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError

# Lengths are compared after a random change of up to this share: who meets whom changes by epoch, padding stays small.
_LENGTH_JITTER = 0.1


def shuffled_batches(num_videos: int, *, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The places of the videos of one epoch in random order, cut into batches of which only the last may be smaller.

    They follow from these numbers alone, so that every worker knows the whole batch of all workers, however many they
    are, and takes its own part.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_videos)
    return [order[start : start + batch_size] for start in range(0, num_videos, batch_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How videos are put into batches.

    Attributes:
        batch_size: videos in a batch, at most.
        max_frames: frames in a batch with its padding, at most; a longer video makes a batch alone. None: no limit.
        seed: of the order. None: by increasing length, always the same.
        epoch: with the seed it gives the order, so another epoch has another one, and the same epoch the same.
        rank: which worker this is, from 0.
        world_size: how many workers share the videos.

    Raises:
        FeatureSetError: when a number is out of its range.
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
        """This worker's batches, each the places in ``num_frames`` (V,) of its videos.

        Every worker gets equally many, no video is in two of them, and none is left out, but for batches of one video
        whose number the workers do not divide: then up to ``world_size - 1`` videos are. At each step the
        workers' batches are of similar length, so that none waits long for another.

        Raises:
            FeatureSetError: when there are fewer videos than workers.
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
        """Halve the largest batches until the workers divide their number."""
        while surplus := len(batches) % self.world_size:
            sizes = [len(batch) for batch in batches]
            place = int(np.argmax(sizes))
            if sizes[place] == 1:
                del batches[-surplus:]
                return
            middle = sizes[place] // 2
            batches[place : place + 1] = batches[place][:middle], batches[place][middle:]
