"""A whole trade-off curve: the networks it compares, and their training, one MLflow run each under a parent run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from skipreel.jobs.runtime.code_version import code_version
from skipreel.jobs.runtime.mlflow_runs import TrackedRun
from skipreel.jobs.runtime.terminal import console
from skipreel.jobs.training.data import CheckedData
from skipreel.jobs.training.record import SweepPoint, SweepRecord
from skipreel.jobs.training.runs import Plan, TrainedNetwork, check_not_another, train_networks
from skipreel.jobs.training.settings import ModelName, ModelSettings
from skipreel.pipeline.errors import InputError

# A control of a network that reads nearly every frame would be the dense network once more.
MATCHED_BELOW = 0.95
SKIP_MODELS: dict[str, ModelName] = {"gru": "skip-gru", "lstm": "skip-lstm"}


@dataclass(frozen=True, slots=True)
class Curve:
    """The networks of a trade-off curve.

    Attributes:
        dense: the network that reads every frame; all others share its sizes and its cell. Its seed does not count.
        budget_weights: λ of each skip network.
        num_seeds: every network is trained with the seeds 0, 1, …, num_seeds - 1.
    """

    dense: ModelSettings
    budget_weights: tuple[float, ...]
    num_seeds: int

    def first_points(self, *, with_mean: bool) -> list[ModelSettings]:
        """The networks to train first: dense, skip and, `with_mean`, the linear classifier on the mean of frames."""
        points = []
        for seed in range(self.num_seeds):
            dense = replace(self.dense, seed=seed)
            if with_mean:
                points.append(replace(dense, model="mean"))
            points.append(dense)
            skip = replace(dense, model=SKIP_MODELS[dense.model])
            points += [replace(skip, budget_weight=weight) for weight in self.budget_weights]
        return points

    def matched_controls(self, points: Sequence[SweepPoint]) -> list[ModelSettings]:
        """For each λ a random and a strided control with the same updates per video, each with every seed.

        With u updates in T frames, of which the first is always read: p_skip = 1 - (u - 1) / (T - 1), stride = T / u.
        """
        controls: dict[str, ModelSettings] = {}
        for weight in self.budget_weights:
            group = [p for p in points if p.settings.family == "skip" and p.settings.budget_weight == weight]
            if not group:  # it failed
                continue
            updates = fmean(p.cost.state_updates / p.num_videos for p in group)
            frames = fmean(p.cost.frames_total / p.num_videos for p in group)
            if updates / frames >= MATCHED_BELOW:
                continue
            p_skip = round(1 - max(updates - 1, 0) / (frames - 1), 4)
            stride = round(frames / updates, 3)
            for seed in range(self.num_seeds):
                dense = replace(self.dense, seed=seed)
                for control in (replace(dense, p_skip=p_skip), replace(dense, stride=stride)):
                    controls[control.name] = control
        return list(controls.values())


def check_skippable(data: CheckedData) -> None:
    """Refuse data without a frame to skip.

    Raises:
        InputError: every test video has a single sampled frame.
    """
    if all(len(example.sequence.features) == 1 for example in data.examples):
        raise InputError(
            f"every video of split {data.test_split!r} has a single sampled frame, which no network can skip: "
            f"extract features at a higher --rate-hz than {data.feature_set.spec.sampling.rate_hz:g}"
        )


@dataclass(slots=True)
class CurveTraining:
    """The training of a curve. <output>/sweep.json always holds the networks that are finished.

    Attributes:
        parent: the MLflow run above those of the networks.
        mlflow_uri: the URI that the runs are recorded at.
        output: the sweep's folder.
        finished: the trained networks, in the order of their training.
        failed: the error of each network that failed, by name.
    """

    curve: Curve
    plan: Plan
    parent: TrackedRun
    mlflow_uri: str
    output: Path
    finished: list[TrainedNetwork] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def run(self) -> SweepRecord:
        """Train, evaluate and log every network.

        Raises:
            InputError: no network could be trained.
        """
        data = self.plan.data
        cell = self.curve.dense.model
        self.parent.log_params({"task": data.training.task, "feature_set_id": data.feature_set.id, "cell": cell})
        self.parent.log_params(data.counts)
        self._train(self.curve.first_points(with_mean=data.training.task == "video"))
        controls = self.curve.matched_controls(self._points())
        check_not_another(controls, self.plan)
        self._train(controls)
        if not self.finished:
            raise InputError(f"no network could be trained; the first one: {next(iter(self.failed.values()))}")
        self.parent.flush()  # the runs have their ids from then on
        record = self.save()
        self.parent.log_files(self.output / "sweep.json")
        return record

    def save(self) -> SweepRecord:
        """Write the networks that are finished to sweep.json."""
        data = self.plan.data
        record = SweepRecord(
            task=data.training.task,
            manifest=data.training.manifest,
            features=data.training.features,
            test_split=data.test_split,
            mlflow_uri=self.mlflow_uri,
            run_id=self.parent.id,
            facts=self._facts(),
            points=tuple(self._points()),
        )
        record.save(self.output)
        return record

    def _train(self, points: list[ModelSettings]) -> None:
        if not points:
            return
        failed = train_networks(
            points, self.plan, start_run=lambda point: self.parent.child(point.name), on_trained=self._keep
        )
        self.failed.update(failed)
        settings = {point.name: point.setting for point in points}
        for name, error in failed.items():
            console.print(f"{name} ({settings[name]}) failed: {error}")

    def _keep(self, network: TrainedNetwork) -> None:
        self.finished.append(network)
        self.save()

    def _points(self) -> list[SweepPoint]:
        return [
            SweepPoint.of(
                network.settings,
                network.result,
                checkpoint=str(network.checkpoint.relative_to(self.output)),
                run_id=network.run.id,
            )
            for network in self.finished
        ]

    def _facts(self) -> dict[str, str]:
        dense, data, schedule = self.curve.dense, self.plan.data, self.plan.schedule
        spec = data.feature_set.spec
        return {
            "feature set": data.feature_set.id,
            "backbone": str(data.feature_set.about.get("backbone", spec.backbone)),
            "sampling": f"{spec.sampling.rate_hz:g} frames a second",
            "videos": str(data),
            "training": f"{schedule.epochs} epochs, {schedule.batch_size} videos a step, Adam "
            f"{schedule.learning_rate:g}, {self.plan.workers.num_workers} workers, {self.curve.num_seeds} seed(s)",
            "network": f"{dense.model.upper()}, {dense.num_layers} x {dense.hidden_size} hidden",
            "code": code_version(),
        }
