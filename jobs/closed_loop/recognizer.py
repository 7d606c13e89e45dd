"""A trained network and its backbone in one object: labels video files, or frames as they come.

from skipreel.jobs.closed_loop.recognizer import VideoRecognizer

recognizer = VideoRecognizer.load("sweep/checkpoints/skip-gru-lambda-0.001-seed-0")
prediction = recognizer.predict("clip.mp4")
prediction.scores, prediction.pts_s, prediction.used, prediction.cost
recognizer.labels(prediction)
"""

import math
import os
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from itertools import chain, islice
from os import PathLike
from typing import Any, Self, overload

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.batching.collate import Task
from skipreel.jobs.closed_loop.labels import Labelling, labels_of
from skipreel.jobs.closed_loop.online import OnlineRecognizer
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.queue import Outcome
from skipreel.jobs.closed_loop.scheduler import VIDEOS_IN_FLIGHT, Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.budget import with_budget
from skipreel.jobs.trained.location import local_model
from skipreel.jobs.trained.model import TrainedModel, load_model
from skipreel.pipeline.errors import VideoError


class VideoRecognizer:
    """Labels videos, looking only at the frames that the network asks for.

    Attributes:
        model: the trained network; ``backbone``: what encodes frames for it.
    """

    def __init__(self, model: TrainedModel, backbone: Backbone, *, decoder: str = "pyav") -> None:
        self.model, self.backbone, self._decoder = model, backbone, decoder

    @classmethod
    def load(
        cls,
        model: str | PathLike[str],
        *,
        budget: float | None = None,
        backbone: str | None = None,
        device: str = "cpu",
        decoder: str = "pyav",
        tracking_uri: str | None = None,
    ) -> Self:
        """Load a network and the backbone that its features were made with.

        Args:
            model: a checkpoint folder, or ``runs:/…`` or ``models:/…`` of MLflow.
            budget: share of the frames to look at on average, above 0 and at most 1; as it was trained if not given.
            backbone: where the backbone is now, if it is not where the training found it.
            device: where the backbone runs, ``cpu`` or ``cuda``.
            decoder: as in `pipeline.video.open_video`.
            tracking_uri: MLflow's server or database, for such a model; else MLFLOW_TRACKING_URI.

        Raises:
            CheckpointError, BackboneError, InputError: when one of them cannot be loaded.
        """
        trained = trained_model(str(model), budget=budget, tracking_uri=tracking_uri)
        return cls(trained, load_backbone_of(trained, name=backbone, device=device), decoder=decoder)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        return self.model.class_names

    @property
    def task(self) -> Task:
        """``frames``: scores for every sampled frame; ``video``: for the whole video."""
        return self.model.recognizer.config.task

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self, videos: str | PathLike[str], *, dense: bool = ...
    ) -> Prediction: ...
    @overload
    def predict(self, videos: Sequence[str | PathLike[str]], *, dense: bool = ...) -> list[Prediction]: ...
    def predict(
        self, videos: str | PathLike[str] | Sequence[str | PathLike[str]], *, dense: bool = False
    ) -> Prediction | list[Prediction]:
        """Label one video, or several at once; the predictions come in the order of the videos.

        Args:
            videos: paths or URIs.
            dense: look at every frame.

        Raises:
            VideoError: at the first one that cannot be decoded; `stream` continues after those.
        """
        if isinstance(videos, str | PathLike):
            return self.predict([videos], dense=dense)[0]
        found: dict[str, Prediction] = {}
        uris = [os.fspath(video) for video in videos]
        for outcome in self.stream(dict.fromkeys(uris), dense=dense):
            if outcome.prediction is None:
                raise VideoError(outcome.reason)
            found[outcome.request.uri] = outcome.prediction
        return [found[uri] for uri in uris]

    def stream(
        self,
        videos: Iterable[str | PathLike[str] | Request],
        *,
        dense: bool = False,
        in_flight: int = VIDEOS_IN_FLIGHT,
        time_limit_s: float = math.inf,
    ) -> Generator[Outcome, None, None]:
        """Label any number of videos.

        Args:
            videos: paths or URIs, or a `Request` to give a video an id; read as they are needed.
            in_flight: videos that are open at a time, at most.
            time_limit_s: a video fails if its next frame does not come within this many seconds.

        Yields:
            Each video's outcome as soon as it is known: a prediction, or the reason why there is none.
        """
        source = (v if isinstance(v, Request) else Request(os.fspath(v), os.fspath(v)) for v in videos)
        first = list(islice(source, 2))
        # A lone video alternates between decoder and backbone; a dense pass can use all cores even so.
        is_alone = len(first) < 2 and not dense
        num_workers = 0 if is_alone else available_cpus()
        settings = SchedulerSettings(dense, in_flight, time_limit_s, self._decoder)
        with Scheduler(self.model, self.backbone, settings, num_workers=num_workers) as scheduler:
            yield from scheduler.run(chain(first, source))

    def online(self, *, key: str | None = None) -> OnlineRecognizer:
        """A recogniser that takes frames one by one, and says how many of the next it does not need.

        Args:
            key: the sequence's name, see `OnlineRecognizer.reset`.
        """
        return OnlineRecognizer(self.model, self.backbone, key=key)

    def labels(self, prediction: Prediction, *, threshold: float = 0.5) -> list[dict[str, Any]]:
        """What was recognised, see `labels_of`; for task frames where a score is at ``threshold`` or above."""
        return labels_of(prediction, Labelling(self.class_names, self.task, threshold))


def predict(
    uri: str, *, model: TrainedModel, backbone: Backbone, decoder: str = "pyav", dense: bool = False
) -> Prediction:
    """Label one video in the caller's thread, looking only where the gate says or, if ``dense``, at every frame.

    Raises:
        VideoError: when the file cannot be opened or a wanted frame cannot be decoded.
    """
    with Scheduler(model, backbone, SchedulerSettings(dense, decoder=decoder), num_workers=0) as scheduler:
        (outcome,) = scheduler.run([Request(uri, uri)])
    if outcome.prediction is None:
        raise VideoError(outcome.reason)
    return outcome.prediction


predict_dense = partial(predict, dense=True)


def trained_model(model: str, *, budget: float | None = None, tracking_uri: str | None = None) -> TrainedModel:
    """The network without a backbone, loaded as in `VideoRecognizer.load`."""
    trained = load_model(local_model(model, tracking_uri=tracking_uri))
    return trained if budget is None else with_budget(trained, budget)


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
