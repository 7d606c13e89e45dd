"""One open video: which frames it wants next, and what follows from those that came. No threads in here.

Letters: T sampled frames, n frames of one request, D feature length, C classes.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.backbones.backbone import Backbone
from skipreel.jobs.closed_loop.prediction import Prediction, Seconds
from skipreel.jobs.runtime.video_id import video_id_of
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import Cost, LearnedGate, SkipState, rows_of, stack_states
from skipreel.pipeline.video import Frame, VideoDecoder

Steps = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Request:
    """A video to be labelled.

    Attributes:
        key: the caller's name for it: a manifest's id, or the path or URI as it was given (see `video_id_of`).
        uri: what messages and the prediction call it.
        path: what is opened in its place, such as a local copy; "" for ``uri`` itself.
    """

    key: str
    uri: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What encoded frames change in their session, see `Session.commit`.

    Attributes:
        num_frames: n, how many.
        wanted: the steps (n,) to decode next, if these frames decided them.
        due: closed loop: the step of the next look.
        state: closed loop: the network's state before that step.
    """

    num_frames: int
    wanted: Steps
    due: int = 0
    state: SkipState | None = None


class Session(ABC):
    """An open video: it says which steps to decode next, and takes their frames encoded, in any order of requests.

    Encoded frames are taken in two calls. The first computes an `Update` (see `encode`); it may raise and be repeated,
    since it changes nothing that is read before the second. The second is `commit`, which only assigns.
    """

    def __init__(self, request: Request, video: VideoDecoder, model: TrainedModel, seconds: Seconds) -> None:
        self.request, self.video, self.model, self.seconds = request, video, model, seconds
        self.frame_index = model.spec.sampling.select(video.pts_seconds)
        video.set_candidates(self.frame_index.tolist())
        self.used = np.zeros(len(self.frame_index), np.bool_)
        self.num_encoded = 0

    def decode(self, steps: Steps) -> list[Frame]:
        """The frames of these steps.

        Raises:
            VideoError: when one of them cannot be decoded.
        """
        index = self.frame_index[steps].tolist()
        with self.seconds.measure("decode"):
            return [self.video.get_frame_at(index[0])] if len(index) == 1 else list(self.video.iter_frames_at(index))

    @abstractmethod
    def next_wanted(self) -> Steps:
        """The steps (n,) to decode next; ask at the start and after each decoding.

        There are none at the end, or while they depend on frames that are being encoded: then their `Update` has them.
        """

    def commit(self, update: Update) -> None:
        """Take over what was computed from encoded frames. Never raises."""
        self.num_encoded += update.num_frames

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether all frames that it needs are encoded."""

    @abstractmethod
    def logits(self) -> Tensor:
        """(T, C) for task frames, (C,) for task video; only when complete."""

    def prediction(self) -> Prediction:
        """What the model says; only when complete."""
        config = self.model.recognizer.config
        logits = self.logits()
        return Prediction(
            uri=self.request.uri,
            duration_s=self.video.duration_s,
            frame_index=self.frame_index,
            pts_s=self.video.pts_seconds[self.frame_index],
            used=self.used,
            scores=(logits.sigmoid() if config.task == "frames" else logits.softmax(-1)).numpy(),
            cost=Cost(
                frames_total=len(self.used),
                frames_wanted=self.num_encoded,
                frames_decoded=self.video.num_decoded,
                frames_encoded=self.num_encoded,
                state_updates=int(self.used.sum()),
                frames_converted=self.video.num_converted,
            ),
            seconds=self.seconds,
            start_s=self.video.start_s,
        )


class ClosedLoopSession(Session):
    """After each look the gate says which frame is wanted next (eq. 6)."""

    def __init__(self, request: Request, video: VideoDecoder, model: TrainedModel, seconds: Seconds) -> None:
        super().__init__(request, video, model, seconds)
        self.state: SkipState | None = None
        self._due = 0  # the next look
        self._has_begun = False
        self._logits = torch.empty(len(self.used), model.recognizer.config.num_classes)

    @property
    def remaining(self) -> int:
        """How many steps are left, from the next look to the end."""
        return len(self.used) - self._due

    @property
    def is_complete(self) -> bool:
        return self.remaining == 0

    def next_wanted(self) -> Steps:
        if self._has_begun:
            return np.empty(0, np.int64)
        self._has_begun = True
        return np.array([0])

    def update_of(self, logits: Tensor, wait: int, state: SkipState) -> Update:
        """What a look changes: its logits (C,) hold for the ``wait`` steps after it too."""
        due = self._due + 1 + wait
        self._logits[self._due : due] = logits  # nobody reads them before `due` is past them
        return Update(1, np.arange(due, min(due + 1, len(self.used))), due, state)

    def commit(self, update: Update) -> None:
        """See `Session.commit`."""
        super().commit(update)
        self.used[self._due] = True
        self._due, self.state = update.due, update.state

    def logits(self) -> Tensor:
        return self._logits if self.model.recognizer.config.task == "frames" else self._logits[-1]


class ScheduledSession(Session):
    """All wanted frames are known from the start: all for a dense pass, those of the schedule for a control."""

    def __init__(
        self,
        request: Request,
        video: VideoDecoder,
        model: TrainedModel,
        seconds: Seconds,
        *,
        dense: bool,
        max_frames: int,
    ) -> None:
        super().__init__(request, video, model, seconds)
        self._max_frames = max_frames
        recognizer, steps = model.recognizer, len(self.used)
        gate = recognizer.config.gate
        self._steps = np.arange(steps)
        self._gates: Tensor | None = None  # (1, T) of a control
        if not isinstance(gate, LearnedGate):
            self._gates = gate.schedule(steps, key=video_id_of(request.key)).T
            if not dense:
                self._steps = np.flatnonzero(self._gates[0].numpy())
        self._asked = 0
        # Frames that are not wanted stay zero; they are never read, since their gate is shut.
        self._features = np.zeros((steps, recognizer.config.feature_dim), np.float16)

    @property
    def is_complete(self) -> bool:
        return self.num_encoded == len(self._steps)

    def next_wanted(self) -> Steps:
        start = self._asked
        self._asked = min(start + self._max_frames, len(self._steps))
        return self._steps[start : self._asked]

    def update_of(self, steps: Steps, features: NDArray[np.float16]) -> Update:
        """Take the features (n, D) of these steps; they count once `commit` is called."""
        self._features[steps] = features
        return Update(len(steps), np.empty(0, np.int64))

    def logits(self) -> Tensor:
        with self.seconds.measure("recognise"):
            features = torch.from_numpy(self._features)[None].float()
            logits, gates = self.model.recognizer(features, torch.tensor([len(self.used)]), gates=self._gates)
        self.used[:] = gates[0].numpy() > 0.5
        row: Tensor = logits[0]
        return row


@dataclass(frozen=True, slots=True)
class DecodedFrames:
    """The decoded frames of these steps, for the backbone."""

    session: Session
    steps: Steps
    frames: list[Frame]


def open_session(
    request: Request, video: VideoDecoder, model: TrainedModel, seconds: Seconds, *, dense: bool, max_frames: int
) -> Session:
    """The session of an open video: in the closed loop if the model has a learned gate, unless ``dense``.

    Args:
        max_frames: how many frames to ask for at once where all are known.
    """
    recognizer = model.recognizer
    if not dense and recognizer.recurrent is not None and isinstance(recognizer.config.gate, LearnedGate):
        return ClosedLoopSession(request, video, model, seconds)
    return ScheduledSession(request, video, model, seconds, dense=dense, max_frames=max_frames)


def step_batch(sessions: Sequence[ClosedLoopSession], features: NDArray[np.float16], *, num_rows: int) -> list[Update]:
    """One update of the network for n videos at once.

    Args:
        features: (n, D), one of each video.
        num_rows: the update is always computed for so many rows: a matrix product rounds by its number of rows, and a
            video's result must not depend on the other videos.
    """
    recognizer = sessions[0].model.recognizer
    count = len(sessions)
    assert recognizer.recurrent is not None
    assert count <= num_rows
    padded = torch.zeros(num_rows, features.shape[1])
    padded[:count] = torch.from_numpy(features)
    fresh = recognizer.recurrent.initial_state(1)
    states = [session.state or fresh for session in sessions] + [fresh] * (num_rows - count)
    limit = max(session.remaining for session in sessions)
    logits, state, waits = recognizer.step(padded, stack_states(states), limit=limit)
    remaining = torch.tensor([session.remaining for session in sessions] + [1] * (num_rows - count))
    waits = torch.minimum(waits, remaining - 1)
    state = recognizer.skip(state, waits)
    # Copies of the rows: a view would keep the whole batch in memory while its video waits.
    return [
        session.update_of(logits[row], int(waits[row]), rows_of(state, torch.tensor([row])))
        for row, session in enumerate(sessions)
    ]


def encode(batch: Sequence[DecodedFrames], backbone: Backbone) -> tuple[list[Update], Seconds]:
    """Encode frames, and say what they change in their sessions.

    All that can fail is done here; it may be repeated, for all or some of them. The sessions are of one kind.

    Returns:
        One update for each element of ``batch``, and the average seconds of a frame.
    """
    counts = [len(decoded.frames) for decoded in batch]
    started = time.perf_counter()
    features = backbone.encode([frame for decoded in batch for frame in decoded.frames])
    encoded = time.perf_counter()
    loops = [decoded.session for decoded in batch if isinstance(decoded.session, ClosedLoopSession)]
    updates = step_batch(loops, features, num_rows=backbone.batch_size) if loops else []
    for decoded, rows in zip(batch, np.split(features, np.cumsum(counts)[:-1]), strict=True):
        if isinstance(decoded.session, ScheduledSession):
            updates.append(decoded.session.update_of(decoded.steps, rows))
    recognise_s = time.perf_counter() - encoded
    return updates, Seconds(encode=(encoded - started) / sum(counts), recognise=recognise_s / sum(counts))
