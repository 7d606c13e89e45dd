"""`summarise`: counts the videos, frames, shards and failures of a feature set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skipreel.features.feature_set.card import read_card
from skipreel.features.feature_set.ledger import read_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.shard_reader import open_parquet
from skipreel.pipeline import storage


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Videos that failed for the same reason, file names aside; ``video_ids`` are the first few."""

    reason: str
    num_videos: int
    video_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A feature set in numbers.

    Attributes:
        card: the data card.
        num_videos, num_frames, num_shards: counts, without failed videos.
        video_hours: total time between each video's first and last sampled frame.
        num_bytes: size of all shards.
        num_failed: videos in the failure ledger.
        failures: by reason, the most frequent first.
    """

    card: dict[str, Any]
    num_videos: int
    num_frames: int
    video_hours: float
    num_shards: int
    num_bytes: int
    num_failed: int
    failures: tuple[FailureGroup, ...]


def summarise(uri: str, *, num_named: int = 3) -> Summary:
    """Summarise a feature set; reads only the small columns.

    Args:
        num_named: how many videos to name for each reason of failure.

    Raises:
        FeatureSetError: if ``uri`` does not hold a feature set, or a shard is damaged.
    """
    feature_set = FeatureSet(uri)
    num_frames = feature_set.video_index.num_frames()
    shards = [layout.uri for layout in feature_set.video_index.layouts]
    groups = _failure_groups(uri, num_named)
    return Summary(
        card=read_card(uri),
        num_videos=len(num_frames),
        num_frames=int(num_frames.sum()),
        video_hours=sum(_seconds(shard) for shard in shards) / 3600,
        num_shards=len(shards),
        num_bytes=sum(file_stat.num_bytes for file_stat in storage.file_stats(shards) if file_stat),
        num_failed=sum(group.num_videos for group in groups),
        failures=groups,
    )


def _seconds(shard: str) -> float:
    """Sum the seconds from the first to the last frame of each video."""
    with open_parquet(shard) as (_, parquet):
        table = parquet.read(columns=["segment", "pts_s"])
    lists = table["pts_s"].combine_chunks()
    offsets, times = lists.offsets.to_numpy(), lists.values.to_numpy()
    first_rows = np.flatnonzero(table["segment"].to_numpy() == 0)
    starts, ends = offsets[first_rows], offsets[[*first_rows[1:], len(lists)]] - 1
    return float((times[ends] - times[starts]).sum())


def _failure_groups(uri: str, num_named: int) -> tuple[FailureGroup, ...]:
    by_reason: dict[str, list[str]] = {}
    for row in read_failures(uri):
        reason = row["reason"].replace(row["uri"], "…").replace(row["video_id"], "…")
        by_reason.setdefault(reason, []).append(row["video_id"])
    groups = [FailureGroup(reason, len(ids), tuple(ids[:num_named])) for reason, ids in by_reason.items()]
    return tuple(sorted(groups, key=lambda group: (-group.num_videos, group.reason)))
