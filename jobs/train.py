"""Train one network on a feature set with Ray Train, evaluate it, and record it in MLflow."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from features.batches import Task
from jobs.cluster import ray_cluster
from jobs.evaluation import Evaluation, evaluate, load_model
from jobs.points import ModelSettings, Schedule
from jobs.progress import console, progress_bar
from jobs.ray_training import TrainingData, Workers, train_on_ray
from jobs.tracking import TrackedRun, Tracking, start_run
from jobs.training import Epoch
from jobs.training_data import checked_data


@dataclass(frozen=True, slots=True)
class Settings:
    """What is trained, on what, and how.

    Attributes:
        manifest: the videos and their labels, from skipreel manifest.
        features: their features, from skipreel extract.
        output: a folder; the checkpoint goes to <output>/checkpoints/<name>.
        task: frames: any number of labels at every frame (mAP); video: one label for the whole (accuracy).
        test_split: the split of the manifest that the network is measured on.
        skip_missing: leave out videos without features instead of stopping.
        register: make the network a new version of this model in MLflow's registry; it can then be had by
            --model models:/NAME/VERSION.
    """

    manifest: str
    features: str
    output: str
    task: Task = "frames"
    test_split: str = "test"
    skip_missing: bool = False
    register: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    schedule: Schedule = field(default_factory=Schedule)
    workers: Workers = field(default_factory=Workers)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if self.register is not None and not re.fullmatch(r"[^/:@'\"]+", self.register):
            raise ValueError(f"--register is {self.register!r}, a name must not be empty or hold / : @ or quotes")


def run(settings: Settings) -> int:
    """Train, evaluate and print the result."""
    data = checked_data(
        settings.manifest,
        settings.features,
        settings.task,
        test_split=settings.test_split,
        skip_missing=settings.skip_missing,
    )
    console.print(f"data: {data}")
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    name = settings.model.name
    with start_run(settings.tracking, name=name, output=output) as tracked, ray_cluster():
        tracked.log_params(data.counts)
        directories = train_with_progress(
            [settings.model],
            runs={name: tracked},
            data=data.training,
            schedule=settings.schedule,
            workers=settings.workers,
            checkpoints=output / "checkpoints",
        )
        model = load_model(directories[name])
        result = evaluate(model.recognizer, data.examples)
        log_point(tracked, settings.model, settings.schedule, result, feature_set_id=model.feature_set_id)
        tracked.log_files(directories[name])
        version = tracked.register(settings.register, directories[name]) if settings.register else None
    console.print(
        f"{name}: {result.metric_name} {result.metric:.4f}, {result.updates_per_video:.1f} updates per video "
        f"({result.update_share:.1%} of the frames), checkpoint {directories[name]}"
        + (f", models:/{settings.register}/{version}" if version else "")
    )
    return 0


def train_with_progress(
    points: list[ModelSettings],
    *,
    runs: dict[str, TrackedRun],
    data: TrainingData,
    schedule: Schedule,
    workers: Workers,
    checkpoints: Path,
) -> dict[str, Path]:
    """Train points one after another with one bar each; every epoch is logged to the point's run."""
    with progress_bar() as progress:
        tasks = {point.name: progress.add_task(point.name, total=schedule.epochs, note="waiting") for point in points}

        def on_epoch(epoch: Epoch) -> None:
            note = f"loss {epoch.task_loss:.3f}, reads {epoch.update_share:.0%}"
            progress.update(tasks[epoch.point], completed=epoch.number, note=note)
            values = {"loss": epoch.loss, "task_loss": epoch.task_loss, "train_update_share": epoch.update_share}
            runs[epoch.point].log_metrics(values, step=epoch.number)

        return train_on_ray(
            points, data=data, schedule=schedule, workers=workers, checkpoints=checkpoints, on_epoch=on_epoch
        )


def log_point(
    tracked: TrackedRun, model: ModelSettings, schedule: Schedule, result: Evaluation, *, feature_set_id: str
) -> None:
    """Log what DESIGN promises of every run: settings, feature set, metric and costs."""
    params = {**model.to_json(), "family": model.family, "feature_set_id": feature_set_id}
    params |= {name: getattr(schedule, name) for name in ("epochs", "batch_size", "learning_rate", "max_grad_norm")}
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
