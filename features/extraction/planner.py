"""Which videos of a manifest still need work: those the feature set does not know, and those whose file has changed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from skipreel.features.extraction.tasks import VideoJob
from skipreel.features.feature_set.schema import time_of
from skipreel.pipeline import storage
from skipreel.pipeline.storage import FileStat

# Files whose size and time are asked for together.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Planned:
    """A video to extract.

    Attributes:
        stamp: of its file, None where it cannot be seen.
        replaces: the file of the feature set that holds its old rows or failure; "" for a new video.
    """

    task: VideoJob
    file_stat: FileStat | None
    replaces: str

    @property
    def num_bytes(self) -> int:
        """The file's size, 0 where it cannot be seen."""
        return self.file_stat.num_bytes if self.file_stat else 0


@dataclass(slots=True)
class Skipped:
    """How many videos need no work: ``finished`` have features, ``failed`` are in the failure ledger."""

    finished: int = 0
    failed: int = 0


def plan(
    manifest: Iterable[pa.RecordBatch], known: pa.Table, *, retry_failed: bool, skipped: Skipped
) -> Iterator[Planned | None]:
    """The videos to extract, in the manifest's order; None after every look at `ROWS_AT_ONCE` files.

    A long stretch of finished videos takes minutes on a remote storage: at None the caller can do other things.

    A finished video is left alone while its file has the size and time of change that were noted, or is gone; a failed
    one while its file looks as it did, unless ``retry_failed``. Holds ``known`` and one batch of the manifest.

    Args:
        manifest: record batches with the columns video_id and uri.
        known: what `read_state` returns.
        skipped: counts what is passed over, as this goes on.
    """
    for batch in manifest:
        places = pc.index_in(batch["video_id"], value_set=known["video_id"])  # costs its time for the known ones
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            part = batch.slice(start, ROWS_AT_ONCE)
            noted = known.take(places.slice(start, ROWS_AT_ONCE))
            yield from _plan_part(part, noted, retry_failed=retry_failed, skipped=skipped)
            yield None


def first_planned(planned: Iterator[Planned | None]) -> Iterator[Planned | None] | None:
    """The same videos, from the first on, which is looked for here; None where there is none."""
    first = next(filter(None, planned), None)
    return None if first is None else chain([first], planned)


def _plan_part(
    part: pa.RecordBatch, noted_rows: pa.Table, *, retry_failed: bool, skipped: Skipped
) -> Iterator[Planned]:
    uris = part["uri"].to_pylist()
    rows = zip(part["video_id"].to_pylist(), uris, storage.file_stats(uris), noted_rows.to_pylist(), strict=True)
    for video_id, uri, file_stat, noted in rows:
        if noted["video_id"] is None:
            yield Planned(VideoJob(video_id, uri), file_stat, "")
            continue
        digest = noted["source_digest"]
        is_same = (noted["source_bytes"], noted["source_modified"]) == _as_noted(file_stat)
        if digest is not None and (is_same or file_stat is None):
            skipped.finished += 1
        elif digest is None and is_same and not retry_failed:
            skipped.failed += 1
        else:
            yield Planned(VideoJob(video_id, uri, known_digest=digest or ""), file_stat, noted["file"])


def _as_noted(file_stat: FileStat | None) -> tuple[int | None, datetime | None]:
    return (file_stat.num_bytes, time_of(file_stat)) if file_stat else (None, None)
