"""`VideoTracker`: follows each video of an extraction from the plan to its rows or its failure; without Ray.

Features arrive in any order, processes die, and late results of an abandoned attempt must not count.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.work import FrameChunk, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import Rows, ShardWriter, VideoRows
from skipreel.pipeline.storage import FileStat

# Videos that a decoder gets at once, and may hold: enough not to wait, few enough to share the last videos evenly.
VIDEOS_AT_ONCE, VIDEOS_PER_DECODER, BYTES_PER_DECODER = 8, 16, 2 << 20
NewRows = Callable[[str, Source], Rows]
# A video fails when this many processes have died while it was the only one they held.
MAX_DEATHS = 3
MAX_RETRIES = 9


class _Unfinished:
    """What has arrived of one video; the video is whole when its outcome and all its frames have."""

    def __init__(self, new_rows: NewRows) -> None:
        self.rows: Rows | None = None
        self.outcome: VideoOutcome | None = None
        self._new_rows = new_rows
        self._early: dict[int, tuple[FrameChunk, Any]] = {}

    def receive(self, chunk: FrameChunk, values: Any) -> None:
        if self.rows is None:
            self.rows = self._new_rows(chunk.job.video_id, chunk.source)
        self._early[chunk.first] = (chunk, values)
        while self.rows.num_frames in self._early:
            chunk, values = self._early.pop(self.rows.num_frames)
            self.rows.append(chunk.frame_index, chunk.pts_s, values)


class VideoTracker:
    """Gives ``writer`` the rows or the failure of each planned video, exactly once.

    Args:
        planned: the videos; a None sets ``plan_paused``, and `more` reads on when the caller clears it.
        progress: updated with every video.
        on_failure: called with every video that fails.
        new_rows: makes the collector of a video's rows from the video's id and source.
        videos_per_decoder, bytes_per_decoder: the most that a decoder holds: videos, and size of their files.
    """

    def __init__(
        self,
        planned: Iterator[Planned | None],
        *,
        writer: ShardWriter,
        progress: Progress,
        on_failure: Callable[[Failure], None],
        new_rows: NewRows = VideoRows,
        videos_per_decoder: int = VIDEOS_PER_DECODER,
        bytes_per_decoder: int = BYTES_PER_DECODER,
    ) -> None:
        self._planned, self._writer, self._progress, self._on_failure = planned, writer, progress, on_failure
        self._new_rows, self._max_videos, self._max_bytes = (
            new_rows,
            videos_per_decoder,
            bytes_per_decoder,
        )
        self.plan_paused = False
        self._is_exhausted = False
        self._retries: deque[Planned] = deque()
        self._under_way: dict[str, Planned] = {}
        self._unfinished: dict[str, _Unfinished] = {}
        self._deaths: dict[str, int] = {}

    @property
    def is_done(self) -> bool:
        """Whether every video has its rows or its failure."""
        return self._is_exhausted and not self._under_way

    def more(self, assigned: Sequence[Planned]) -> Iterator[Planned]:
        """Choose the next videos for a decoder that holds ``assigned``."""
        count, num_bytes = len(assigned), sum(planned.num_bytes for planned in assigned)
        limit = min(count + VIDEOS_AT_ONCE, self._max_videos)
        while count < limit and (not count or num_bytes < self._max_bytes):
            planned = self._next_planned()
            if planned is None:
                break
            self._under_way[planned.job.video_id] = planned
            count, num_bytes = count + 1, num_bytes + planned.num_bytes
            yield planned
        # A video whose process died runs alone, so that another death has one suspect.
        if not count and self._retries:
            yield self._retries.popleft()

    def _next_planned(self) -> Planned | None:
        if self._is_exhausted or self.plan_paused:
            return None
        try:
            planned = next(self._planned)
        except StopIteration:
            self._is_exhausted = True
            return None
        self.plan_paused = planned is None
        return planned

    def is_current(self, job: VideoJob) -> bool:
        """Whether this is the latest attempt at a video that is not done."""
        planned = self._under_way.get(job.video_id)
        return planned is not None and planned.job.attempt == job.attempt

    def end(self, outcome: VideoOutcome) -> None:
        """Take the outcome of a video."""
        job = outcome.job
        if not self.is_current(job):
            return
        if outcome.reason:
            self.fail(job, outcome.reason, outcome.file_stat)
        elif outcome.unchanged:
            self._forget(job.video_id)
            self._progress.unchanged += 1
        else:
            self._video(job).outcome = outcome
            self._finish_if_whole(job)

    def receive(self, chunk: FrameChunk, values: Any) -> None:
        """Take the result of a chunk, such as features (T, D)."""
        if self.is_current(chunk.job):
            self._progress.frames += len(chunk.frame_index)
            self._video(chunk.job).receive(chunk, values)
            self._finish_if_whole(chunk.job)

    def fail(self, job: VideoJob, reason: str, file_stat: FileStat | None) -> None:
        """Send a video to the failure ledger, unless it is done."""
        if not self.is_current(job):
            return
        failure = Failure(job.video_id, job.uri, reason, file_stat)
        self._writer.fail(failure, replaces=self._under_way[job.video_id].replaces)
        self._progress.failed += 1
        self._on_failure(failure)
        self._forget(job.video_id)

    def retry(self, job: VideoJob) -> None:
        """Start a video again that is not to blame; it fails after `MAX_RETRIES` retries."""
        if not self.is_current(job):
            return
        planned = self._under_way[job.video_id]
        if job.attempt == MAX_RETRIES:
            lost = f"{job.uri}: processes or machines that worked on it were lost {MAX_RETRIES + 1} times"
            self.fail(job, lost, planned.file_stat)
            return
        self._discard(job.video_id)
        again = replace(planned, job=replace(job, attempt=job.attempt + 1))
        self._under_way[job.video_id] = again
        self._retries.append(again)

    def decoder_died(self, assigned: Sequence[Planned], *, hung_s: float | None) -> None:
        """Blame the video if the decoder held one alone; else start all again, each alone.

        Args:
            assigned: the videos that the decoder held.
            hung_s: the time limit in seconds if the decoder was stopped for exceeding it, else None.
        """
        lost = [planned for planned in assigned if self.is_current(planned.job)]
        for planned in lost:
            job = planned.job
            alone = len(lost) == 1
            self._deaths[job.video_id] = self._deaths.get(job.video_id, 0) + alone
            if alone and hung_s is not None:
                late = f"its next frames did not come within {hung_s:g} seconds (--time-limit-s)"
                self.fail(job, f"{job.uri}: {late}", planned.file_stat)
            elif self._deaths[job.video_id] == MAX_DEATHS:
                died = f"the process that decoded it died {MAX_DEATHS} times (a crash, or not enough memory)"
                self.fail(job, f"{job.uri}: {died}", planned.file_stat)
            else:
                self.retry(job)

    def _video(self, job: VideoJob) -> _Unfinished:
        return self._unfinished.setdefault(job.video_id, _Unfinished(self._new_rows))

    def _finish_if_whole(self, job: VideoJob) -> None:
        video = self._video(job)
        if video.outcome is None or video.rows is None or video.rows.num_frames < video.outcome.num_frames:
            return
        self._writer.add(video.rows, replaces=self._under_way[job.video_id].replaces)
        self._progress.finished += 1
        self._progress.video_s += video.outcome.duration_s
        self._forget(job.video_id)

    def _forget(self, video_id: str) -> None:
        del self._under_way[video_id]
        self._deaths.pop(video_id, None)
        self._discard(video_id)

    def _discard(self, video_id: str) -> None:
        video = self._unfinished.pop(video_id, None)
        if video is not None and video.rows is not None:
            video.rows.discard()
