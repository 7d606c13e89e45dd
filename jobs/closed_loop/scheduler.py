"""Many videos at once in one process: decoded and encoded by event, each video waiting for its own next frame alone.

Worker threads do whatever is due: they decode the frame that a video waits for, or encode a batch of frames gathered
across videos and take the videos' states one step on, upon which each video's next frame is known and can be decoded.
FFmpeg and torch let go of Python's lock while they work. On a CPU the workers share the cores and encode with one
thread each: convolutions then round alike whatever was encoded beside a frame (a linear layer may round a frame that is
alone otherwise). A GPU gets a thread of its own.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from skipreel.features.backbones.backbone import Backbone
from skipreel.jobs.closed_loop.decoder_calls import Call, DecoderCalls
from skipreel.jobs.closed_loop.prediction import Prediction, Seconds
from skipreel.jobs.closed_loop.session import DecodedFrames, Request, Session, Steps, Update, encode, open_session
from skipreel.jobs.closed_loop.torch_threads import use_one_thread
from skipreel.jobs.trained.model import TrainedModel
from skipreel.pipeline.closeable import Closeable
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.video import open_video

# How long `close` waits for decoders that are at work.
LAST_CALL_S = 1.0

_T = TypeVar("_T")
_Job = Callable[[], None]
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a video: a prediction, or the reason why there is none."""

    request: Request
    prediction: Prediction | None
    reason: str = ""


class Scheduler(Closeable):
    """Labels videos, many at a time; use it as a context manager.

    Args:
        dense: look at every frame instead of those the network asks for.
        num_workers: threads that decode and, on a CPU, encode with one thread of torch each; up to twice as many where
            decoders are slow. 0: the caller's own does all while it waits, with as many threads of torch as it has: the
            fastest way for a lone video.
        in_flight: videos that are open at a time, at most; each holds a decoder with a handful of its pictures.
        time_limit_s: a video fails if its decoder takes longer for one request; without workers, nobody looks.

    Memory: beside the open videos, the frames of two batches and of one request for each worker.
    """

    def __init__(
        self,
        model: TrainedModel,
        backbone: Backbone,
        *,
        dense: bool = False,
        decoder: str = "pyav",
        num_workers: int = 1,
        in_flight: int = 16,
        time_limit_s: float = float("inf"),
    ) -> None:
        self._model, self._backbone, self._dense, self._decoder = model, backbone, dense, decoder
        self._in_flight, self._num_workers, self._time_limit_s = in_flight, num_workers, time_limit_s
        is_on_gpu = backbone.device.type != "cpu"
        self._next_of_worker = self._decode_next if is_on_gpu else self._decode_or_encode_next
        self._changed = threading.Condition()  # guards all that follows
        self._requests: deque[Request] = deque()  # not begun
        self._waiting: deque[tuple[Session, Steps]] = deque()  # to be decoded, in turn
        self._ready: deque[DecodedFrames] = deque()  # to be encoded, in turn
        self._read: deque[Session] = deque()  # to be finished
        self._calls = DecoderCalls(max_substitutes=num_workers, time_limit_s=time_limit_s)
        self._num_begun = 0  # videos without an outcome yet
        self._open: set[Session] = set()  # of those
        self._outcomes: list[Outcome] = []
        self._is_closed = False
        self._threads: set[threading.Thread] = set()
        self.frames_encoded = 0
        for _ in range(num_workers):
            self._start(self._next_of_worker)
        if is_on_gpu and num_workers:
            self._start(self._encode_next)

    def add(self, requests: Iterable[Request]) -> None:
        """Take on more videos; they begin in this order."""
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """The outcomes since the last call, as soon as there is one; none when time is up first."""
        if not self._num_workers:
            self._work_here(timeout_s)
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or not self._num_workers, timeout_s)
            self._check_calls()
            found, self._outcomes = self._outcomes, []
        return found

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """The outcome of each video, as they come to an end; ``requests`` is read as videos begin."""
        source = iter(requests)
        pending = 0
        while True:
            more = list(islice(source, self._in_flight + 1 - pending))
            self.add(more)
            pending += len(more)
            if not pending:
                return
            for outcome in self.wait(timeout_s=0.2):
                pending -= 1
                yield outcome

    def close(self) -> None:
        """Stop; videos that are under way are closed and have no outcome.

        A decoder that does not return within a second is left to its thread, which closes the video when it does.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._calls.threads, LAST_CALL_S)
            in_decoder = self._calls.threads
            idle = [session for session in self._open if not session.is_decoding]
            for session in self._open:
                session.is_over = True
            self._open.clear()
            threads = [thread for thread in self._threads if thread.ident not in in_decoder]
        for thread in threads:
            thread.join()
        for session in idle:
            _close(session)

    # What a worker does next; asked with the lock held

    def _start(self, next_job: Callable[[], _Job | None]) -> None:
        thread = threading.Thread(target=self._work, args=(next_job,), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, next_job: Callable[[], _Job | None]) -> None:
        use_one_thread()
        with torch.inference_mode():
            while (job := self._await_job(next_job)) is not None:
                job()

    def _work_here(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        with torch.inference_mode():
            while not self._outcomes and time.monotonic() < until and (job := self._decode_or_encode_next()):
                job()

    def _await_job(self, next_job: Callable[[], _Job | None]) -> _Job | None:
        with self._changed:
            if self._calls.take_leave():
                self._threads.remove(threading.current_thread())
                return None
            while not self._is_closed:
                if job := next_job():
                    return job
                self._changed.wait()
        return None

    def _decode_or_encode_next(self) -> _Job | None:
        # A full batch first: it is still in the processor's cache, and no more is decoded than that.
        if self._num_ready >= self._backbone.batch_size:
            return self._encode_next()
        return self._decode_next() or self._encode_next()

    def _decode_next(self) -> _Job | None:
        if self._read:
            return partial(self._finish, self._read.popleft())
        if self._num_ready >= 2 * self._backbone.batch_size:
            return None
        while self._waiting:
            session, steps = self._waiting.popleft()
            if not session.is_over:
                session.is_decoding = True
                return partial(self._decode, self._calls.begin(session.request, session), session, steps)
        if self._requests and self._num_begun < self._in_flight:
            self._num_begun += 1
            return partial(self._begin, self._calls.begin(self._requests.popleft(), None))
        return None

    def _encode_next(self) -> _Job | None:
        batch: list[DecodedFrames] = []
        room = self._backbone.batch_size
        while self._ready and len(self._ready[0].frames) <= room:
            batch.append(self._ready.popleft())
            room -= len(batch[-1].frames)
        return partial(self._encode, batch) if batch else None

    @property
    def _num_ready(self) -> int:
        return sum(len(frames.frames) for frames in self._ready)

    # Decoding

    def _begin(self, call: Call) -> None:
        def begin() -> tuple[Session, Steps]:
            seconds, request = Seconds(), call.request
            with ExitStack() as on_error:
                with seconds.measure("decode"):
                    video = on_error.enter_context(open_video(request.path or request.uri, decoder=self._decoder))
                max_frames = self._backbone.batch_size
                session = open_session(request, video, self._model, seconds, dense=self._dense, max_frames=max_frames)
                wanted = session.next_wanted()
                on_error.pop_all()
            session.is_decoding = True
            call.session = session
            return session, wanted

        def take(opened: tuple[Session, Steps]) -> None:
            self._open.add(opened[0])
            self._queue(*opened)

        self._call_decoder(call, begin, take)

    def _decode(self, call: Call, session: Session, steps: Steps) -> None:
        def decode() -> tuple[DecodedFrames, Steps]:
            return DecodedFrames(session, steps, session.decode(steps)), session.next_wanted()

        def take(decoded: tuple[DecodedFrames, Steps]) -> None:
            self._ready.append(decoded[0])
            self._queue(session, decoded[1])

        self._call_decoder(call, decode, take)

    def _call_decoder(self, call: Call, function: Callable[[], _T], take: Callable[[_T], None]) -> None:
        answer, reason = None, f"{call.request.uri}: its decoder was interrupted"
        try:
            answer = function()
        except (Exception, SystemExit) as error:  # a decoder may be anyone's: its failures may reach no other video
            reason = _reason(error, call.request, "decoder")
        finally:  # an interruption ends the caller's own work
            with self._changed:
                is_lost = self._end_call(call)
                if answer is not None and not is_lost:
                    take(answer)
            if is_lost and call.session is not None:
                _close(call.session)
            elif answer is None and not is_lost:
                self._end(call.request, call.session, None, reason)

    def _end_call(self, call: Call) -> bool:
        """With the lock held: the decoder has returned; whether nobody waits for its answer any more."""
        self._calls.end()
        self._changed.notify_all()
        if call.session is None:
            return call.is_given_up or self._is_closed
        call.session.is_decoding = False
        if self._is_closed:
            self._claim(call.session)
        return call.is_given_up or call.session.is_over

    def _queue(self, session: Session, wanted: Steps) -> None:
        """With the lock held: have these frames decoded when it is their turn."""
        if len(wanted):
            self._waiting.append((session, wanted))
        self._changed.notify_all()

    def _check_calls(self) -> None:
        """With the lock held: substitutes for slow workers, outcomes for videos whose time is up."""
        for call in self._calls.give_up():  # its worker closes the video, should the decoder ever return
            late = f"{call.request.uri}: its next frame did not come within {self._time_limit_s:g} seconds"
            if self._claim(call.session):
                self._book(Outcome(call.request, None, late))
        for _ in range(self._calls.substitute()):
            self._start(self._next_of_worker)

    # Encoding

    def _encode(self, batch: list[DecodedFrames]) -> None:
        try:
            updates, seconds = encode(batch, self._backbone)
        except (Exception, SystemExit) as error:  # likewise a backbone
            if len(batch) > 1:
                for alone in batch:
                    self._encode([alone])
                return
            request = batch[0].session.request
            self._end(request, batch[0].session, None, _reason(error, request, "backbone"))
            return
        self._commit(batch, updates, seconds)

    def _commit(self, batch: list[DecodedFrames], updates: list[Update], seconds: Seconds) -> None:
        with self._changed:
            for frames, update in zip(batch, updates, strict=True):
                self.frames_encoded += update.num_frames
                frames.session.seconds.encode += seconds.encode * update.num_frames
                frames.session.seconds.recognise += seconds.recognise * update.num_frames
                frames.session.commit(update)
                self._queue(frames.session, update.wanted)
            self._read.extend({frames.session for frames in batch if frames.session.is_complete})
            self._changed.notify_all()

    def _finish(self, session: Session) -> None:
        prediction, reason = None, ""
        try:
            prediction = session.prediction()
        except Exception as error:
            reason = _reason(error, session.request, "network")
        self._end(session.request, session, prediction, reason)

    def _end(self, request: Request, session: Session | None, prediction: Prediction | None, reason: str = "") -> None:
        """The outcome of a video, unless it has one already; without the lock, since closing a video may take long."""
        with self._changed:
            is_idle = session is not None and not session.is_decoding  # else its worker closes it
            if not self._claim(session):
                return
        if session is not None and is_idle:
            _close(session)
        with self._changed:
            self._book(Outcome(request, prediction, reason))

    def _claim(self, session: Session | None) -> bool:
        """With the lock held: the right to say what became of a video; it is given once."""
        if session is None:  # not opened
            return True
        is_first = not session.is_over
        session.is_over = True
        self._open.discard(session)
        return is_first

    def _book(self, outcome: Outcome) -> None:
        """With the lock held."""
        self._num_begun -= 1
        self._outcomes.append(outcome)
        self._changed.notify_all()


def _close(session: Session) -> None:
    try:
        session.video.close()
    except Exception as error:  # a decoder may be anyone's, and the video has its outcome
        _LOGGER.warning("%s could not be closed: %s: %s", session.request.uri, type(error).__name__, error)


def _reason(error: BaseException, request: Request, part: str) -> str:
    text = " ".join(str(error).split())
    if request.path:
        text = text.replace(request.path, request.uri)
    if isinstance(error, InputError):
        return text
    return f"{request.uri}: the {part} raised {type(error).__name__}: {text[:200]}"
