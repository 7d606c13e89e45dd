"""Many videos at once in one process: worker threads do the jobs of a `VideoQueue`.

They decode the frame that a video waits for, or encode a batch of frames gathered across videos and take the videos'
states one step on. Then each video's next frame is known and can be decoded; no video waits for another.
FFmpeg and torch release Python's lock while they work. On a CPU the workers share the cores and encode with one thread
each: convolutions then round alike whatever was encoded beside a frame (a linear layer may round a frame that is alone
otherwise). A GPU gets a thread of its own.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from skipreel.features.backbones.backbone import Backbone
from skipreel.jobs.closed_loop.decoder_calls import DecoderCalls
from skipreel.jobs.closed_loop.prediction import Seconds
from skipreel.jobs.closed_loop.queue import Decode, Encode, Finish, Job, Open, Outcome, QueuedVideo, VideoQueue
from skipreel.jobs.closed_loop.session import DecodedFrames, Request, Steps, encode, open_session
from skipreel.jobs.closed_loop.torch_threads import use_one_thread
from skipreel.jobs.trained.model import TrainedModel
from skipreel.pipeline.closeable import Closeable
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.video import find_decoder, open_video

VIDEOS_IN_FLIGHT = 64
# How long `close` waits for decoders that are at work.
LAST_CALL_S = 1.0

_Event = Callable[[], bool]
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How videos are looked at.

    Attributes:
        dense: look at every frame instead of those the network asks for.
        in_flight: videos that are open at a time, at most; in a job, in each process.
        time_limit_s: a video fails if its next frame does not come within this many seconds.
        decoder: pyav reads everything; decord and torchcodec plain MP4 and Matroska; or module:function (your own).
    """

    dense: bool = False
    in_flight: int = VIDEOS_IN_FLIGHT
    time_limit_s: float = 300.0
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        find_decoder(self.decoder)
        if self.in_flight < 1:
            raise InputError(f"--in-flight is {self.in_flight}, allowed: 1 or more")


class Scheduler(Closeable):
    """Labels videos, many at a time; use it as a context manager.

    Args:
        settings: each open video holds a decoder with a few of its pictures. Without workers the time limit is not
            watched.
        num_workers: threads that decode and, on a CPU, encode with one thread of torch each; up to twice as many where
            decoders are slow. 0: the caller's thread does everything while it waits, with all of its torch threads: the
            fastest way for a lone video.

    Attributes:
        frames_encoded: how many, so far.

    Memory: the open videos, the frames of two batches, and those of one request for each worker.
    """

    def __init__(
        self, model: TrainedModel, backbone: Backbone, settings: SchedulerSettings, *, num_workers: int = 1
    ) -> None:
        self._model, self._backbone, self._settings, self._num_workers = model, backbone, settings, num_workers
        self._changed = threading.Condition()  # guards all that follows
        self._queue = VideoQueue(in_flight=settings.in_flight, batch_size=backbone.batch_size)
        self._calls = DecoderCalls(max_substitutes=num_workers, time_limit_s=settings.time_limit_s)
        self._is_closed = False
        self._threads: set[threading.Thread] = set()
        self.frames_encoded = 0
        is_on_gpu = backbone.device.type != "cpu"
        self._next_of_worker = self._queue.next_decoding if is_on_gpu else self._queue.next_job
        for _ in range(num_workers):
            self._start(self._next_of_worker)
        if is_on_gpu and num_workers:
            self._start(self._queue.next_encoding)

    def add(self, requests: Iterable[Request]) -> None:
        """Add videos; they begin in this order."""
        with self._changed:
            self._queue.add(requests)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """The outcomes since the last call, as soon as there is one; none after ``timeout_s`` without one."""
        if not self._num_workers:
            self._work_here(timeout_s)
        with self._changed:
            self._changed.wait_for(lambda: self._queue.outcomes or not self._num_workers, timeout_s)
            self._check_calls()
            return self._queue.take_outcomes()

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Yield each video's outcome as soon as it is known; ``requests`` is read as videos begin."""
        source = iter(requests)
        pending = 0
        while True:
            more = list(islice(source, self._settings.in_flight + 1 - pending))
            self.add(more)
            pending += len(more)
            if not pending:
                return
            for outcome in self.wait(timeout_s=0.2):
                pending -= 1
                yield outcome

    def close(self) -> None:
        """Stop: open videos are closed and have no outcome.

        A decoder that does not return within a second is left to its thread, which closes the video when it returns.
        """
        with self._changed:
            self._is_closed = True
            idle = self._queue.close()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._calls.threads, LAST_CALL_S)
            in_decoder = self._calls.threads
            threads = [thread for thread in self._threads if thread.ident not in in_decoder]
        for thread in threads:
            thread.join()
        for video in idle:
            self._close(video)

    def _start(self, next_job: Callable[[], Job | None]) -> None:
        thread = threading.Thread(target=self._work, args=(next_job,), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, next_job: Callable[[], Job | None]) -> None:
        use_one_thread()
        with torch.inference_mode():
            while (job := self._await_job(next_job)) is not None:
                self._do(job)

    def _work_here(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        with torch.inference_mode():
            while not self._queue.outcomes and time.monotonic() < until and (job := self._take(self._queue.next_job)):
                self._do(job)

    def _await_job(self, next_job: Callable[[], Job | None]) -> Job | None:
        with self._changed:
            if self._calls.take_leave():
                self._threads.remove(threading.current_thread())
                return None
            while not self._is_closed:
                if job := self._take(next_job):
                    return job
                self._changed.wait()
        return None

    def _take(self, next_job: Callable[[], Job | None]) -> Job | None:
        job = next_job()
        if isinstance(job, Open | Decode):
            self._calls.begin(job.video)
        return job

    def _do(self, job: Job) -> None:
        match job:
            case Open(video):
                self._call_decoder(video, self._open)
            case Decode(video, steps):
                self._call_decoder(video, partial(self._decode, steps=steps))
            case Encode(batch):
                self._encode(batch)
            case Finish(video):
                self._finish(video)

    def _open(self, video: QueuedVideo) -> _Event:
        seconds, request, settings = Seconds(), video.request, self._settings
        with ExitStack() as on_error:
            with seconds.measure("decode"):
                opened = on_error.enter_context(open_video(request.path or request.uri, decoder=settings.decoder))
            max_frames = self._backbone.batch_size
            session = open_session(request, opened, self._model, seconds, dense=settings.dense, max_frames=max_frames)
            wanted = session.next_wanted()
            on_error.pop_all()
        return partial(self._queue.opened, video, session, wanted)

    def _decode(self, video: QueuedVideo, steps: Steps) -> _Event:
        assert video.session is not None
        frames = DecodedFrames(video.session, steps, video.session.decode(steps))
        return partial(self._queue.decoded, video, frames, video.session.next_wanted())

    def _call_decoder(self, video: QueuedVideo, function: Callable[[QueuedVideo], _Event]) -> None:
        event: _Event = partial(self._queue.decoder_failed, video, f"{video.request.uri}: its decoder was interrupted")
        try:
            event = function(video)
        except (Exception, SystemExit) as error:  # a user's decoder may raise anything; other videos must not suffer
            event = partial(self._queue.decoder_failed, video, _reason(error, video.request, "decoder"))
        finally:  # after KeyboardInterrupt too
            self._tell(video, event, from_decoder=True)

    def _encode(self, batch: list[tuple[QueuedVideo, DecodedFrames]]) -> None:
        try:
            updates, seconds = encode([frames for _, frames in batch], self._backbone)
        except (Exception, SystemExit) as error:  # a user's backbone likewise
            if len(batch) > 1:
                for alone in batch:
                    self._encode([alone])
                return
            video = batch[0][0]
            self._tell(video, partial(self._queue.ended, video, None, _reason(error, video.request, "backbone")))
            return
        with self._changed:
            for (video, frames), update in zip(batch, updates, strict=True):
                session = frames.session
                self.frames_encoded += update.num_frames
                session.seconds.encode += seconds.encode * update.num_frames
                session.seconds.recognise += seconds.recognise * update.num_frames
                session.commit(update)
                self._queue.encoded(video, update.wanted, is_complete=session.is_complete)
            self._changed.notify_all()

    def _finish(self, video: QueuedVideo) -> None:
        assert video.session is not None
        prediction, reason = None, ""
        try:
            prediction = video.session.prediction()
        except Exception as error:
            reason = _reason(error, video.request, "network")
        self._tell(video, partial(self._queue.ended, video, prediction, reason))

    def _tell(self, video: QueuedVideo, event: _Event, *, from_decoder: bool = False) -> None:
        with self._changed:
            if from_decoder:
                self._calls.end()
            must_close = event()
            self._changed.notify_all()
        if must_close:  # without the lock: it may take long
            self._close(video)

    def _close(self, video: QueuedVideo) -> None:
        assert video.session is not None
        try:
            video.session.video.close()
        except Exception as error:  # the video has its outcome
            _LOGGER.warning("%s could not be closed: %s: %s", video.request.uri, type(error).__name__, error)
        with self._changed:
            self._queue.closed(video)
            self._changed.notify_all()

    def _check_calls(self) -> None:
        """With the lock held: give up calls that take too long, and start substitutes for slow workers."""
        for call in self._calls.give_up():  # its worker closes the video if the decoder ever returns
            uri = call.video.request.uri
            late = f"{uri}: its next frame did not come within {self._settings.time_limit_s:g} seconds"
            self._queue.ended(call.video, None, late)
        for _ in range(self._calls.substitute()):
            self._start(self._next_of_worker)


def _reason(error: BaseException, request: Request, part: str) -> str:
    text = " ".join(str(error).split())
    if request.path:
        text = text.replace(request.path, request.uri)
    if isinstance(error, InputError):
        return text
    return f"{request.uri}: the {part} raised {type(error).__name__}: {text[:200]}"
