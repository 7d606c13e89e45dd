"""Labels of a live source while it sends: an answer after every look, and the ledger at the end, whatever ends it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipreel.features.backbones.backbone import Backbone
from skipreel.jobs.closed_loop.online import OnlineRecognizer
from skipreel.jobs.closed_loop.prediction import Seconds
from skipreel.jobs.runtime.video_id import video_id_of
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import Cost
from skipreel.pipeline.closeable import Closeable
from skipreel.pipeline.video.live.stream import Live, open_live


@dataclass(frozen=True, slots=True)
class Look:
    """What the model says from one look until the next.

    Attributes:
        step: the number, from 0, of the sampled frame that was looked at.
        time_s: its presentation time in seconds, counted from the source's first frame.
        scores: (C,) float32: task frames: each class's probability; task video: summing to 1.
        labels: class and score, best first, as `OnlineRecognizer.labels` gives them.
        wait: how many of the next sampled frames are not needed.
    """

    step: int
    time_s: float
    scores: NDArray[np.float32]
    labels: list[dict[str, Any]]
    wait: int


class LiveSession(Closeable):
    """An open live source: iterate over its looks once; close it, or use it as a context manager.

    The iteration raises VideoError when the source is silent for too long or breaks off.

    Attributes:
        source: its name, without a password.
    """

    def __init__(self, live: Live, model: TrainedModel, backbone: Backbone, threshold: float) -> None:
        self.source = live.name
        self._live, self._threshold = live, threshold
        self._sampling = model.spec.sampling
        self._recognizer = OnlineRecognizer(model, backbone, key=video_id_of(live.name))
        self._num_sampled = 0

    def close(self) -> None:
        """Close the source; a second call does nothing."""
        self._live.close()

    def end(self) -> None:
        """Make the iteration end soon; see `Live.end`."""
        self._live.end()

    def __iter__(self) -> Iterator[Look]:
        recognizer = self._recognizer
        for step, frame in enumerate(self._live.sampled(self._sampling)):
            self._num_sampled += 1
            if step < recognizer.num_steps:
                continue
            num_looks = recognizer.num_looks
            wait = recognizer.step(frame.to_rgb())
            if recognizer.num_looks > num_looks:
                yield Look(step, frame.pts_s, recognizer.scores, recognizer.labels(self._threshold), wait)

    @property
    def cost(self) -> Cost:
        """What it has cost so far; ``frames_total`` counts the sampled frames that arrived."""
        looks = self._recognizer.num_looks
        return Cost(
            frames_total=self._num_sampled,
            frames_wanted=looks,
            frames_decoded=self._live.num_decoded,
            frames_encoded=looks,
            state_updates=looks,
            frames_converted=self._live.num_converted,
        )

    @property
    def start_s(self) -> float | None:
        """The first frame's time by the source's own clock, in seconds; None until it has come."""
        return self._live.start_s

    @property
    def num_damaged(self) -> int:
        """Frames that arrived damaged, or before the first key frame."""
        return self._live.num_damaged

    @property
    def seconds(self) -> Seconds:
        """How long each stage took so far; waiting for the source does not count."""
        taken = self._recognizer.seconds
        return Seconds(decode=self._live.decode_s, encode=taken.encode, recognise=taken.recognise)


def open_live_session(
    source: str, *, model: TrainedModel, backbone: Backbone, threshold: float = 0.5, timeout_s: float = 10.0
) -> LiveSession:
    """Open a live source, to label it while it sends.

    Args:
        source: as `pipeline.video.live.stream.open_live` takes it.
        threshold: a class counts as seen at this probability or above (task frames).
        timeout_s: how long the source may be silent.

    Raises:
        VideoError: when it cannot be opened.
    """
    return LiveSession(open_live(source, timeout_s=timeout_s), model, backbone, threshold)


def follow(session: LiveSession, write: Callable[[dict[str, Any]], None]) -> None:
    """Give every look to `write` as plain values, and the ledger at the end of the stream, on Ctrl-C or on an error.

    Raises:
        VideoError: when the source is silent for too long or breaks off; the ledger is written before.
    """
    with session, _ended_by_interrupt(session):
        try:
            for look in session:
                write(describe_look(look))
        except KeyboardInterrupt:
            pass  # the usual way to stop
        finally:
            write(describe_end(session))


@contextmanager
def _ended_by_interrupt(session: LiveSession) -> Iterator[None]:
    """The first Ctrl-C only asks the session to end: FFmpeg can lose an exception raised while it calls our reader."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        session.end()

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_look(look: Look) -> dict[str, Any]:
    """A look as plain values: time_s, labels and wait."""
    return {"time_s": round(look.time_s, 3), "labels": look.labels, "wait": look.wait}


def describe_end(session: LiveSession) -> dict[str, Any]:
    """The source and the ledger as plain values."""
    return {
        "video": session.source,
        "start_s": session.start_s,
        "damaged": session.num_damaged,
        "cost": asdict(session.cost),
        "seconds": {stage: round(value, 4) for stage, value in asdict(session.seconds).items()},
    }
