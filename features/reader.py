"""Reading a feature set back: one sequence per video, in the order asked for.

Letters: T frames of a video, D feature length.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import store
from features.errors import FeatureSetError
from features.recipe import Recipe
from pipeline import storage


@dataclass(frozen=True, slots=True)
class Sequence:
    """All features of one video.

    Attributes:
        frame_index: (T,) int32, places in presentation order.
        pts_s: (T,) float64, presentation times in seconds, increasing.
        features: (T, D) float16.
    """

    video_id: str
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]
    features: NDArray[np.float16]


class FeatureSet:
    """A feature set opened for reading.

    Raises:
        FeatureSetError: when ``uri`` holds none, or it is damaged.
    """

    def __init__(self, uri: str) -> None:
        card = store.read_card(uri)
        self.uri = uri
        self.id: str = card["id"]
        self.about: dict[str, Any] = card["about"]
        self.recipe = Recipe.from_json(card["recipe"])

    @property
    def dim(self) -> int:
        """D, the length of one feature vector."""
        return self.recipe.dim

    def video_ids(self) -> frozenset[str]:
        """Ids of all videos with features."""
        return frozenset(store.finished(self.uri))

    def load(self, video_ids: Iterable[str]) -> list[Sequence]:
        """The sequences of these videos, in this order.

        Raises:
            FeatureSetError: when a video is missing, twice, or has gaps between its segments.
        """
        order = list(video_ids)
        wanted = pa.array(order, pa.string())
        rows: dict[str, list[dict[str, Any]]] = {video_id: [] for video_id in order}
        for path in storage.list_files(storage.join(self.uri, "shards"), ".parquet"):
            with storage.open_input(path) as file:
                table = pq.read_table(file, filters=pc.field("video_id").isin(wanted))
            for number in range(table.num_rows):
                rows[table["video_id"][number].as_py()].append(_row(table, number))
        return [self._join(video_id, rows[video_id]) for video_id in order]

    def _join(self, video_id: str, rows: list[dict[str, Any]]) -> Sequence:
        if not rows:
            raise FeatureSetError(f"{self.uri} has no features of video {video_id!r}: run skipreel extract for it")
        rows.sort(key=lambda row: row["segment"])
        if [row["segment"] for row in rows] != list(range(len(rows))):
            raise FeatureSetError(f"{self.uri} holds video {video_id!r} twice or with gaps: extract it again")
        features = np.concatenate([row["features"].reshape(-1, row["dim"]) for row in rows])
        if features.shape[1] != self.dim:
            raise FeatureSetError(f"video {video_id!r} has features of length {features.shape[1]}, not {self.dim}")
        return Sequence(
            video_id=video_id,
            frame_index=np.concatenate([row["frame_index"] for row in rows]),
            pts_s=np.concatenate([row["pts_s"] for row in rows]),
            features=features,
        )


def _row(table: pa.Table, number: int) -> dict[str, Any]:
    arrays = {name: table[name][number].values.to_numpy() for name in ("frame_index", "pts_s", "features")}
    return {**arrays, "segment": table["segment"][number].as_py(), "dim": table["dim"][number].as_py()}
