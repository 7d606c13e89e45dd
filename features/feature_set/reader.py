"""Reading a feature set back: one sequence per video in the order asked for, or padded batches as a stream.

Letters: T frames of a video, D feature length.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skipreel.features.feature_set.card import read_card
from skipreel.features.feature_set.index import VideoIndex, VideoReader, for_each, read_index
from skipreel.features.feature_set.spec import FeatureSpec

if TYPE_CHECKING:  # whoever only lists or loads does without torch
    from skipreel.features.batching.buckets import BatchPlan
    from skipreel.features.batching.stream import PaddedFeatures


@dataclass(frozen=True, slots=True)
class Sequence:
    """All features of one video.

    Attributes:
        frame_index: (T,) int32, places in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame on, increasing.
        features: (T, D) float16.
    """

    video_id: str
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]
    features: NDArray[np.float16]


class FeatureSet:
    """A feature set opened for reading, as it is when it is first asked about videos; a later run may add some.

    Raises:
        FeatureSetError: when ``uri`` holds none, or it is damaged.
    """

    def __init__(self, uri: str) -> None:
        card = read_card(uri)
        self.uri = uri
        self.id: str = card["id"]
        self.about: dict[str, Any] = card["about"]
        self.spec = FeatureSpec.from_json(card["recipe"])
        self._catalogue: VideoIndex | None = None

    @property
    def dim(self) -> int:
        """D, the length of one feature vector."""
        return self.spec.dim

    @property
    def catalogue(self) -> VideoIndex:
        """The videos and where they lie, read once.

        Raises:
            FeatureSetError: when a shard is damaged, or a video is there twice or with gaps.
        """
        if self._catalogue is None:
            self._catalogue = read_index(self.uri, dim=self.dim)
        return self._catalogue

    def index(self) -> pa.Table:
        """One row per video, in the order of the shards, read from their small columns alone.

        Columns: video_id string; shard dictionary<string>, the file's name; first_row int32, the video's place there;
        num_segments int32; num_frames int64.
        """
        return self.catalogue.videos

    def video_ids(self) -> frozenset[str]:
        """Ids of all videos with features."""
        return frozenset(self.index()["video_id"].to_pylist())

    def load(self, video_ids: Iterable[str]) -> list[Sequence]:
        """The sequences of these videos, in this order.

        Raises:
            FeatureSetError: when a video is missing.
        """
        catalogue = self.catalogue
        positions = catalogue.positions(video_ids)
        num_frames, reader = catalogue.num_frames(), VideoReader(catalogue)

        def sequence(position: int) -> Sequence:
            features = np.empty((int(num_frames[position]), self.dim), np.float16)
            reader.read_features(position, features)
            video_id = catalogue.videos["video_id"][position].as_py()
            return Sequence(video_id, reader.read_frame_index(position), reader.read_pts(position), features)

        # In the order of the files: neighbours share a row group.
        places = np.unique(positions).tolist()
        loaded = dict(zip(places, for_each(sequence, places, uri=self.uri), strict=True))
        return [loaded[position] for position in positions.tolist()]

    def stream(
        self,
        plan: "BatchPlan",
        video_ids: Iterable[str] | None = None,
        *,
        dtype: Literal["float16", "float32"] = "float16",
        with_times: bool = False,
    ) -> Iterator["PaddedFeatures"]:
        """Padded batches of these videos (of all, without ``video_ids``), each video once; holds two batches in memory.

        Args:
            plan: how many videos make a batch, in which order, and which of the batches are this worker's.
            dtype: float16, as it is stored, or float32, made from it batch by batch.
            with_times: fill in ``pts_s``, which costs more than reading the features, as these are stored compressed.

        Raises:
            FeatureSetError: when a video is missing, or there are fewer videos than workers.
        """
        from skipreel.features.batching.stream import stream

        positions = None if video_ids is None else self.catalogue.positions(video_ids)
        return stream(self.catalogue, plan, positions, dim=self.dim, dtype=dtype, with_times=with_times)
