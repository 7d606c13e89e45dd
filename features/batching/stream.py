"""Batches of padded features from shards: one copy, from the file into the batch, while the last batch is in use.

Letters: B batch, T longest sequence of the batch, D feature length.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.feature_set.index import VideoIndex, VideoReader, for_each


@dataclass(frozen=True, slots=True)
class PaddedFeatures:
    """Padded at the end: features with zeros, times with NaN.

    Attributes:
        video_ids: B ids.
        features: (B, T, D) float16 or float32.
        lengths: (B,) int64, at least 1.
        pts_s: (B, T) float64, seconds from each video's first frame on; None where they were not asked for.
    """

    video_ids: tuple[str, ...]
    features: Tensor
    lengths: Tensor
    pts_s: Tensor | None


def stream(
    catalogue: VideoIndex,
    plan: BatchPlan,
    positions: NDArray[np.int64] | None,
    *,
    dim: int,
    dtype: str,
    with_times: bool,
) -> Iterator[PaddedFeatures]:
    """See `features.feature_set.reader.FeatureSet.stream`; ``positions`` are rows of the catalogue, None for all."""
    num_frames = catalogue.num_frames()
    places = np.arange(len(num_frames)) if positions is None else np.unique(positions)
    batches = [places[batch] for batch in plan.batches(num_frames[places])]
    source = _Source(catalogue, VideoReader(catalogue), num_frames, dim)
    return _ahead(source, batches, getattr(torch, dtype), with_times)


@dataclass(frozen=True, slots=True)
class _Source:
    catalogue: VideoIndex
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

        for_each(fill, range(len(batch)), uri=self.catalogue.uri)
        ids = self.catalogue.videos["video_id"].take(batch).to_pylist()
        return PaddedFeatures(tuple(ids), features.to(dtype), torch.from_numpy(lengths), pts_s)


def _ahead(
    source: _Source, batches: list[NDArray[np.int64]], dtype: torch.dtype, with_times: bool
) -> Iterator[PaddedFeatures]:
    """The batches in order, the next one being read while the caller works on the last one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(source.read, batches[0], dtype, with_times)
        for batch in batches[1:]:
            ready = coming.result()
            coming = pool.submit(source.read, batch, dtype, with_times)
            yield ready
        yield coming.result()
