"""Many videos at once: what is to be done next, and what became of each. No threads, no locks, no clock.

A video goes through these jobs. The ``next_…`` methods hand a job out, and an event tells its end:

    add, Open, opened, Decode, decoded, Encode, encoded, Decode, …, Finish, ended, closed

Any job may fail instead. A video has one outcome: what is told about the video later changes nothing.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.session import DecodedFrames, Request, Session, Steps


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a video: a prediction, or the reason why there is none."""

    request: Request
    prediction: Prediction | None
    reason: str = ""


@dataclass(slots=True, eq=False)
class QueuedVideo:
    """A video that has begun; only `VideoQueue` changes it.

    Attributes:
        session: None until it is open.
        is_in_decoder: one worker opens or decodes it, and nobody else may close it.
        outcome: set once it is decided.
        is_over: it has an outcome, or needs none since the queue was closed.
    """

    request: Request
    session: Session | None = None
    is_in_decoder: bool = True
    outcome: Outcome | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """Open this video; ends with `VideoQueue.opened` or `VideoQueue.decoder_failed`."""

    video: QueuedVideo


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode these steps of it; ends with `VideoQueue.decoded` or `VideoQueue.decoder_failed`."""

    video: QueuedVideo
    steps: Steps


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode these frames together; ends for each of them with `VideoQueue.encoded` or `VideoQueue.ended`."""

    batch: list[tuple[QueuedVideo, DecodedFrames]]


@dataclass(frozen=True, slots=True)
class Finish:
    """Compute the prediction, all frames are encoded; ends with `VideoQueue.ended`."""

    video: QueuedVideo


Job = Open | Decode | Encode | Finish


class VideoQueue:
    """Says what is to be done next; for one thread at a time.

    `opened`, `decoded`, `decoder_failed` and `ended` return whether the caller must close the video's session now, and
    then tell `closed`.

    Args:
        in_flight: videos that have begun and have no outcome yet, at most.
        batch_size: frames that are encoded together, at most. Nothing is decoded while twice as many are ready.
    """

    def __init__(self, *, in_flight: int, batch_size: int) -> None:
        self._in_flight, self._batch_size = in_flight, batch_size
        self._requests: deque[Request] = deque()  # not begun
        self._waiting: deque[Decode] = deque()
        self._ready: deque[tuple[QueuedVideo, DecodedFrames]] = deque()  # to be encoded
        self._complete: deque[QueuedVideo] = deque()  # to be finished
        self._begun: set[QueuedVideo] = set()  # their outcomes are not handed out
        self.outcomes: list[Outcome] = []

    def add(self, requests: Iterable[Request]) -> None:
        """Add videos; they begin in this order."""
        self._requests.extend(requests)

    def next_job(self) -> Job | None:
        """For a worker that decodes and encodes."""
        # A full batch first: it is still in the processor's cache, and no more is decoded than that.
        if self._num_ready >= self._batch_size:
            return self.next_encoding()
        return self.next_decoding() or self.next_encoding()

    def next_decoding(self) -> Open | Decode | Finish | None:
        """For a worker that does not encode."""
        if self._complete:
            return Finish(self._complete.popleft())
        if self._num_ready >= 2 * self._batch_size:
            return None
        while self._waiting:
            job = self._waiting.popleft()
            if not job.video.is_over:
                job.video.is_in_decoder = True
                return job
        if self._requests and len(self._begun) < self._in_flight:
            video = QueuedVideo(self._requests.popleft())
            self._begun.add(video)
            return Open(video)
        return None

    def next_encoding(self) -> Encode | None:
        """For a worker that only encodes."""
        batch: list[tuple[QueuedVideo, DecodedFrames]] = []
        room = self._batch_size
        while self._ready and len(self._ready[0][1].frames) <= room:
            batch.append(self._ready.popleft())
            room -= len(batch[-1][1].frames)
        return Encode(batch) if batch else None

    def opened(self, video: QueuedVideo, session: Session, wanted: Steps) -> bool:
        """The video is open, and its session wants these steps (n,) first."""
        video.session = session
        return self._decoder_returned(video, wanted)

    def decoded(self, video: QueuedVideo, frames: DecodedFrames, wanted: Steps) -> bool:
        """Its session has these frames, and wants these steps (n,) next; none if that depends on the frames."""
        if not video.is_over:
            self._ready.append((video, frames))
        return self._decoder_returned(video, wanted)

    def decoder_failed(self, video: QueuedVideo, reason: str) -> bool:
        """The video could not be opened, or a frame of it not decoded."""
        video.is_in_decoder = False
        if video.is_over:
            return video.session is not None
        return self.ended(video, None, reason)

    def encoded(self, video: QueuedVideo, wanted: Steps, *, is_complete: bool) -> None:
        """Frames of it are encoded; its session wants these steps (n,) next, or has all that it needs."""
        self._wait(video, wanted)
        if is_complete and not video.is_over:
            self._complete.append(video)

    def ended(self, video: QueuedVideo, prediction: Prediction | None, reason: str = "") -> bool:
        """The video has its prediction, could not be encoded or finished, or is given up while it is in its decoder."""
        if video.is_over:
            return False
        video.is_over, video.outcome = True, Outcome(video.request, prediction, reason)
        if video.session is not None and not video.is_in_decoder:
            return True
        self.closed(video)  # not open, or its worker closes it when the decoder returns
        return False

    def closed(self, video: QueuedVideo) -> None:
        """Its session is closed: the outcome is handed out, if it was not before."""
        if video in self._begun and video.outcome is not None:
            self._begun.remove(video)
            self.outcomes.append(video.outcome)

    def take_outcomes(self) -> list[Outcome]:
        """Those since the last call."""
        found, self.outcomes = self.outcomes, []
        return found

    def close(self) -> list[QueuedVideo]:
        """Forget all videos without an outcome; returns those whose sessions the caller must close."""
        for pending in (self._requests, self._waiting, self._ready, self._complete):
            pending.clear()
        under_way = [video for video in self._begun if not video.is_over]
        for video in under_way:
            video.is_over = True
        self._begun.clear()
        return [video for video in under_way if video.session is not None and not video.is_in_decoder]

    @property
    def _num_ready(self) -> int:
        return sum(len(decoded.frames) for _, decoded in self._ready)

    def _decoder_returned(self, video: QueuedVideo, wanted: Steps) -> bool:
        video.is_in_decoder = False
        self._wait(video, wanted)
        return video.is_over

    def _wait(self, video: QueuedVideo, wanted: Steps) -> None:
        if len(wanted) and not video.is_over:
            self._waiting.append(Decode(video, wanted))
