"""Train a whole trade-off curve: the dense network, skip networks at several λ, and at each of their budgets the
controls that skip at random and at a stride. One MLflow parent run with a child per network.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from skipreel.features.batching.collate import Task
from skipreel.jobs.runtime.code_version import code_version
from skipreel.jobs.runtime.mlflow_runs import TrackedRun, Tracking, start_run, tracking_uri
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.jobs.runtime.terminal import console
from skipreel.jobs.training.data import CheckedData, checked_data
from skipreel.jobs.training.ray_workers import Workers
from skipreel.jobs.training.record import SweepPoint, SweepRecord
from skipreel.jobs.training.runs import EXIT_INCOMPLETE, Plan, TrainedNetwork, check_not_another, train_networks
from skipreel.jobs.training.settings import ModelName, ModelSettings, Schedule
from skipreel.pipeline.errors import InputError

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
    """Train, evaluate and record; prints the table. The exit code is 3 when a network failed or MLflow missed some."""
    record, complete = sweep(settings)
    print_table(record)
    console.print(f"next: skipreel report {settings.output}")
    return 0 if complete else EXIT_INCOMPLETE


def sweep(settings: Settings) -> tuple[SweepRecord, bool]:
    """Train and evaluate every network; <output>/sweep.json always holds those that are finished.

    Returns:
        the record, and whether every network is in it and MLflow has it all.

    Raises:
        InputError: when no network could be trained.
    """
    data = _data(settings)
    console.print(f"data: {data}")
    output = Path(settings.output)
    plan = Plan(data, settings.schedule, settings.workers, output / "checkpoints")
    check_not_another(_first_points(settings), plan)
    output.mkdir(parents=True, exist_ok=True)
    with ray_cluster(), start_run(settings.tracking, name=f"sweep {output.name}", output=output) as parent:
        parent.log_params({"task": settings.task, "feature_set_id": data.feature_set.id, "cell": settings.cell})
        parent.log_params(data.counts)
        trainer = _Trainer(settings, plan, parent, output, _facts(settings, data))
        try:
            trainer.train(_first_points(settings))
            controls = matched_controls(settings, trainer.points)
            check_not_another(controls, plan)
            trainer.train(controls)
        except BaseException:
            if trainer.finished:
                print_table(trainer.save())
            raise
        if not trainer.finished:
            raise InputError(f"no network could be trained; the first one: {next(iter(trainer.failed.values()))}")
        parent.flush()  # the runs' ids are known then
        record = trainer.save()
        parent.log_files(output / "sweep.json")
    return record, parent.all_logged and not trainer.failed


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
            f"extract features at a higher --rate-hz than {data.feature_set.spec.sampling.rate_hz:g}"
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
        if not group:  # it failed
            continue
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


@dataclass(slots=True)
class _Trainer:
    settings: Settings
    plan: Plan
    parent: TrackedRun
    output: Path
    facts: dict[str, str]
    finished: list[TrainedNetwork] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def train(self, points: list[ModelSettings]) -> None:
        """Train points; says which of them failed."""
        if not points:
            return
        failed = train_networks(
            points, self.plan, start_run=lambda point: self.parent.child(point.name), on_trained=self._keep
        )
        self.failed.update(failed)
        settings = {point.name: point.setting for point in points}
        for name, error in failed.items():
            console.print(f"{name} ({settings[name]}) failed: {error}")

    @property
    def points(self) -> list[SweepPoint]:
        """The finished networks."""
        return [
            SweepPoint.of(
                network.settings,
                network.result,
                checkpoint=str(network.checkpoint.relative_to(self.output)),
                run_id=network.run.id,
            )
            for network in self.finished
        ]

    def save(self) -> SweepRecord:
        """Write what is finished."""
        record = SweepRecord(
            task=self.settings.task,
            manifest=self.plan.data.training.manifest,
            features=self.plan.data.training.features,
            test_split=self.settings.test_split,
            mlflow_uri=tracking_uri(self.settings.tracking, output=self.output),
            run_id=self.parent.id,
            facts=self.facts,
            points=tuple(self.points),
        )
        record.save(self.output)
        return record

    def _keep(self, network: TrainedNetwork) -> None:
        self.finished.append(network)
        self.save()


def _facts(settings: Settings, data: CheckedData) -> dict[str, str]:
    schedule, feature_set = settings.schedule, data.feature_set
    return {
        "feature set": feature_set.id,
        "backbone": str(feature_set.about.get("backbone", feature_set.spec.backbone)),
        "sampling": f"{feature_set.spec.sampling.rate_hz:g} frames a second",
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
