"""Networks in training, as train and sweep follow them: a bar, an MLflow run and a checkpoint for each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from skipreel.features.batching.collate import Task
from skipreel.jobs.runtime.mlflow_runs import TrackedRun
from skipreel.jobs.runtime.terminal import NotedProgress, progress_bar
from skipreel.jobs.trained.model import load_model
from skipreel.jobs.training.data import CheckedData
from skipreel.jobs.training.evaluation import Evaluation, evaluate
from skipreel.jobs.training.loop import Epoch
from skipreel.jobs.training.ray_workers import Workers, train_on_ray
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import CheckpointError, check_replaceable, write_checkpoint
from skipreel.pipeline.errors import InputError

# A job that is done, but for a network that failed or for what MLflow did not get.
EXIT_INCOMPLETE = 3


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network that is trained, measured and on disk.

    Attributes:
        settings: the network's.
        result: its evaluation on the test split.
        checkpoint: its folder.
        run: its MLflow run, which has ended.
    """

    settings: ModelSettings
    result: Evaluation
    checkpoint: Path
    run: TrackedRun


@dataclass(frozen=True, slots=True)
class Plan:
    """What the networks of a job have in common.

    Attributes:
        data: what the workers read, and what every network is measured on.
        checkpoints: the folder that gets a checkpoint per network, named after it.
    """

    data: CheckedData
    schedule: Schedule
    workers: Workers
    checkpoints: Path


def train_networks(
    points: Sequence[ModelSettings],
    plan: Plan,
    *,
    start_run: Callable[[ModelSettings], TrackedRun],
    on_trained: Callable[[TrainedNetwork], None],
) -> dict[str, Exception]:
    """Train points one after another. Each is written, measured and logged as soon as it is trained.

    Args:
        start_run: makes the run of a network; it is called when the network's training starts, and ended here.
        on_trained: called for each network that is finished, from another thread.

    Returns:
        the error of each network that failed, by name.

    Raises:
        InputError: when the workers cannot be started.
        KeyboardInterrupt: on Ctrl-C; the networks that are trained have been handed to `on_trained`.
    """
    with progress_bar() as progress:
        listener = _Networks(points, plan, start_run, on_trained, progress)
        try:
            train_on_ray(
                points, data=plan.data.training, schedule=plan.schedule, workers=plan.workers, listener=listener
            )
        except BaseException as error:
            listener.break_off(error)
            raise
    return listener.failures


def check_not_another(points: Sequence[ModelSettings], plan: Plan) -> None:
    """Refuse to overwrite a network with one of other settings: its name does not tell them apart.

    Raises:
        InputError: when a checkpoint there was made with other settings.
        CheckpointError: when something else is there.
    """
    for point in points:
        folder = plan.checkpoints / point.name
        check_replaceable(folder)
        try:
            there = load_model(folder)
        except CheckpointError:  # none, or a damaged one
            continue
        old = _told_apart(there.recognizer.config.task, there.settings, there.schedule, there.feature_set_id)
        new = _told_apart(plan.data.training.task, point.to_json(), asdict(plan.schedule), plan.data.feature_set.id)
        differing = [key for key in old.keys() & new.keys() if old[key] != new[key]]
        if differing:
            raise InputError(
                f"{folder} holds a network of other settings ("
                + ", ".join(f"{key} {old[key]}, now {new[key]}" for key in sorted(differing))
                + "): choose another --output, or delete that folder"
            )


def _told_apart(
    task: Task, settings: Mapping[str, Any], schedule: Mapping[str, Any], feature_set_id: str
) -> dict[str, Any]:
    return {"task": task, **settings, **schedule, "feature_set_id": feature_set_id}


class _Networks:
    """The listener of a training."""

    def __init__(
        self,
        points: Sequence[ModelSettings],
        plan: Plan,
        start_run: Callable[[ModelSettings], TrackedRun],
        on_trained: Callable[[TrainedNetwork], None],
        progress: NotedProgress,
    ) -> None:
        self._points = {point.name: point for point in points}
        self._plan = plan
        self._start_run = start_run
        self._on_trained = on_trained
        self._progress = progress
        self._bars: dict[str, TaskID] = {
            name: progress.add_task(name, total=plan.schedule.epochs, note="waiting") for name in self._points
        }
        self._runs: dict[str, TrackedRun] = {}
        self.failures: dict[str, Exception] = {}

    def started(self, name: str) -> None:
        self._runs[name] = self._start_run(self._points[name])
        self._progress.update(self._bars[name], note="starting")

    def epoch(self, epoch: Epoch) -> None:
        note = f"loss {epoch.task_loss:.3f}, reads {epoch.update_share:.0%}"
        self._progress.update(self._bars[epoch.point], completed=epoch.number, note=note)
        values = {"loss": epoch.loss, "task_loss": epoch.task_loss, "train_update_share": epoch.update_share}
        self._runs[epoch.point].log_metrics(values, step=epoch.number)

    def trained(self, name: str, files: Mapping[str, bytes]) -> None:
        point, run, folder = self._points[name], self._runs[name], self._plan.checkpoints / name
        write_checkpoint(folder, files)
        model = load_model(folder)
        result = evaluate(model.recognizer, self._plan.data.examples)
        _log_network(run, point, self._plan, result)
        run.log_files(folder)
        if not math.isfinite(result.metric):
            raise InputError(f"its {result.metric_name} on the test videos is {result.metric}")
        run.end()
        self._on_trained(TrainedNetwork(point, result, folder, run))

    def failed(self, name: str, error: Exception) -> None:
        self.failures[name] = error
        self._progress.update(self._bars[name], note="failed")
        if name in self._runs:
            self._runs[name].end(error)

    def break_off(self, error: BaseException) -> None:
        for run in self._runs.values():  # those of finished networks have ended
            run.end(error)


def _log_network(tracked: TrackedRun, model: ModelSettings, plan: Plan, result: Evaluation) -> None:
    """Log what every run tells: settings, data, metric and costs."""
    params = {**model.to_json(), "family": model.family, "feature_set_id": plan.data.feature_set.id}
    params |= {**asdict(plan.schedule), **plan.data.counts}
    tracked.log_params(params)
    cost = result.cost
    tracked.log_metrics(
        {
            result.metric_name: result.metric,
            "updates_per_video": result.updates_per_video,
            "update_share": result.update_share,
            "frames_wanted_per_video": cost.frames_wanted / result.num_videos,
            "frames_per_video": cost.frames_total / result.num_videos,
        }
    )
