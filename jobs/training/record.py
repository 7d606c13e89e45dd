"""The record of a sweep, from which the report is made: sweep.json in the sweep's output folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipreel.features.batching.collate import Task
from skipreel.jobs.training.evaluation import METRIC_NAMES, Evaluation
from skipreel.jobs.training.settings import ModelSettings
from skipreel.jobs.training.tradeoff import TradeoffPoint
from skipreel.models import Cost
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError

FILE = "sweep.json"


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One trained and evaluated network.

    Attributes:
        cost: summed over the test videos.
        checkpoint: its folder, relative to the sweep's folder.
        run_id: id of its MLflow run.
    """

    settings: ModelSettings
    metric: float
    cost: Cost
    num_videos: int
    checkpoint: str
    run_id: str

    @classmethod
    def of(cls, settings: ModelSettings, result: Evaluation, *, checkpoint: str, run_id: str) -> "SweepPoint":
        """A point from its evaluation."""
        return cls(settings, result.metric, result.cost, result.num_videos, checkpoint, run_id)

    @property
    def tradeoff(self) -> TradeoffPoint:
        """Its place in the figure."""
        return TradeoffPoint(
            name=self.settings.model,
            family=self.settings.family,
            setting=self.settings.setting,
            metric=self.metric,
            updates=self.cost.state_updates / self.num_videos,
            update_share=self.cost.state_updates / self.cost.frames_total,
            seed=self.settings.seed,
        )


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """A sweep with the networks that are finished.

    Attributes:
        manifest, features: URIs of its data.
        mlflow_uri, run_id: the parent run.
        facts: further facts for the reader of a report, such as the schedule and the version of the code.
    """

    task: Task
    manifest: str
    features: str
    test_split: str
    mlflow_uri: str
    run_id: str
    facts: dict[str, str]
    points: tuple[SweepPoint, ...]

    @property
    def metric_name(self) -> str:
        """The metric of the task: mAP or accuracy."""
        return METRIC_NAMES[self.task]

    def save(self, folder: Path) -> None:
        """Write sweep.json atomically.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        storage.write_atomic(str(folder / FILE), json.dumps(asdict(self), indent=2, allow_nan=False).encode())


def load_record(folder: Path) -> SweepRecord:
    """Read a sweep's record.

    Raises:
        InputError: the folder holds no record, or a damaged one.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no finished sweep (no {FILE}): run skipreel sweep --output {folder} first")
    try:
        content = json.loads(path.read_text())
        return SweepRecord(**{**content, "points": tuple(_point(point) for point in content["points"])})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): run skipreel sweep again") from error


def _point(content: dict[str, Any]) -> SweepPoint:
    return SweepPoint(**{**content, "settings": ModelSettings(**content["settings"]), "cost": Cost(**content["cost"])})
