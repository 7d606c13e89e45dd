"""The networks of a train or sweep job while they train: each has a progress bar, an MLflow run and a checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from skipreel.features.batching.collate import Task
from skipreel.jobs.runtime.mlflow_runs import TrackedRun
from skipreel.jobs.runtime.terminal import NotedProgress, console, progress_bar
from skipreel.jobs.trained.model import load_model
from skipreel.jobs.training.data import CheckedData
from skipreel.jobs.training.evaluation import Evaluation, evaluate
from skipreel.jobs.training.loop import Epoch
from skipreel.jobs.training.ray_workers import Workers, train_on_ray
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import CheckpointError, check_replaceable, write_checkpoint
from skipreel.pipeline.errors import InputError

# The job is done, but a network failed or MLflow did not get everything.
EXIT_INCOMPLETE = 3


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network that is trained, evaluated and on disk.

    Attributes:
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
    """What the networks of a job share.

    Attributes:
        data: the data to train and to evaluate on.
        checkpoints: the folder for the checkpoints, each named after its network.
    """

    data: CheckedData
    schedule: Schedule
    workers: Workers
    checkpoints: Path


def plan_training(
    points: Sequence[ModelSettings], data: CheckedData, schedule: Schedule, workers: Workers, *, output: Path
) -> Plan:
    """Print the sizes of the data, check the output folder and make it.

    Raises:
        InputError: a checkpoint of the same name was made with other settings.
        CheckpointError: something else has the name of a checkpoint.
    """
    console.print(f"data: {data}")
    plan = Plan(data, schedule, workers, output / "checkpoints")
    check_not_another(points, plan)
    output.mkdir(parents=True, exist_ok=True)
    return plan


def train_networks(
    points: Sequence[ModelSettings],
    plan: Plan,
    *,
    start_run: Callable[[ModelSettings], TrackedRun],
    on_trained: Callable[[TrainedNetwork], None],
) -> dict[str, Exception]:
    """Train networks one after another. Each is written, evaluated and logged as soon as it is trained.

    Args:
        start_run: called when the training of a network starts; makes its run, which this function ends.
        on_trained: called for each finished network, in another thread.

    Returns:
        The error of each network that failed, by name.

    Raises:
        InputError: the workers cannot be started.
        KeyboardInterrupt: on Ctrl-C, after `on_trained` was called for the networks that are trained.
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
    """Refuse to overwrite a network with one of the same name and other settings.

    Raises:
        InputError: a checkpoint of the same name was made with other settings.
        CheckpointError: something else has the name of a checkpoint.
    """
    for point in points:
        folder = plan.checkpoints / point.name
        check_replaceable(folder)
        try:
            there = load_model(folder)
        except CheckpointError:  # there is none, or it is damaged
            continue
        old = _identity(there.recognizer.config.task, there.settings, there.schedule, there.feature_set_id)
        new = _identity(plan.data.training.task, point.to_json(), asdict(plan.schedule), plan.data.feature_set.id)
        differing = [key for key in old.keys() & new.keys() if old[key] != new[key]]
        if differing:
            raise InputError(
                f"{folder} holds a network of other settings ("
                + ", ".join(f"{key} {old[key]}, now {new[key]}" for key in sorted(differing))
                + "): choose another --output, or delete that folder"
            )


def _identity(
    task: Task, settings: Mapping[str, Any], schedule: Mapping[str, Any], feature_set_id: str
) -> dict[str, Any]:
    return {"task": task, **settings, **schedule, "feature_set_id": feature_set_id}


class _Networks:
    """The listener of a training: updates the bars, logs to MLflow, writes and evaluates the checkpoints."""

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
    """Log settings, data, metric and costs."""
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
