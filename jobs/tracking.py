"""The one module that knows MLflow.

A job is one run; a sweep is a parent run with a child per network. Everything is logged from the driver process,
so that workers, restarts and the driver cannot disagree about a run's id.
"""

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where runs are recorded.

    Attributes:
        tracking_uri: an MLflow server or database; default: MLFLOW_TRACKING_URI, else mlflow.db beside the output.
        experiment: the MLflow experiment.
    """

    tracking_uri: str | None = None
    experiment: str = "skipreel"


class TrackedRun:
    """An MLflow run that ends with the block: FINISHED, KILLED on Ctrl-C, or FAILED."""

    def __init__(self, client: mlflow.MlflowClient, run: Run) -> None:
        self._client = client
        self.id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = "FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._client.set_terminated(self.id, status=status)

    def child(self, name: str) -> "TrackedRun":
        """Start a run under this one."""
        run = self._client.create_run(
            self.experiment_id, run_name=name, tags={MLFLOW_PARENT_RUN_ID: self.id, **_code_tags()}
        )
        return TrackedRun(self._client, run)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; values are turned into strings."""
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers of one step in one request."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    def log_files(self, *paths: Path) -> None:
        """Keep files or folders with the run."""
        for path in paths:
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), artifact_path=path.name)
            else:
                self._client.log_artifact(self.id, str(path))


def log_to_finished_run(uri: str, run_id: str, paths: Sequence[Path]) -> None:
    """Add files to a run that has ended, such as a report drawn later.

    Raises:
        InputError: when the tracking server or the run cannot be found.
    """
    try:
        client = mlflow.MlflowClient(uri)
        TrackedRun(client, client.get_run(run_id)).log_files(*paths)
    except MlflowException as error:
        raise InputError(f"MLflow at {uri} has no run {run_id}: {str(error).splitlines()[0]}") from error


def start_run(tracking: Tracking, *, name: str, output: Path) -> TrackedRun:
    """Start a run; the experiment is made if it does not exist.

    Args:
        output: the job's output folder; without a tracking URI the database and the artifacts lie there.

    Raises:
        InputError: when the tracking server cannot be reached.
    """
    uri = tracking_uri(tracking, output=output)
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            # A server chooses its own artifact store; beside a database file the default would be the current folder.
            store = (output.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(
                tracking.experiment,
                artifact_location=store,
                tags={"mlflow.experimentKind": "custom_model_development"},  # opens the page on runs, not on traces
            )
        else:
            experiment_id = experiment.experiment_id
        run = client.create_run(experiment_id, run_name=name, tags={MLFLOW_RUN_NAME: name, **_code_tags()})
    except MlflowException as error:
        raise InputError(f"MLflow at {uri} cannot be used: {str(error).splitlines()[0]}") from error
    return TrackedRun(client, run)


def tracking_uri(tracking: Tracking, *, output: Path) -> str:
    """The URI that runs are recorded at."""
    default = f"sqlite:///{output.resolve() / 'mlflow.db'}"
    return tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def code_version() -> str:
    """The package's version, and the commit when it runs from a checkout."""
    package = version("skipreel")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{package}+{commit.stdout.strip()}" if commit.returncode == 0 else package


def _code_tags() -> dict[str, str]:
    return {"skipreel.code_version": code_version()}
