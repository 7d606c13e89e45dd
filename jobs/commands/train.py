"""Train one network on a feature set with Ray Train, evaluate it, and record it in MLflow."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from skipreel.features.batching.collate import Task
from skipreel.jobs.runtime.mlflow_runs import Tracking, start_run
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.jobs.runtime.terminal import console
from skipreel.jobs.training.data import checked_data
from skipreel.jobs.training.ray_workers import Workers
from skipreel.jobs.training.runs import EXIT_INCOMPLETE, TrainedNetwork, plan_training, train_networks
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Settings:
    """The data, the network and its training.

    Attributes:
        manifest: the videos and their labels, from skipreel manifest.
        features: their features, from skipreel extract.
        output: folder; the checkpoint goes to <output>/checkpoints/<name>.
        task: frames: any number of labels at every frame (mAP); video: one label for the whole (accuracy).
        test_split: the split of the manifest to evaluate on.
        skip_missing: leave out videos without features instead of stopping.
        register: register the network as a new version of this model in MLflow; other commands then take it as
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
    """Train, evaluate and print the result.

    Returns:
        The exit code: 3 when MLflow did not get everything.
    """
    data = checked_data(
        settings.manifest,
        settings.features,
        settings.task,
        test_split=settings.test_split,
        skip_missing=settings.skip_missing,
    )
    output = Path(settings.output)
    plan = plan_training([settings.model], data, settings.schedule, settings.workers, output=output)
    name = settings.model.name
    finished: list[TrainedNetwork] = []
    with ray_cluster(), start_run(settings.tracking, name=name, output=output) as tracked:
        failed = train_networks([settings.model], plan, start_run=lambda _: tracked, on_trained=finished.append)
        for error in failed.values():
            raise InputError(f"{name} ({settings.model.setting}) failed: {error}") from error
        (network,) = finished
        version = tracked.register(settings.register, network.checkpoint) if settings.register else None
    result = network.result
    console.print(
        f"{name}: {result.metric_name} {result.metric:.4f}, {result.updates_per_video:.1f} updates per video "
        f"({result.update_share:.1%} of the frames), checkpoint {network.checkpoint}"
        + (f", models:/{settings.register}/{version}" if version else "")
    )
    return 0 if tracked.all_logged else EXIT_INCOMPLETE
