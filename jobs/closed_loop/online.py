"""Recognition frame by frame, for robots and cameras: each answer says how many of the next frames are not needed.

    recognizer = OnlineRecognizer(model, load_backbone_of(model))
    while True:
        wait = recognizer.step(camera.capture())
        print(recognizer.labels())
        time.sleep((1 + wait) / recognizer.rate_hz)

Letters: H and W in pixels, C classes.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.backbones.backbone import Backbone
from skipreel.jobs.closed_loop.prediction import Seconds
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import LearnedGate, Recognizer, SkipState, steps_until_update
from skipreel.models.recurrence.gates import LEARNED, MAX_WAIT
from skipreel.models.recurrence.reference import accumulate


class OnlineRecognizer:
    """A trained network that takes the frames of one sequence, sampled at `rate_hz`, without those it does not need.

    The answers equal those of a pass over every frame. Memory does not grow with the sequence.

    Attributes:
        rate_hz: sampled frames per second, as in training.
        num_steps: the number, from 0, of the sampled frame to give next.
        num_looks: frames looked at: encoded, and the state updated.
        seconds: how long that took; nothing is decoded here.
    """

    num_steps: int
    num_looks: int
    seconds: Seconds

    def __init__(self, model: TrainedModel, backbone: Backbone, *, key: str | None = None) -> None:
        self.rate_hz = model.spec.sampling.rate_hz
        self._model, self._backbone = model, backbone
        self.reset(key=key)

    def reset(self, *, key: str | None = None) -> None:
        """Begin a new sequence.

        Args:
            key: its name, such as a video's id. From it a random control draws where it looks, as `evaluate` does.
                Other networks ignore it.
        """
        self.num_steps = self.num_looks = 0
        self.seconds = Seconds()
        self._scores: NDArray[np.float32] | None = None
        self._stepper = _stepper_of(self._model.recognizer, key)

    def step(self, frame: NDArray[np.uint8]) -> int:
        """Look at a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            How many of the next sampled frames are not needed, 10,000 at most. If the frame given after them is not
            needed either, it is not looked at, and the result says how many more to leave out.

        Raises:
            ValueError: when it is not such a frame.
            BackboneError: when its feature is not a number.
        """
        _check(frame)
        if not self._stepper.is_due:
            wait = self._stepper.hold()
        else:
            with self.seconds.measure("encode"):
                feature = torch.from_numpy(self._backbone.encode([frame])).float()
            with self.seconds.measure("recognise"), torch.inference_mode():
                logits, wait = self._stepper.look(feature)
                is_frames = self._model.recognizer.config.task == "frames"
                self._scores = (logits.sigmoid() if is_frames else logits.softmax(-1))[0].numpy()
            self.num_looks += 1
        self.num_steps += 1 + wait
        return wait

    @property
    def scores(self) -> NDArray[np.float32]:
        """(C,) float32 of the last look: task frames: each class's probability; task video: summing to 1.

        Raises:
            ValueError: before the first frame.
        """
        if self._scores is None:
            raise ValueError("there are no scores before the first frame: call step with one")
        return self._scores

    def labels(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Class and score, best first: for task frames those at `threshold` or above, for task video the best one."""
        scores, is_frames = self.scores, self._model.recognizer.config.task == "frames"
        places = np.argsort(-scores, kind="stable").tolist()
        chosen = [place for place in places if scores[place] >= threshold] if is_frames else places[:1]
        return [{"class": self._model.class_names[n], "score": round(float(scores[n]), 4)} for n in chosen]


class _Stepper(ABC):
    """A network within a sequence, before the next step that may be an update."""

    is_due = True

    @abstractmethod
    def look(self, feature: Tensor) -> tuple[Tensor, int]:
        """Update with a feature (1, D) float32; returns logits (1, C) and how many steps are skipped after it."""

    @abstractmethod
    def hold(self) -> int:
        """Skip this step, which is not an update after all; returns how many more are skipped after it."""


class _Learned(_Stepper):
    """The gate says after each look how long to wait (eq. 6)."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._state: SkipState | None = None

    def look(self, feature: Tensor) -> tuple[Tensor, int]:
        logits, state, wait = self._recognizer.step(feature, self._state)
        self._skip(state, int(wait))
        return logits, int(wait)

    def hold(self) -> int:
        assert self._state is not None
        state = self._recognizer.skip(self._state, 1)
        wait = int(steps_until_update(state.update_prob, a=state.accumulated)) - 1
        self._skip(state, wait)
        return wait

    def _skip(self, state: SkipState, wait: int) -> None:
        self._state = self._recognizer.skip(state, wait)
        # False where no update falls within the longest wait.
        self.is_due = bool(accumulate(self._state.update_prob, self._state.accumulated) > 0.5)


class _Scheduled(_Stepper):
    """A control: its updates are known from the start, and the network steps as if its own gate had opened there."""

    def __init__(self, recognizer: Recognizer, gates: Iterator[bool]) -> None:
        self._recognizer = Recognizer(dataclasses.replace(recognizer.config, gate=LEARNED)).eval()
        self._recognizer.load_state_dict(recognizer.state_dict())
        self._state: SkipState | None = None
        self._gates = gates
        next(self._gates)

    def look(self, feature: Tensor) -> tuple[Tensor, int]:
        logits, state, _ = self._recognizer.step(feature, self._state, limit=0)
        self._state = state._replace(update_prob=torch.ones_like(state.update_prob))
        return logits, self.hold()

    def hold(self) -> int:
        wait = 0
        while not next(self._gates):
            if wait == MAX_WAIT:
                self.is_due = False
                return wait
            wait += 1
        self.is_due = True
        return wait


class _Mean(_Stepper):
    """The baseline without recurrence reads every frame: task video scores the mean of all so far."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._sum = torch.zeros(1, recognizer.config.feature_dim, dtype=torch.float64)
        self._count = 0

    def look(self, feature: Tensor) -> tuple[Tensor, int]:
        if self._recognizer.config.task == "video":
            self._sum += feature
            self._count += 1
            feature = (self._sum / self._count).float()
        return self._recognizer(feature[None], torch.tensor([1])).logits.reshape(1, -1), 0

    def hold(self) -> int:
        return 0  # every step is an update


def _stepper_of(recognizer: Recognizer, key: str | None) -> _Stepper:
    if recognizer.recurrent is None:
        return _Mean(recognizer)
    gate = recognizer.config.gate
    return _Learned(recognizer) if isinstance(gate, LearnedGate) else _Scheduled(recognizer, gate.stream(key=key))


def _check(frame: NDArray[np.uint8]) -> None:
    """Raises ValueError for anything that is not a frame."""
    given = type(frame).__name__
    if isinstance(frame, np.ndarray):
        if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3 and frame.size:
            return
        given = f"shape {frame.shape} of {frame.dtype}"
    raise ValueError(f"a frame must be a numpy array (H, W, 3) of uint8, in RGB, got {given}")
