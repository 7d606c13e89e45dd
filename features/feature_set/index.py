"""`VideoIndex`: the videos of a feature set and where they lie; `VideoReader` reads them into the caller's memory.

Letters: V videos, T frames of a video, D feature length.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.shard_reader import Layout, ShardFile, read_layout
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.video import from_first_frame

# Requests at once to remote storage, where each read waits for its answer.
_NUM_REQUESTS = 16
MAX_OPEN_SHARDS = 64
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """The videos of a feature set at one instant.

    Attributes:
        videos: V rows with the columns of `FeatureSet.index`.
        shards: (V,) int32, the position of each video's shard in ``layouts``.
        layouts: the layout of each shard.
    """

    uri: str
    videos: pa.Table
    shards: NDArray[np.int32]
    layouts: tuple[Layout, ...]

    def positions(self, video_ids: Iterable[str]) -> NDArray[np.int64]:
        """Find the rows of these videos, int64, in this order.

        Raises:
            FeatureSetError: if a video is missing.
        """
        ids = pa.array(video_ids, pa.string())
        places = pc.index_in(ids, value_set=self.videos["video_id"])
        if places.null_count:
            missing = ids.filter(places.is_null())[0].as_py()
            raise FeatureSetError(f"{self.uri} has no features of video {missing!r}: run skipreel extract for it")
        return np.asarray(places.to_numpy(), np.int64)

    def num_frames(self) -> NDArray[np.int64]:
        """(V,) int64, T of each video."""
        return np.asarray(self.videos["num_frames"].to_numpy())


class VideoReader:
    """Reads videos by their rows in an index; keeps at most `MAX_OPEN_SHARDS` files open."""

    def __init__(self, index: VideoIndex) -> None:
        self._shards = index.shards
        self._first_rows = index.videos["first_row"].to_numpy()
        self._num_rows = index.videos["num_segments"].to_numpy()
        layouts = index.layouts
        self._open = lru_cache(MAX_OPEN_SHARDS)(lambda shard: ShardFile(layouts[shard]))

    def read_features(self, position: int, out: NDArray[np.float16]) -> None:
        """Read the features of a video into ``out``, (T, D) float16 and contiguous.

        Raises:
            FeatureSetError, StorageError: if the shard is damaged or gone.
        """
        shard = self._open(int(self._shards[position]))
        shard.read_features(int(self._first_rows[position]), int(self._num_rows[position]), out)

    def read_pts(self, position: int) -> NDArray[np.float64]:
        """Read the presentation times, (T,) float64 seconds from the first frame, in sets of earlier versions too."""
        return from_first_frame(self._read_list("pts_s", position))

    def read_frame_index(self, position: int) -> NDArray[np.int32]:
        """Read the frames' positions in presentation order, (T,) int32."""
        return self._read_list("frame_index", position)

    def _read_list(self, column: str, position: int) -> NDArray[Any]:
        shard = self._open(int(self._shards[position]))
        return shard.read_list(column, int(self._first_rows[position]), int(self._num_rows[position]))


def read_index(uri: str, *, dim: int) -> VideoIndex:
    """List the videos of the feature set at ``uri``, whose features have length ``dim``.

    Raises:
        FeatureSetError: if a shard is damaged, or a video is stored twice or with gaps.
    """
    while True:
        shards = shard_list.shard_uris(uri)
        try:
            found = for_each(lambda shard: read_layout(shard, dim=dim), shards, uri=uri)
            break
        except StorageError:
            if shard_list.shard_uris(uri) == shards:
                raise
            # A compaction has replaced shards meanwhile: list them again.
    videos = [table for _, table in found]
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [table.num_rows for table in videos])
    names = pa.array([shard_list.name_of(shard) for shard in shards], pa.string())
    empty = pa.schema(
        [
            ("video_id", pa.string()),
            ("first_row", pa.int32()),
            ("num_segments", pa.int32()),
            ("num_frames", pa.int64()),
        ]
    ).empty_table()
    table = pa.concat_tables([empty, *videos]).combine_chunks()
    table = table.add_column(1, "shard", pa.DictionaryArray.from_arrays(pa.array(numbers), names))
    _check_unique(uri, table["video_id"])
    return VideoIndex(uri, table, numbers, tuple(layout for layout, _ in found))


def for_each(function: Callable[[Item], Result], items: Iterable[Item], *, uri: str) -> list[Result]:
    """Compute ``[function(item) for item in items]``, in threads if ``uri`` is remote."""
    if storage.local_path(uri) is not None:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        return list(pool.map(function, items))


def _check_unique(uri: str, video_ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(video_ids).as_py() == len(video_ids):
        return
    counts = pc.value_counts(video_ids.combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
    raise FeatureSetError(f"{uri} holds video {repeated!r} twice or with gaps: extract it again")
