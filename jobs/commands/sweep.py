"""Train a whole trade-off curve: the dense network, skip networks at several λ, and at each of their budgets the
controls that skip at random and at a stride. One MLflow parent run with a child per network.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.table import Table

from skipreel.features.batching.collate import Task
from skipreel.jobs.runtime.mlflow_runs import PATIENCE_AFTER_ERROR_S, Tracking, start_run, tracking_uri
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.jobs.runtime.terminal import console
from skipreel.jobs.training.curve import Curve, CurveTraining, check_skippable
from skipreel.jobs.training.data import checked_data
from skipreel.jobs.training.ray_workers import Workers
from skipreel.jobs.training.record import SweepRecord
from skipreel.jobs.training.runs import EXIT_INCOMPLETE, plan_training
from skipreel.jobs.training.settings import ModelSettings, Schedule


@dataclass(frozen=True, slots=True)
class Settings:
    """The data, the networks and their training.

    Attributes:
        manifest: the videos and their labels, from skipreel manifest.
        features: their features, from skipreel extract.
        output: folder for the checkpoints, sweep.json and, unless tracked elsewhere, MLflow's database.
        task: frames: any number of labels at every frame (mAP); video: one label for the whole (accuracy).
        cell: the recurrent cell of all networks.
        budget_weights: λ of each skip network.
        num_seeds: every network is trained this many times, with seeds 0, 1, …
        hidden_size: number of hidden units.
        num_layers: stacked recurrent layers.
        dropout: dropout before the classifier, while training.
        test_split: the split of the manifest to evaluate on.
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

    @property
    def curve(self) -> Curve:
        """The networks of the sweep."""
        dense = ModelSettings(
            model=self.cell, hidden_size=self.hidden_size, num_layers=self.num_layers, dropout=self.dropout
        )
        return Curve(dense, self.budget_weights, self.num_seeds)


def run(settings: Settings) -> int:
    """Train, evaluate and record, then print the table.

    Returns:
        The exit code: 3 when a network failed or MLflow did not get everything.
    """
    data = checked_data(
        settings.manifest,
        settings.features,
        settings.task,
        test_split=settings.test_split,
        skip_missing=settings.skip_missing,
    )
    check_skippable(data)
    curve, output = settings.curve, Path(settings.output)
    first = curve.first_points(with_mean=settings.task == "video")
    plan = plan_training(first, data, settings.schedule, settings.workers, output=output)
    with ray_cluster(), start_run(settings.tracking, name=f"sweep {output.name}", output=output) as parent:
        training = CurveTraining(curve, plan, parent, tracking_uri(settings.tracking, output=output), output)
        try:
            record = training.run()
        except BaseException:
            if training.finished:
                parent.flush(patience_s=PATIENCE_AFTER_ERROR_S)  # the runs have their ids from then on
                _print_table(training.save())
            raise
    _print_table(record)
    console.print(f"next: skipreel report {settings.output}")
    return 0 if parent.all_logged and not training.failed else EXIT_INCOMPLETE


def _print_table(record: SweepRecord) -> None:
    """The trade-off table, by updates."""
    table = Table(title=f"{record.metric_name} against state updates, split {record.test_split}")
    for column in ("model", "setting", "seed"):
        table.add_column(column)
    for column in (record.metric_name, "updates per video", "share of frames"):
        table.add_column(column, justify="right")
    for point in sorted((p.tradeoff for p in record.points), key=lambda point: -point.updates):
        values = (f"{point.metric:.3f}", f"{point.updates:.1f}", f"{point.update_share:.0%}")
        table.add_row(point.name, point.setting, str(point.seed), *values)
    console.print(table)
