"""The Ray Data adapter of extraction: the only module of this package that knows Ray."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util.annotations import RayDeprecationWarning

from features import store
from features.backbones import load_backbone
from features.errors import FeatureSetError
from features.extraction import extract_video
from features.schema import Segment
from pipeline import storage
from pipeline.errors import StorageError, VideoError
from pipeline.manifest import VideoEntry
from pipeline.sampling import Sampling

VIDEOS_PER_SHARD = 8


@dataclass(frozen=True, slots=True)
class VideoResult:
    """What became of one video: ``reason`` is empty when its features were written."""

    video_id: str
    num_frames: int
    seconds: float
    reason: str


def extract_on_ray(
    entries: Sequence[VideoEntry],
    *,
    output: str,
    backbone: str,
    sampling: Sampling,
    decoder: str,
    num_workers: int,
    device: str,
) -> Iterator[VideoResult]:
    """Extract ``entries`` on a Ray cluster that is already connected; yields results as shards are finished.

    Each worker process holds the backbone once, decodes and encodes a group of videos and writes their shard itself:
    rows reach the disk in one atomic step, which Ray's own writer does not promise.

    Raises:
        FeatureSetError: when a worker process died.
    """
    rows = [{"video_id": entry.video_id, "uri": entry.uri} for entry in entries]
    num_groups = -(-len(rows) // VIDEOS_PER_SHARD)
    groups = ray.data.from_items(rows, override_num_blocks=num_groups)
    with warnings.catch_warnings():
        # Ray 2.60 announces the end of free remote arguments, but names none yet for the two restart limits.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = groups.map_batches(
            _GroupExtractor,
            batch_size=None,  # a block is a group
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, num_groups)),
            num_cpus=1,
            num_gpus=1 if device == "cuda" else 0,
            # A video that kills its process would otherwise be retried without end.
            max_restarts=0,
            max_task_retries=0,
            fn_constructor_kwargs={
                "output": output,
                "backbone": backbone,
                "sampling": sampling,
                "decoder": decoder,
                "device": device,
            },
        )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield VideoResult(**row)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StorageError):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:
        raise FeatureSetError(
            "a process of the extraction died; finished shards are kept, run the same command again to go on "
            f"({type(error).__name__})"
        ) from error


class _GroupExtractor:
    def __init__(self, *, output: str, backbone: str, sampling: Sampling, decoder: str, device: str) -> None:
        self._output, self._sampling, self._decoder = output, sampling, decoder
        self._backbone = load_backbone(backbone, device=device)

    def __call__(self, group: pa.Table) -> pa.Table:
        done: dict[str, tuple[str, list[Segment]]] = {}
        failed: list[dict[str, str]] = []
        results: list[dict[str, Any]] = []
        for row in group.to_pylist():
            started, num_frames, reason = time.perf_counter(), 0, ""
            try:
                digest, segments = self._extract(row["uri"])
            except VideoError as error:
                reason = str(error)
                failed.append({**row, "reason": reason})
            else:
                done[row["video_id"]] = (digest, segments)
                num_frames = sum(len(segment.pts_s) for segment in segments)
            seconds = time.perf_counter() - started
            results.append(
                {"video_id": row["video_id"], "num_frames": num_frames, "seconds": seconds, "reason": reason}
            )
        if done:
            store.write_shard(self._output, done)
        if failed:
            store.write_failures(self._output, failed)
        return pa.Table.from_pylist(results)

    def _extract(self, uri: str) -> tuple[str, list[Segment]]:
        try:
            digest = storage.sha256(uri)
        except StorageError as error:  # a file that vanished is that video's failure, not the job's
            raise VideoError(str(error)) from error
        return digest, list(extract_video(uri, backbone=self._backbone, sampling=self._sampling, decoder=self._decoder))
