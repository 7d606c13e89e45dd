"""Which videos of a manifest still need work: those the feature set does not know, and those whose file has changed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from features.extraction import VideoTask
from pipeline import storage
from pipeline.storage import FileStamp


@dataclass(frozen=True, slots=True)
class Planned:
    """A video to extract.

    Attributes:
        stamp: of its file, None where it cannot be seen.
        replaces: the file of the feature set that holds its old rows or failure; "" for a new video.
    """

    task: VideoTask
    stamp: FileStamp | None
    replaces: str

    @property
    def num_bytes(self) -> int:
        """The file's size, 0 where it cannot be seen."""
        return self.stamp.num_bytes if self.stamp else 0


@dataclass(slots=True)
class Skipped:
    """How many videos need no work: ``finished`` have features, ``failed`` are in the failure ledger."""

    finished: int = 0
    failed: int = 0


def plan(
    manifest: Iterable[pa.RecordBatch], known: pa.Table, *, retry_failed: bool, skipped: Skipped
) -> Iterator[Planned]:
    """The videos to extract, in the manifest's order.

    A finished video is left alone while its file has the size and time of change that were noted, or is gone; a failed
    one while its file looks as it did, unless ``retry_failed``. Holds ``known`` and one batch of the manifest.

    Args:
        manifest: record batches with the columns video_id and uri.
        known: what `store.known` returns.
        skipped: counts what is passed over, as this goes on.
    """
    index = {name: known[name] for name in known.column_names}
    for batch in manifest:
        uris = batch["uri"].to_pylist()
        stamps = storage.stamps(uris)
        places = pc.index_in(batch["video_id"], value_set=known["video_id"]).to_pylist()
        for video_id, uri, stamp, place in zip(batch["video_id"].to_pylist(), uris, stamps, places, strict=True):
            if place is None:
                yield Planned(VideoTask(video_id, uri), stamp, "")
                continue
            digest = index["source_digest"][place].as_py()
            noted = (index["source_bytes"][place].as_py(), index["source_modified"][place].value)
            is_same = noted == ((stamp.num_bytes, stamp.modified_us) if stamp else (None, None))
            if digest is not None and (is_same or stamp is None):
                skipped.finished += 1
            elif digest is None and is_same and not retry_failed:
                skipped.failed += 1
            else:
                task = VideoTask(video_id, uri, known_digest=digest or "")
                yield Planned(task, stamp, index["file"][place].as_py())
