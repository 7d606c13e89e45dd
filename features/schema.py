"""The one place that says how a feature set looks on disk.

    <feature set>/feature_set.json      the data card: the feature set's id and the recipe it follows from
    <feature set>/shards/*.parquet      one row per segment of a video (at most 1,024 frames)
    <feature set>/failures/*.parquet    one row per video that could not be decoded, with the reason

All segments of a video lie in one shard, so a shard that exists holds whole videos.
Letters: T frames of a segment, D feature length.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_SEGMENT_FRAMES = 1024

SHARD_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("segment", pa.int32()),  # 0, 1, … within the video
        ("frame_index", pa.list_(pa.int32())),  # (T,) place of each frame in presentation order
        ("pts_s", pa.list_(pa.float64())),  # (T,) presentation time in seconds
        # (T·D,) frame by frame: a flat list reads everywhere; a list of fixed-size lists fails in Ray's torch batches.
        ("features", pa.list_(pa.float16())),
        ("dim", pa.int32()),  # D
        ("source_digest", pa.string()),  # SHA-256 of the video file
    ]
)

FAILURE_SCHEMA = pa.schema([("video_id", pa.string()), ("uri", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class Segment:
    """At most 1,024 consecutive sampled frames of one video.

    Attributes:
        number: 0 for a video's first segment.
        frame_index: (T,) int32, places in presentation order.
        pts_s: (T,) float64, presentation times in seconds.
        features: (T, D) float16.
    """

    number: int
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]
    features: NDArray[np.float16]
