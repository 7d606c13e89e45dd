"""Padded batches of features as a stream from the shards, without labels: `stream_features`.

Features are copied once, from the file into the batch. The next batch is read while the caller uses the current one.
Letters: B batch, T longest sequence of the batch, D feature length.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.feature_set.index import VideoIndex, VideoReader, for_each
from skipreel.features.feature_set.reader import FeatureSet


@dataclass(frozen=True, slots=True)
class PaddedFeatures:
    """A batch padded at the end: features with zeros, times with NaN.

    Attributes:
        video_ids: B ids.
        features: (B, T, D) float16 or float32.
        lengths: (B,) int64, at least 1.
        pts_s: (B, T) float64, seconds from each video's first frame; None if they were not requested.
    """

    video_ids: tuple[str, ...]
    features: Tensor
    lengths: Tensor
    pts_s: Tensor | None


def stream_features(
    feature_set: FeatureSet,
    plan: BatchPlan,
    video_ids: Iterable[str] | None = None,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    with_times: bool = False,
) -> Iterator[PaddedFeatures]:
    """Stream padded batches; each video comes once. Holds two batches in memory.

    Args:
        plan: the batch size, the order, and this worker's share of the batches.
        video_ids: the videos to read; None reads all.
        dtype: float16 is the stored type; float32 is converted batch by batch.
        with_times: fill ``pts_s``. This costs more than reading the features, because times are stored compressed.

    Raises:
        FeatureSetError: if a video is missing, or there are fewer videos than workers.
    """
    index = feature_set.video_index
    num_frames = index.num_frames()
    places = np.arange(len(num_frames)) if video_ids is None else np.unique(index.positions(video_ids))
    batches = [places[batch] for batch in plan.batches(num_frames[places])]
    source = _Source(index, VideoReader(index), num_frames, feature_set.dim)
    return _read_ahead(source, batches, getattr(torch, dtype), with_times)


@dataclass(frozen=True, slots=True)
class _Source:
    index: VideoIndex
    reader: VideoReader
    num_frames: NDArray[np.int64]
    dim: int

    def read(self, batch: NDArray[np.int64], dtype: torch.dtype, with_times: bool) -> PaddedFeatures:
        lengths = self.num_frames[batch]
        features = torch.empty((len(batch), int(lengths.max()), self.dim), dtype=torch.float16)
        pts_s = torch.full(features.shape[:2], torch.nan, dtype=torch.float64) if with_times else None
        rows = features.numpy()  # shares the tensor's memory

        def fill(row: int) -> None:
            length = int(lengths[row])
            self.reader.read_features(int(batch[row]), rows[row, :length])
            rows[row, length:] = 0
            if pts_s is not None:
                pts_s[row, :length] = torch.from_numpy(self.reader.read_pts(int(batch[row])))

        for_each(fill, range(len(batch)), uri=self.index.uri)
        ids = self.index.videos["video_id"].take(batch).to_pylist()
        return PaddedFeatures(tuple(ids), features.to(dtype), torch.from_numpy(lengths), pts_s)


def _read_ahead(
    source: _Source, batches: list[NDArray[np.int64]], dtype: torch.dtype, with_times: bool
) -> Iterator[PaddedFeatures]:
    """Yield the batches in order; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(source.read, batches[0], dtype, with_times)
        for batch in batches[1:]:
            ready = coming.result()
            coming = pool.submit(source.read, batch, dtype, with_times)
            yield ready
        yield coming.result()
