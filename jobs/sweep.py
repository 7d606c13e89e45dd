"""Train a whole trade-off curve: the dense network, skip networks at several λ, and at each of their budgets the
controls that skip at random and at a stride. One MLflow parent run with a child per network.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from features.batches import Task
from jobs.cluster import ray_cluster
from jobs.evaluation import evaluate, load_model
from jobs.points import ModelName, ModelSettings, Schedule
from jobs.progress import console
from jobs.ray_training import Workers
from jobs.sweep_record import SweepPoint, SweepRecord
from jobs.tracking import TrackedRun, Tracking, code_version, start_run, tracking_uri
from jobs.train import log_point, train_with_progress
from jobs.training_data import CheckedData, checked_data
from pipeline.errors import InputError

# A control of a network that reads nearly everything would be the dense network once more.
MATCHED_BELOW = 0.95


@dataclass(frozen=True, slots=True)
class Settings:
    """What is trained and compared.

    Attributes:
        manifest: the videos and their labels, from skipreel manifest.
        features: their features, from skipreel extract.
        output: a folder for the checkpoints, sweep.json and, unless tracked elsewhere, MLflow's database.
        task: frames: any number of labels at every frame (mAP); video: one label for the whole (accuracy).
        cell: the recurrent cell of all networks.
        budget_weights: the λ of the skip networks.
        num_seeds: every network is trained this many times, with seeds 0, 1, …
        hidden_size: H.
        num_layers: stacked recurrent layers.
        dropout: before the classifier, while training.
        test_split: the split of the manifest that networks are measured on.
        skip_missing: leave out videos without features instead of stopping.
    """

    manifest: str
    features: str
    output: str
    task: Task = "frames"
    cell: Literal["gru", "lstm"] = "gru"
    budget_weights: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    num_seeds: int = 1
    hidden_size: int = 128
    num_layers: int = 1
    dropout: float = 0.0
    test_split: str = "test"
    skip_missing: bool = False
    schedule: Schedule = field(default_factory=Schedule)
    workers: Workers = field(default_factory=Workers)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if not self.budget_weights:
            raise ValueError("--budget-weights needs at least one λ")
        if self.num_seeds < 1:
            raise ValueError(f"--num-seeds is {self.num_seeds}, it must be at least 1")

    def base(self, model: ModelName, *, seed: int) -> ModelSettings:
        """What all networks of the sweep share."""
        return ModelSettings(
            model=model, hidden_size=self.hidden_size, num_layers=self.num_layers, dropout=self.dropout, seed=seed
        )


def run(settings: Settings) -> int:
    """Train, evaluate and record; prints the table."""
    record = sweep(settings)
    print_table(record)
    console.print(f"next: skipreel report {settings.output}")
    return 0


def sweep(settings: Settings) -> SweepRecord:
    """Train and evaluate every network; the record is also written to <output>/sweep.json."""
    data = _data(settings)
    console.print(f"data: {data}")
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    with start_run(settings.tracking, name=f"sweep {output.name}", output=output) as parent, ray_cluster():
        parent.log_params({"task": settings.task, "feature_set_id": data.feature_set.id, "cell": settings.cell})
        parent.log_params(data.counts)
        trainer = _Trainer(settings, data, parent, output)
        points = trainer.train(_first_points(settings))
        points += trainer.train(matched_controls(settings, points))
        record = SweepRecord(
            task=settings.task,
            manifest=data.training.manifest,
            features=data.training.features,
            test_split=settings.test_split,
            mlflow_uri=tracking_uri(settings.tracking, output=output),
            run_id=parent.id,
            facts=_facts(settings, data),
            points=tuple(points),
        )
        record.save(output)
        parent.log_files(output / "sweep.json")
    return record


def _data(settings: Settings) -> CheckedData:
    data = checked_data(
        settings.manifest,
        settings.features,
        settings.task,
        test_split=settings.test_split,
        skip_missing=settings.skip_missing,
    )
    if all(len(example.sequence.features) == 1 for example in data.examples):
        raise InputError(
            f"every video of split {settings.test_split!r} has a single sampled frame, which no network can skip: "
            f"extract features at a higher --rate-hz than {data.feature_set.recipe.sampling.rate_hz:g}"
        )
    return data


def _first_points(settings: Settings) -> list[ModelSettings]:
    points = []
    for seed in range(settings.num_seeds):
        if settings.task == "video":
            points.append(settings.base("mean", seed=seed))
        points.append(settings.base(settings.cell, seed=seed))
        skip = settings.base("skip-gru" if settings.cell == "gru" else "skip-lstm", seed=seed)
        points += [replace(skip, budget_weight=weight) for weight in settings.budget_weights]
    return points


def matched_controls(settings: Settings, points: list[SweepPoint]) -> list[ModelSettings]:
    """For each λ a random and a strided control with the same updates per video, each with every seed.

    With u updates among T frames, the first of which is always read: p_skip = 1 - (u - 1) / (T - 1), stride = T / u.
    """
    controls: dict[str, ModelSettings] = {}
    for weight in settings.budget_weights:
        group = [p for p in points if p.settings.family == "skip" and p.settings.budget_weight == weight]
        updates = fmean(p.cost.state_updates / p.num_videos for p in group)
        frames = fmean(p.cost.frames_total / p.num_videos for p in group)
        if updates / frames >= MATCHED_BELOW:
            continue
        p_skip = round(1 - max(updates - 1, 0) / (frames - 1), 4)
        stride = round(frames / updates, 3)
        for seed in range(settings.num_seeds):
            dense = settings.base(settings.cell, seed=seed)
            for control in (replace(dense, p_skip=p_skip), replace(dense, stride=stride)):
                controls[control.name] = control
    return list(controls.values())


@dataclass(frozen=True, slots=True)
class _Trainer:
    settings: Settings
    data: CheckedData
    parent: TrackedRun
    output: Path

    def train(self, points: list[ModelSettings]) -> list[SweepPoint]:
        """Train points with the same workers; each child run ends when its network is evaluated."""
        if not points:
            return []
        with ExitStack() as stack:  # ends every child run, as failed if an error ends the block
            runs = {point.name: stack.enter_context(self.parent.child(point.name)) for point in points}
            directories = train_with_progress(
                points,
                runs=runs,
                data=self.data.training,
                schedule=self.settings.schedule,
                workers=self.settings.workers,
                checkpoints=self.output / "checkpoints",
            )
            return [self._finish(point, directories[point.name], runs[point.name]) for point in points]

    def _finish(self, point: ModelSettings, directory: Path, tracked: TrackedRun) -> SweepPoint:
        model = load_model(directory)
        result = evaluate(model.recognizer, self.data.examples)
        log_point(tracked, point, self.settings.schedule, result, feature_set_id=model.feature_set_id)
        tracked.log_params(self.data.counts)
        tracked.log_files(directory)
        checkpoint = str(directory.relative_to(self.output))
        return SweepPoint.of(point, result, checkpoint=checkpoint, run_id=tracked.id)


def _facts(settings: Settings, data: CheckedData) -> dict[str, str]:
    schedule, feature_set = settings.schedule, data.feature_set
    return {
        "feature set": feature_set.id,
        "backbone": str(feature_set.about.get("backbone", feature_set.recipe.backbone)),
        "sampling": f"{feature_set.recipe.sampling.rate_hz:g} frames a second",
        "videos": str(data),
        "training": f"{schedule.epochs} epochs, {schedule.batch_size} videos a step, Adam {schedule.learning_rate:g}, "
        f"{settings.workers.num_workers} workers, {settings.num_seeds} seed(s)",
        "network": f"{settings.cell.upper()}, {settings.num_layers} x {settings.hidden_size} hidden",
        "code": code_version(),
    }


def print_table(record: SweepRecord) -> None:
    """The trade-off table, by updates."""
    from rich.table import Table

    table = Table(title=f"{record.metric_name} against state updates, split {record.test_split}")
    for column in ("model", "setting", "seed"):
        table.add_column(column)
    for column in (record.metric_name, "updates per video", "share of frames"):
        table.add_column(column, justify="right")
    for point in sorted((p.tradeoff for p in record.points), key=lambda point: -point.updates):
        values = (f"{point.metric:.3f}", f"{point.updates:.1f}", f"{point.update_share:.0%}")
        table.add_row(point.name, point.setting, str(point.seed), *values)
    console.print(table)
