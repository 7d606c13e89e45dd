"""`plan`: which videos of a manifest to extract, because they are new or their file has changed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from skipreel.features.extraction.work import VideoJob
from skipreel.features.feature_set.schema import time_of
from skipreel.pipeline import storage
from skipreel.pipeline.storage import FileStat

# Rows of the manifest whose file stats are read together.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Planned:
    """A video to extract.

    Attributes:
        file_stat: size and time of change of its file; None if the file cannot be seen.
        replaces: the file of the feature set that holds its old rows or failure; "" for a new video.
    """

    job: VideoJob
    file_stat: FileStat | None
    replaces: str

    @property
    def num_bytes(self) -> int:
        """Size of the file, 0 if it cannot be seen."""
        return self.file_stat.num_bytes if self.file_stat else 0


@dataclass(slots=True)
class Skipped:
    """Counts of videos to skip: ``finished`` have features, ``failed`` are in the failure ledger."""

    finished: int = 0
    failed: int = 0


def plan(
    manifest: Iterable[pa.RecordBatch], state: pa.Table, *, retry_failed: bool, skipped: Skipped
) -> Iterator[Planned | None]:
    """List the videos to extract, in the manifest's order.

    A finished video is skipped if its file is gone or its file stat is the recorded one; a failed video if its file
    stat is the recorded one, unless ``retry_failed``. Holds ``state`` and one batch of the manifest.

    Args:
        manifest: record batches with the columns video_id and uri.
        state: the result of `read_state`.
        skipped: updated with the videos that are skipped.

    Yields:
        The videos, and None after every `ROWS_AT_ONCE` rows, so that the caller can do other work: on remote storage
        a long run of finished videos takes minutes.
    """
    for batch in manifest:
        places = pc.index_in(batch["video_id"], value_set=state["video_id"])  # slow: once a batch
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            rows = batch.slice(start, ROWS_AT_ONCE)
            recorded = state.take(places.slice(start, ROWS_AT_ONCE))
            yield from _plan_rows(rows, recorded, retry_failed=retry_failed, skipped=skipped)
            yield None


def first_planned(planned: Iterator[Planned | None]) -> Iterator[Planned | None] | None:
    """Return the same videos from the first one on, which is read here; None if there are none."""
    first = next(filter(None, planned), None)
    return None if first is None else chain([first], planned)


def _plan_rows(rows: pa.RecordBatch, state: pa.Table, *, retry_failed: bool, skipped: Skipped) -> Iterator[Planned]:
    uris = rows["uri"].to_pylist()
    videos = zip(rows["video_id"].to_pylist(), uris, storage.file_stats(uris), state.to_pylist(), strict=True)
    for video_id, uri, file_stat, recorded in videos:
        if recorded["video_id"] is None:
            yield Planned(VideoJob(video_id, uri), file_stat, "")
            continue
        digest = recorded["source_digest"]
        is_same = (recorded["source_bytes"], recorded["source_modified"]) == _as_recorded(file_stat)
        if digest is not None and (is_same or file_stat is None):
            skipped.finished += 1
        elif digest is None and is_same and not retry_failed:
            skipped.failed += 1
        else:
            yield Planned(VideoJob(video_id, uri, known_digest=digest or ""), file_stat, recorded["file"])


def _as_recorded(file_stat: FileStat | None) -> tuple[int | None, datetime | None]:
    return (file_stat.num_bytes, time_of(file_stat)) if file_stat else (None, None)
