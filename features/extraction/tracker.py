"""Every video of an extraction from plan to end: what is owed, what has come of it, and what it is blamed for.

Features come back in any order, processes die, and what a given-up attempt still says must not count. No Ray in here.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.tasks import FrameChunk, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import Rows, ShardWriter, VideoRows
from skipreel.pipeline.storage import FileStat

# Videos that a decoder is given at once, and has in hand: enough not to wait, few enough to share the last ones out.
VIDEOS_AT_ONCE, VIDEOS_IN_HAND, BYTES_IN_HAND = 8, 16, 2 << 20
NewRows = Callable[[str, Source], Rows]
# So often may a process die with one video alone in hand before that video fails.
MAX_DEATHS = 3
MAX_RETRIES = 9


class _Unfinished:
    """What there is of one video; it is whole when its ending and all its frames are there."""

    def __init__(self, new_rows: NewRows) -> None:
        self.rows: Rows | None = None
        self.ending: VideoOutcome | None = None
        self._new_rows = new_rows
        self._early: dict[int, tuple[FrameChunk, Any]] = {}

    def receive(self, part: FrameChunk, values: Any) -> None:
        if self.rows is None:
            self.rows = self._new_rows(part.task.video_id, part.source)
        self._early[part.first] = (part, values)
        while self.rows.num_frames in self._early:
            part, values = self._early.pop(self.rows.num_frames)
            self.rows.append(part.frame_index, part.pts_s, values)


class VideoTracker:
    """Owes each planned video one end: rows or a failure, given to ``writer`` once.

    Args:
        planned: the videos; at a None among them, `more` goes no further until ``plan_paused`` is taken back.
        on_failure: called with every video that fails.
        new_rows: makes what collects the rows of a video, given its id and its file.
        videos_in_hand, bytes_in_hand: what a decoder has of videos, at most, so that it need not wait.
    """

    def __init__(
        self,
        planned: Iterator[Planned | None],
        *,
        writer: ShardWriter,
        progress: Progress,
        on_failure: Callable[[Failure], None],
        new_rows: NewRows = VideoRows,
        videos_in_hand: int = VIDEOS_IN_HAND,
        bytes_in_hand: int = BYTES_IN_HAND,
    ) -> None:
        self._planned, self._writer, self._progress, self._on_failure = planned, writer, progress, on_failure
        self._new_rows, self._videos_in_hand, self._bytes_in_hand = new_rows, videos_in_hand, bytes_in_hand
        self.plan_paused = False
        self._is_exhausted = False
        self._retries: deque[Planned] = deque()
        self._under_way: dict[str, Planned] = {}
        self._unfinished: dict[str, _Unfinished] = {}
        self._deaths: dict[str, int] = {}

    @property
    def is_done(self) -> bool:
        """Whether every video has come to its end."""
        return self._is_exhausted and not self._under_way

    def more(self, in_hand: Sequence[Planned]) -> Iterator[Planned]:
        """Videos to decode next, for a decoder that has these in hand."""
        count, num_bytes = len(in_hand), sum(planned.num_bytes for planned in in_hand)
        limit = min(count + VIDEOS_AT_ONCE, self._videos_in_hand)
        while count < limit and (not count or num_bytes < self._bytes_in_hand):
            planned = self._next_planned()
            if planned is None:
                break
            self._under_way[planned.task.video_id] = planned
            count, num_bytes = count + 1, num_bytes + planned.num_bytes
            yield planned
        # A video that was in hand when a process died goes alone, so that another death has one suspect.
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

    def is_current(self, task: VideoJob) -> bool:
        """Whether this is the latest attempt at a video that has not come to its end."""
        planned = self._under_way.get(task.video_id)
        return planned is not None and planned.task.attempt == task.attempt

    def end(self, ending: VideoOutcome) -> None:
        """A decoder is through with a video."""
        task = ending.task
        if not self.is_current(task):
            return
        if ending.reason:
            self.fail(task, ending.reason, ending.file_stat)
        elif ending.unchanged:
            self._forget(task.video_id)
            self._progress.unchanged += 1
        else:
            self._video(task).ending = ending
            self._finish_if_whole(task)

    def receive(self, part: FrameChunk, values: Any) -> None:
        """What came of a part, such as features (T, D)."""
        if self.is_current(part.task):
            self._progress.frames += len(part.frame_index)
            self._video(part.task).receive(part, values)
            self._finish_if_whole(part.task)

    def fail(self, task: VideoJob, reason: str, file_stat: FileStat | None) -> None:
        """Send a video to the failure ledger, unless it has come to its end already."""
        if not self.is_current(task):
            return
        failure = Failure(task.video_id, task.uri, reason, file_stat)
        self._writer.fail(failure, replaces=self._under_way[task.video_id].replaces)
        self._progress.failed += 1
        self._on_failure(failure)
        self._forget(task.video_id)

    def retry(self, task: VideoJob) -> None:
        """Start a video over; it did nothing wrong."""
        if not self.is_current(task):
            return
        planned = self._under_way[task.video_id]
        if task.attempt == MAX_RETRIES:
            lost = f"{task.uri}: processes or machines that worked on it were lost {MAX_RETRIES + 1} times"
            self.fail(task, lost, planned.file_stat)
            return
        self._discard(task.video_id)
        again = replace(planned, task=replace(task, attempt=task.attempt + 1))
        self._under_way[task.video_id] = again
        self._retries.append(again)

    def decoder_died(self, in_hand: Sequence[Planned], *, hung_s: float | None) -> None:
        """Blame a video that was alone in hand; where there were more, each goes alone from now on.

        Args:
            hung_s: the time limit, where the decoder was stopped because it had passed it.
        """
        lost = [planned for planned in in_hand if self.is_current(planned.task)]
        for planned in lost:
            task = planned.task
            alone = len(lost) == 1
            self._deaths[task.video_id] = self._deaths.get(task.video_id, 0) + alone
            if alone and hung_s is not None:
                late = f"its next frames did not come within {hung_s:g} seconds (--time-limit-s)"
                self.fail(task, f"{task.uri}: {late}", planned.file_stat)
            elif self._deaths[task.video_id] == MAX_DEATHS:
                died = f"the process that decoded it died {MAX_DEATHS} times, by a crash or for want of memory"
                self.fail(task, f"{task.uri}: {died}", planned.file_stat)
            else:
                self.retry(task)

    def _video(self, task: VideoJob) -> _Unfinished:
        return self._unfinished.setdefault(task.video_id, _Unfinished(self._new_rows))

    def _finish_if_whole(self, task: VideoJob) -> None:
        video = self._video(task)
        if video.ending is None or video.rows is None or video.rows.num_frames < video.ending.num_frames:
            return
        self._writer.add(video.rows, replaces=self._under_way[task.video_id].replaces)
        self._progress.finished += 1
        self._progress.video_s += video.ending.duration_s
        self._forget(task.video_id)

    def _forget(self, video_id: str) -> None:
        del self._under_way[video_id]
        self._deaths.pop(video_id, None)
        self._discard(video_id)

    def _discard(self, video_id: str) -> None:
        video = self._unfinished.pop(video_id, None)
        if video is not None and video.rows is not None:
            video.rows.discard()
