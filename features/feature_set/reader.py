"""`FeatureSet`: opens a feature set for reading and loads the sequences of its videos.

Letters: T frames of a video, D feature length.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skipreel.features.feature_set.card import read_card
from skipreel.features.feature_set.index import VideoIndex, VideoReader, for_each, read_index
from skipreel.features.spec import FeatureSpec


@dataclass(frozen=True, slots=True)
class Sequence:
    """All features of one video.

    Attributes:
        frame_index: (T,) int32, positions in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame, increasing.
        features: (T, D) float16.
    """

    video_id: str
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]
    features: NDArray[np.float16]


class FeatureSet:
    """A feature set opened for reading.

    The list of videos is read at first use and kept: videos that a later extraction adds are not seen.

    Attributes:
        uri: where the feature set lies.
        id: `FeatureSpec.feature_set_id`.
        about: notes from the data card, such as the backbone's description.
        spec: how the features were made.

    Raises:
        FeatureSetError: if ``uri`` does not hold a feature set, or its data card is damaged.
    """

    def __init__(self, uri: str) -> None:
        card = read_card(uri)
        self.uri = uri
        self.id: str = card["id"]
        self.about: dict[str, Any] = card["about"]
        self.spec = FeatureSpec.from_json(card["recipe"])
        self._video_index: VideoIndex | None = None

    @property
    def dim(self) -> int:
        """D, the length of one feature vector."""
        return self.spec.dim

    @property
    def video_index(self) -> VideoIndex:
        """The videos and their places in the shards; read once.

        Raises:
            FeatureSetError: if a shard is damaged, or a video is stored twice or with gaps.
        """
        if self._video_index is None:
            self._video_index = read_index(self.uri, dim=self.dim)
        return self._video_index

    def index(self) -> pa.Table:
        """List the videos, a row each, in the order of the shards; reads only the small columns.

        Columns: video_id string; shard dictionary<string>, the file's name; first_row int32, the video's first row
        there; num_segments int32; num_frames int64.
        """
        return self.video_index.videos

    def video_ids(self) -> frozenset[str]:
        """The ids of all videos with features."""
        return frozenset(self.index()["video_id"].to_pylist())

    def load(self, video_ids: Iterable[str]) -> list[Sequence]:
        """Load the sequences of these videos, in this order.

        Raises:
            FeatureSetError: if a video is missing.
        """
        index = self.video_index
        positions = index.positions(video_ids)
        num_frames, reader = index.num_frames(), VideoReader(index)

        def sequence(position: int) -> Sequence:
            features = np.empty((int(num_frames[position]), self.dim), np.float16)
            reader.read_features(position, features)
            video_id = index.videos["video_id"][position].as_py()
            return Sequence(video_id, reader.read_frame_index(position), reader.read_pts(position), features)

        # In file order, because neighbours share a row group.
        places = np.unique(positions).tolist()
        loaded = dict(zip(places, for_each(sequence, places, uri=self.uri), strict=True))
        return [loaded[position] for position in positions.tolist()]
