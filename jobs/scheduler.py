"""Many videos at once in one process: decoded and encoded by event, each video waiting for its own next frame alone.

Worker threads do whatever is due: they decode the frame that a video waits for, or encode a batch of frames gathered
across videos and take the videos' states one step on, upon which each video's next frame is known and can be decoded.
FFmpeg and torch let go of Python's lock while they work. On a CPU the workers share the cores and encode with one
thread each: convolutions then round alike whatever was encoded beside a frame (a linear layer may round a frame that is
alone otherwise). A GPU gets a thread of its own.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from features.backbones import Backbone
from jobs.evaluation import TrainedModel
from jobs.prediction import Prediction, Seconds
from jobs.viewing import ClosedLoop, Reading, Request, Steps, Viewing, look, view
from pipeline.closeable import Closeable
from pipeline.decoding import Frame, open_video
from pipeline.errors import InputError

# A worker whose decoder takes longer (a slow disk, a slow network) gets another beside it: it delays its video alone.
SLOW_S = 1.0

_T = TypeVar("_T")
_Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a video: a prediction, or the reason why there is none."""

    request: Request
    prediction: Prediction | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Frames:
    """Decoded frames on their way to the backbone."""

    viewing: Viewing
    steps: Steps
    frames: list[Frame]


@dataclass(slots=True, eq=False)
class _Call:
    """A worker's call of a decoder; ``viewing`` is None while it opens the video."""

    request: Request
    viewing: Viewing | None
    since: float
    is_slow: bool = False
    is_given_up: bool = False


class Scheduler(Closeable):
    """Labels videos, many at a time; use it as a context manager.

    Args:
        dense: look at every frame instead of those the network asks for.
        num_workers: threads that decode and, on a CPU, encode with one thread of torch each. 0: the caller's own does
            all while it waits, with as many threads of torch as it has: the fastest way for a lone video.
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
        self._in_flight, self._time_limit_s = in_flight, time_limit_s
        is_on_gpu = backbone.device.type != "cpu"
        self._next_of_worker = self._decode_next if is_on_gpu else self._decode_or_encode_next
        self._changed = threading.Condition()  # guards all that follows
        self._requests: deque[Request] = deque()  # not begun
        self._waiting: deque[tuple[Viewing, Steps]] = deque()  # to be decoded, in turn
        self._ready: deque[_Frames] = deque()  # to be encoded, in turn
        self._calls: dict[int, _Call] = {}  # of decoders, by thread
        self._replaced: set[int] = set()  # threads that were slow, and to which there is another now
        self._num_open = 0
        self._outcomes: list[Outcome] = []
        self._is_closed = False
        self._threads: list[threading.Thread] = []
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
        if not self._threads:
            self._work_here(timeout_s)
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or not self._threads, timeout_s)
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
        """Stop; videos that are under way have no outcome."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            in_decoder = set(self._calls)
        for thread in self._threads:
            if thread.ident not in in_decoder:  # that one may never return, and cannot be stopped
                thread.join()

    # What a worker does next; asked with the lock held

    def _start(self, next_job: Callable[[], _Job | None]) -> None:
        thread = threading.Thread(target=self._work, args=(next_job,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, next_job: Callable[[], _Job | None]) -> None:
        torch.set_num_threads(1)  # of this thread
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
            if threading.get_ident() in self._replaced:
                self._replaced.remove(threading.get_ident())
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
        if self._num_ready >= 2 * self._backbone.batch_size:
            return None
        while self._waiting:
            viewing, steps = self._waiting.popleft()
            if not viewing.is_over:
                viewing.is_decoding = True
                return partial(self._decode, viewing, steps)
        if self._requests and self._num_open < self._in_flight:
            self._num_open += 1
            return partial(self._open, self._requests.popleft())
        return None

    def _encode_next(self) -> _Job | None:
        batch: list[_Frames] = []
        room = self._backbone.batch_size
        while self._ready and len(self._ready[0].frames) <= room:
            batch.append(self._ready.popleft())
            room -= len(batch[-1].frames)
        return partial(self._encode, batch) if batch else None

    @property
    def _num_ready(self) -> int:
        return sum(len(frames.frames) for frames in self._ready)

    # Decoding

    def _open(self, request: Request) -> None:
        seconds = Seconds()

        def open_and_view() -> Viewing:
            with seconds.measure("decode"):
                video = open_video(request.path or request.uri, decoder=self._decoder)
            part_frames = self._backbone.batch_size
            return view(request, video, self._model, seconds, dense=self._dense, part_frames=part_frames)

        self._call_decoder(_Call(request, None, time.monotonic()), open_and_view, self._ask)

    def _decode(self, viewing: Viewing, steps: Steps) -> None:
        def take(frames: list[Frame]) -> None:
            self._ready.append(_Frames(viewing, steps, frames))
            self._ask(viewing)

        call = _Call(viewing.request, viewing, time.monotonic())
        self._call_decoder(call, partial(viewing.decode, steps), take)

    def _call_decoder(self, call: _Call, function: Callable[[], _T], take: Callable[[_T], None]) -> None:
        with self._changed:
            self._calls[threading.get_ident()] = call
        answer, reason = None, ""
        try:
            answer = function()
        except (Exception, SystemExit) as error:  # a decoder may be anyone's: its failures may reach no other video
            reason = _reason(error, call.request, "decoder")
        with self._changed:
            del self._calls[threading.get_ident()]
            if call.is_slow:
                self._replaced.add(threading.get_ident())
            viewing = call.viewing or (answer if isinstance(answer, Viewing) else None)
            if viewing is not None:
                viewing.is_decoding = False
            if call.is_given_up or (viewing is not None and viewing.is_over):
                if viewing is not None:
                    viewing.video.close()
            elif answer is None:
                self._end(call.request, viewing, None, reason)
            else:
                take(answer)

    def _ask(self, viewing: Viewing) -> None:
        """Have the frames decoded that a video wants next, when it is its turn."""
        steps = viewing.wanted()
        if len(steps):
            self._waiting.append((viewing, steps))
        self._changed.notify_all()

    def _check_calls(self) -> None:
        now = time.monotonic()
        for call in self._calls.values():
            if not call.is_slow and now - call.since > SLOW_S:
                call.is_slow = True
                self._start(self._next_of_worker)
            if not call.is_given_up and now - call.since > self._time_limit_s:
                call.is_given_up = True  # its worker closes the video, should it ever return
                late = f"{call.request.uri}: its next frame did not come within {self._time_limit_s:g} seconds"
                self._end(call.request, call.viewing, None, late)

    # Encoding

    def _encode(self, batch: list[_Frames]) -> None:
        try:
            self._see(batch)
        except (Exception, SystemExit) as error:  # likewise a backbone
            if len(batch) > 1:
                for alone in batch:
                    self._encode([alone])
                return
            (frames,) = batch
            reason = _reason(error, frames.viewing.request, "backbone")
            with self._changed:
                self._end(frames.viewing.request, frames.viewing, None, reason)

    def _see(self, batch: list[_Frames]) -> None:
        started = time.perf_counter()
        features = self._backbone.encode([frame for frames in batch for frame in frames.frames])
        encoded = time.perf_counter()
        loops = [frames.viewing for frames in batch if isinstance(frames.viewing, ClosedLoop)]
        if loops:
            look(loops, features, num_rows=self._backbone.batch_size)
        encode_s, recognise_s = encoded - started, time.perf_counter() - encoded
        with self._changed:
            self.frames_encoded += len(features)
            first = 0
            for frames in batch:
                viewing, count = frames.viewing, len(frames.frames)
                viewing.seconds.encode += encode_s * count / len(features)
                viewing.seconds.recognise += recognise_s * count / len(features)
                if isinstance(viewing, Reading):
                    viewing.receive(frames.steps, features[first : first + count])
                else:
                    self._ask(viewing)
                first += count
            over = {frames.viewing for frames in batch if frames.viewing.is_read}
        for viewing in over:
            self._finish(viewing)

    def _finish(self, viewing: Viewing) -> None:
        prediction, reason = None, ""
        try:
            prediction = viewing.prediction()
        except Exception as error:
            reason = _reason(error, viewing.request, "network")
        with self._changed:
            self._end(viewing.request, viewing, prediction, reason)

    def _end(self, request: Request, viewing: Viewing | None, prediction: Prediction | None, reason: str = "") -> None:
        """With the lock held: the outcome of a video, unless it has one already."""
        if viewing is not None:
            if viewing.is_over:
                return
            viewing.is_over = True
            if not viewing.is_decoding:  # else its worker closes it
                viewing.video.close()
        self._num_open -= 1
        self._outcomes.append(Outcome(request, prediction, reason))
        self._changed.notify_all()


def _reason(error: BaseException, request: Request, part: str) -> str:
    text = " ".join(str(error).split())
    if request.path:
        text = text.replace(request.path, request.uri)
    if isinstance(error, InputError):
        return text
    return f"{request.uri}: the {part} raised {type(error).__name__}: {text[:200]}"
