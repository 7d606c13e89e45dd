"""What runs in the processes of a prediction job: videos in, predictions out, several videos open at a time.

A plain class with the methods of `features.extraction.actors.Worker`: `jobs.predictions.job` makes Ray actors of it.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from skipreel.features.extraction.actors import BLOCK_S, Decoded, extend_sys_path, limit_memory
from skipreel.features.extraction.work import FrameChunk, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Source
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.queue import Outcome
from skipreel.jobs.closed_loop.scheduler import Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.model import TrainedModel
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.storage import LocalCopy
from skipreel.pipeline.video import Frame

# Poll interval in seconds: whether the process has worked long enough to report.
_POLL_S = 0.25
# How Python, FFmpeg, torch and CUDA say that they are out of memory.
_OUT_OF_MEMORY = ("memoryerror", "cannot allocate memory", "can't allocate memory", "out of memory")


@dataclass(slots=True)
class _Open:
    """A video that the scheduler has; ``files`` holds its local copy."""

    task: VideoJob
    copy: LocalCopy
    files: ExitStack
    is_alone: bool


class PredictionWorker:
    """Turns videos into predictions.

    Args:
        settings: of its scheduler; the time limit is kept by whoever waits for the process.
        memory_bytes: what this process may allocate beside the model; a video that needs more fails.
        backbone: where the model's backbone is found now; ``device``: where it runs; see `load_backbone_of`.
        num_workers: of its scheduler.
        import_path: more places to import from, such as a user's decoder.
    """

    def __init__(
        self,
        model: TrainedModel,
        settings: SchedulerSettings,
        *,
        memory_bytes: int,
        backbone: str | None = None,
        device: str = "cpu",
        num_workers: int = 1,
        import_path: Sequence[str] = (),
    ) -> None:
        extend_sys_path(import_path)
        self._model, self._memory_bytes = model, memory_bytes
        self._settings = replace(settings, time_limit_s=math.inf)
        self._backbone, self._device, self._num_workers = backbone, device, num_workers
        self._tasks: deque[VideoJob] = deque()
        self._retries: deque[VideoJob] = deque()  # each is tried again alone
        self._open: dict[str, _Open] = {}
        self._scheduler: Scheduler | None = None
        self._worked_s = 0.0

    def ready(self) -> None:
        """Load the backbone.

        Raises:
            BackboneError: when that fails.
        """
        backbone = load_backbone_of(self._model, name=self._backbone, device=self._device)
        limit_memory(self._memory_bytes)
        self._scheduler = Scheduler(self._model, backbone, self._settings, num_workers=self._num_workers)

    def next_block(self, tasks: Sequence[VideoJob]) -> tuple[Decoded, list[Frame]]:
        """Add videos, and work until one ends, or for a second if frames were encoded.

        It does not return before a frame is encoded, so that the caller notices a decoder that hangs. An empty block in
        less than a second means that all videos have ended.
        """
        assert self._scheduler is not None, "ready() comes first"
        started, encoded = time.perf_counter(), self._scheduler.frames_encoded
        self._tasks.extend(tasks)
        block = Decoded([], [], 0.0, results=[])
        while not block.outcomes:
            begun = self._begin_next(block)
            if not begun and not self._open:
                break
            for outcome in self._scheduler.wait(0.0 if begun else _POLL_S):
                self._finish(outcome, block)
            if time.perf_counter() - started >= BLOCK_S and self._scheduler.frames_encoded > encoded:
                break
        self._worked_s += time.perf_counter() - started
        if block.chunks:  # the time since the last prediction is this one's
            block, self._worked_s = Decoded(block.chunks, block.outcomes, self._worked_s, results=block.results), 0.0
        return block, []

    def _begin_next(self, block: Decoded) -> bool:
        """Begin one more video if there is room; whether it did."""
        if any(video.is_alone for video in self._open.values()):
            return False
        if self._tasks and len(self._open) < self._settings.in_flight:
            self._begin(self._tasks.popleft(), block, is_alone=False)
            return True
        if self._retries and not self._open:
            self._begin(self._retries.popleft(), block, is_alone=True)
            return True
        return False

    def _begin(self, task: VideoJob, block: Decoded, *, is_alone: bool) -> None:
        assert self._scheduler is not None
        files = ExitStack()
        try:
            copy = files.enter_context(storage.local_copy(task.uri))
        except InputError as error:
            block.outcomes.append(VideoOutcome(task, None, reason=" ".join(str(error).split())))
            return
        if copy.sha256 == task.known_digest:
            files.close()
            block.outcomes.append(VideoOutcome(task, copy.file_stat, unchanged=True))
            return
        self._open[task.video_id] = _Open(task, copy, files, is_alone)
        self._scheduler.add([Request(task.video_id, task.uri, copy.path)])

    def _finish(self, outcome: Outcome, block: Decoded) -> None:
        video = self._open.pop(outcome.request.key)
        task, file_stat, prediction = video.task, video.copy.file_stat, outcome.prediction
        with video.files:
            reason = outcome.reason or _wrong_with(prediction, video)
        if any(words in reason.lower() for words in _OUT_OF_MEMORY):
            if not video.is_alone:  # another video may have taken the memory
                self._retries.append(task)
                return
            reason = f"{task.uri} needs more memory than a decoder may take; give more with --decoder-memory-mb"
        if prediction is None or reason:
            block.outcomes.append(VideoOutcome(task, file_stat, reason=reason))
            return
        assert block.results is not None
        source, index = Source(video.copy.sha256, file_stat), prediction.frame_index.astype(np.int32)
        block.chunks.append(FrameChunk(task, source, 0, index, prediction.pts_s))
        block.results.append(prediction)
        block.outcomes.append(VideoOutcome(task, file_stat, len(index), prediction.duration_s))


def _wrong_with(prediction: Prediction | None, video: _Open) -> str:
    uri = video.task.uri
    if prediction is not None and not np.isfinite(prediction.scores).all():
        return f"scores of {uri} are not finite numbers: the model is damaged, train it again"
    try:
        (now,) = storage.file_stats([uri])
    except InputError as error:
        return " ".join(str(error).split())
    return "" if now in (None, video.copy.file_stat) else f"{uri} changed while it was read; run the prediction again"
