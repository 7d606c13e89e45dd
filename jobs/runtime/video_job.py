"""A job over many videos on a Ray cluster, as an extraction and a prediction are: what is missing is worked on.

Videos that are finished are not touched, so an interrupted job continues where it stopped; a video whose file has
changed is worked on again.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from skipreel.features.extraction.planner import Planned, Skipped, first_planned, plan
from skipreel.features.extraction.progress import Progress
from skipreel.features.feature_set.ledger import read_state
from skipreel.features.feature_set.schema import Failure
from skipreel.jobs.runtime.ray_cluster import ray_cluster, tell_when_waiting
from skipreel.jobs.runtime.terminal import console, progress_bar


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job's videos.

    Attributes:
        progress: of this run alone.
        counts: of all runs: ``videos``, ``finished`` and ``failed``.
        seconds: how long this run took.
    """

    progress: Progress
    counts: dict[str, int]
    seconds: float


def run_video_job(
    output: str,
    videos: Iterable[pa.RecordBatch],
    make_stages: Callable[[Iterator[Planned | None], Callable[[Failure], None]], tuple[Any, Any]],
    *,
    num_videos: int,
    retry_failed: bool,
    has_segments: bool,
    description: str,
    line: Callable[[Progress], str],
) -> JobResult:
    """Work on the videos that are missing in an output, with a progress bar; hold `locked`.

    Args:
        videos: batches with the columns ``video_id`` and ``uri``; read as they are needed.
        make_stages: from the missing videos and what is to be called with each failure: the stages to run and their
            pools, as `features.extraction.ray_executor` has them. It is called once the cluster is connected.
        num_videos: how many ``videos`` has.
        retry_failed: try the videos in the failure ledger again, not only those whose file has changed.
        has_segments: see `read_state`.
        description: the text left of the bar; ``line``: the text below it.

    Raises:
        InputError: when the cluster or a place of videos cannot be used.
    """
    skipped, known = Skipped(), read_state(output, has_segments=has_segments)
    missing = first_planned(plan(videos, known, retry_failed=retry_failed, skipped=skipped))
    started, progress = time.monotonic(), Progress(1, 1)
    if missing is not None:
        # Ray says on standard output that a process died; here the failure ledger says what came of it.
        with redirect_stdout(io.StringIO()), ray_cluster():
            stages, pools = make_stages(missing, _print_failure)
            progress = stages.progress
            # One process is enough to begin.
            with (
                progress_bar() as bar,
                tell_when_waiting(cpus=pools.cpus_per_process, gpus=pools.gpus_per_encoder) as has_begun,
            ):
                task = bar.add_task(description, total=num_videos, note="")

                def tick() -> None:
                    through = skipped.finished + skipped.failed + progress.ended
                    bar.update(task, completed=through, note=f"{progress.failed} failed" if progress.failed else "")
                    bar.line = line(progress)
                    if progress.working_since is not None:
                        has_begun()

                stages.run(tick)
                tick()
    counts = {
        "videos": num_videos,
        "finished": skipped.finished + progress.finished + progress.unchanged,
        "failed": skipped.failed + progress.failed,
    }
    return JobResult(progress, counts, time.monotonic() - started)


def _print_failure(failure: Failure) -> None:
    console.print(f"failed: {failure.video_id}: {failure.reason}", markup=False)
