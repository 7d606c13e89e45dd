"""The one module that knows MLflow.

A job is one run; a sweep is a parent run with a child per network. Everything is logged from the driver process,
so that workers, restarts and the driver cannot disagree about a run's id.
"""

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from sqlalchemy.exc import SQLAlchemyError

from models.checkpoint import CONFIG_FILE
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


# What a server, a database or an artifact store that cannot be used is heard by.
_MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, OSError)


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

    def register(self, name: str, folder: Path) -> str:
        """Make a folder that was logged a new version of a registered model, which is made if need be; its version.

        Raises:
            InputError: when MLflow refuses.
        """
        try:
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            found = self._client.create_model_version(name, source=f"runs:/{self.id}/{folder.name}", run_id=self.id)
        except _MLFLOW_ERRORS as error:
            raise InputError(f"the network cannot be registered as {name}: {_first_line(error)}") from error
        return str(found.version)


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


def find_checkpoint(uri: str, run_id: str) -> str:
    """The path of a run's one checkpoint among its artifacts.

    Raises:
        InputError: when MLflow or the run cannot be had, or the run holds no checkpoint, or several.
    """
    try:
        with _first_contact():
            client = mlflow.MlflowClient(uri)
            folders: list[str] = [entry.path for entry in client.list_artifacts(run_id) if entry.is_dir]
        found = [
            folder
            for folder in folders
            if any(Path(entry.path).name == CONFIG_FILE for entry in client.list_artifacts(run_id, folder))
        ]
    except _MLFLOW_ERRORS as error:
        raise InputError(f"run {run_id} cannot be had from MLflow at {uri}: {_first_line(error)}") from error
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"run {run_id} holds {len(found)} checkpoints: give one of "
            + ", ".join(f"runs:/{run_id}/{path}" for path in found)
        )
    raise InputError(f"run {run_id} holds no checkpoint: give a run of train, or of one network of a sweep")


def source_of_version(uri: str, name: str, *, version: str | None = None, alias: str | None = None) -> str:
    """The URI of a registered model's artifacts, by its version or its alias.

    Raises:
        InputError: when MLflow or the model cannot be had.
    """
    try:
        with _first_contact():
            client = mlflow.MlflowClient(uri)
            if alias is not None:
                version = client.get_model_version_by_alias(name, alias).version
            source: str = client.get_model_version_download_uri(name, version)
    except _MLFLOW_ERRORS as error:
        which = f"version {version}" if alias is None else f"alias {alias}"
        raise InputError(f"model {name}, {which}, cannot be had from MLflow at {uri}: {_first_line(error)}") from error
    return source


def download_checkpoint(uri: str, source: str, *, folder: Path) -> Path:
    """Copy a checkpoint among MLflow's artifacts into a folder.

    Raises:
        InputError: when it cannot be had, or is not a checkpoint.
    """
    try:
        with _first_contact():
            copy = Path(
                mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri)
            )
    except _MLFLOW_ERRORS as error:
        raise InputError(f"{source} cannot be had from MLflow at {uri}: {_first_line(error)}") from error
    if not (copy / CONFIG_FILE).is_file():
        raise InputError(f"{source} in MLflow at {uri} is not a checkpoint of skipreel train or sweep")
    return copy


def start_run(tracking: Tracking, *, name: str, output: Path) -> TrackedRun:
    """Start a run; the experiment is made if it does not exist.

    Args:
        output: the job's output folder; without a tracking URI the database and the artifacts lie there.

    Raises:
        InputError: when the tracking server cannot be reached.
    """
    uri = tracking_uri(tracking, output=output)
    try:
        with _first_contact():
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


@contextmanager
def _first_contact() -> Iterator[None]:
    """Keeps MLflow quiet, and from waiting 4 minutes for a server that was never there; the user's settings stand.

    A running job keeps MLflow's patience: its server may be restarted.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _code_tags() -> dict[str, str]:
    return {"skipreel.code_version": code_version()}
