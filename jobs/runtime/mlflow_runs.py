"""The one module that knows MLflow.

A job is one run; a sweep is a parent run with a child per network. Everything is logged from the driver process,
so that workers, restarts and the driver cannot disagree about a run's id. A run that has started waits for nothing:
what it logs goes through an `Outbox`, which tries again while MLflow cannot be reached. What is still not logged at
the end is kept in a file of the output folder.
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from sqlalchemy.exc import SQLAlchemyError

from skipreel.jobs.runtime.code_version import code_version
from skipreel.jobs.runtime.database import database_file, database_uri
from skipreel.jobs.runtime.outbox import Outbox
from skipreel.models.checkpoint import CONFIG_FILE
from skipreel.pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where runs are recorded.

    Attributes:
        tracking_uri: an MLflow server or database; default: MLFLOW_TRACKING_URI, else mlflow.db beside the output.
        experiment: the MLflow experiment.
    """

    tracking_uri: str | None = None
    experiment: str = "skipreel"


# What MLflow's client raises when a server, a database or an artifact store cannot be used.
_MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, OSError)
# Errors of a request that no later try can mend. All others (no connection, a locked database) may pass.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "INVALID_STATE", "BAD_REQUEST")
# Seconds without any progress after which the end of a job waits no longer for MLflow. SQLite's own patience is 20 s.
PATIENCE_S = 60.0
PATIENCE_AFTER_ERROR_S = 10.0
UNLOGGED_FILE = "mlflow-unlogged.jsonl"


class TrackedRun:
    """An MLflow run that ends with the block: FINISHED, KILLED on Ctrl-C, or FAILED.

    No method waits for MLflow, but for `flush`, `register` and the end of the block of a run without a parent.

    Attributes:
        name: the run's name.
        id: its id; "" as long as MLflow has not made it.
        experiment_id: the id of its experiment.
        all_logged: False when the block of a run without a parent ended before everything was logged.
    """

    def __init__(
        self,
        client: mlflow.MlflowClient,
        outbox: Outbox,
        *,
        name: str,
        experiment_id: str,
        run_id: str = "",
        unlogged: Path | None = None,
    ) -> None:
        """Wrap a run.

        Args:
            unlogged: for a run without a parent: the file for what could not be logged.
        """
        self._client = client
        self._outbox = outbox
        self.experiment_id = experiment_id
        self._unlogged = unlogged
        self._ended = False
        self.name = name
        self.id = run_id
        self.all_logged = True

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.end(error)
        if self._unlogged is not None:
            left = self._outbox.close(patience_s=PATIENCE_S if error is None else PATIENCE_AFTER_ERROR_S)
            if left:
                self.all_logged = False
                self._keep(left, self._unlogged)

    def end(self, error: BaseException | None = None) -> None:
        """End the run now: FINISHED without an error, FAILED, or KILLED on Ctrl-C. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        now = _now_ms()
        self._send(lambda: self._client.set_terminated(self.id, status, now), status=status, time_ms=now)

    def child(self, name: str) -> "TrackedRun":
        """Start a run under this one."""
        run = TrackedRun(self._client, self._outbox, name=name, experiment_id=self.experiment_id)
        tags = {MLFLOW_PARENT_RUN_ID: self.id, **_code_tags()}
        now = _now_ms()

        def create() -> None:
            run.id = self._client.create_run(self.experiment_id, now, tags, name).info.run_id

        run._send(create, status="RUNNING", time_ms=now)
        return run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; values are turned into strings."""
        values = {key: str(value) for key, value in params.items()}
        entries = [Param(key, value) for key, value in values.items()]
        self._send(lambda: self._client.log_batch(self.id, params=entries), params=values)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers of one step in one request."""
        now = _now_ms()  # logged twice with the same time, a metric is still one value
        entries = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._send(
            lambda: self._client.log_batch(self.id, metrics=entries), metrics=dict(metrics), step=step, time_ms=now
        )

    def log_files(self, *paths: Path) -> None:
        """Keep files or folders with the run."""
        for path in paths:
            self._send(lambda path=path: _log_file(self._client, self.id, path), file=str(path))  # type: ignore[misc]

    def flush(self, *, patience_s: float = PATIENCE_S) -> bool:
        """Wait until everything is logged, as long as something is every `patience_s`; whether everything is."""
        return self._outbox.flush(patience_s=patience_s)

    def register(self, name: str, folder: Path) -> str:
        """Make a folder that was logged a new version of a registered model, which is made if need be; its version.

        Raises:
            InputError: when MLflow refuses.
        """
        if not self.flush():
            raise InputError(f"the network cannot be registered as {name}: {_first_line(self._outbox.last_error)}")
        try:
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            found = self._client.create_model_version(name, source=f"runs:/{self.id}/{folder.name}", run_id=self.id)
        except _MLFLOW_ERRORS as error:
            raise InputError(f"the network cannot be registered as {name}: {_first_line(error)}") from error
        return str(found.version)

    def _send(self, deliver: Callable[[], object], **record: Any) -> None:
        def patiently() -> None:
            with _briefly():  # the outbox tries again: MLflow's own tries would only make it wait
                deliver()

        self._outbox.put(patiently, {"run": self.name, "run_id": self.id, **record})

    def _keep(self, records: list[dict[str, Any]], path: Path) -> None:
        """Write what could not be logged to a file, and say so in one line."""
        counts = Counter(record["run"] for record in records)
        what = ", ".join(f"{count} entries of {name}" for name, count in counts.items())
        line = f"skipreel: not logged to MLflow ({_first_line(self._outbox.last_error)}): {what}"
        try:
            with path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
            line += f"; they are kept in {path}"
        except OSError as error:
            line += f"; nor can they be kept in {path} ({error.strerror})"
        print(line, file=sys.stderr)


def log_to_finished_run(uri: str, run_id: str, paths: Sequence[Path]) -> None:
    """Add files to a run that has ended, such as a report drawn later.

    Raises:
        InputError: when the tracking server or the run cannot be found.
    """
    try:
        with _briefly():
            client = _existing(uri)
            client.get_run(run_id)
            for path in paths:
                _log_file(client, run_id, path)
    except _MLFLOW_ERRORS as error:
        raise InputError(f"run {run_id} cannot be had from MLflow at {uri}: {_first_line(error)}") from error


def runs_page(uri: str, run_id: str, *, local_server: str = "http://127.0.0.1:5000") -> str:
    """The page that lists the runs of a run's experiment.

    Args:
        local_server: where MLflow's server is started for a database.

    Raises:
        InputError: when the run cannot be had.
    """
    try:
        with _briefly():
            experiment = _existing(uri).get_run(run_id).info.experiment_id
    except _MLFLOW_ERRORS as error:
        raise InputError(f"run {run_id} cannot be had from MLflow at {uri}: {_first_line(error)}") from error
    server = uri.rstrip("/") if uri.startswith("http") else local_server
    # Without the last part MLflow opens its page for language models, which has no runs.
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def find_checkpoint(uri: str, run_id: str) -> str:
    """The path of a run's one checkpoint among its artifacts.

    Raises:
        InputError: when MLflow or the run cannot be had, or the run holds no checkpoint, or several.
    """
    try:
        with _briefly():
            client = _existing(uri)
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
        with _briefly():
            client = _existing(uri)
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
        with _briefly():
            _existing(uri)
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
        with _briefly(), _creation_lock(uri):
            client = mlflow.MlflowClient(uri)
            experiment_id = _experiment_id(client, tracking.experiment, uri)
            tags = {MLFLOW_RUN_NAME: name, **_code_tags()}
            run = client.create_run(experiment_id, run_name=name, tags=tags)
    except _MLFLOW_ERRORS as error:
        raise InputError(f"MLflow at {uri} cannot be used: {_first_line(error)}") from error
    return TrackedRun(
        client,
        Outbox(is_refusal=_is_refusal),
        name=name,
        experiment_id=experiment_id,
        run_id=run.info.run_id,
        unlogged=output / UNLOGGED_FILE,
    )


def _experiment_id(client: mlflow.MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server chooses its own artifact store; beside a database file the default would be the current folder.
        database = database_file(uri)
        store = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=store))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job may have made it meanwhile
            if found is None:
                raise
    return str(found.experiment_id)


def tracking_uri(tracking: Tracking, *, output: Path) -> str:
    """The URI that runs are recorded at."""
    return tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or database_uri(output / "mlflow.db")


def _existing(uri: str) -> mlflow.MlflowClient:
    """A client for reading; MLflow itself would make a new empty database where the file is not found."""
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise InputError(f"there is no MLflow database {database}: give another --tracking-uri")
    return mlflow.MlflowClient(uri)


def _creation_lock(uri: str) -> AbstractContextManager[object]:
    """For the first contact with a database file: two jobs that make its tables at the same time break each other."""
    database = database_file(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.with_name(f".{database.name}.lock"), timeout=PATIENCE_S)


def _log_file(client: mlflow.MlflowClient, run_id: str, path: Path) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), artifact_path=path.name)
    else:
        client.log_artifact(run_id, str(path))


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def _now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def _briefly() -> Iterator[None]:
    """Keeps MLflow quiet, and from waiting 4 minutes for a server that is not there; the user's settings stand."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # another thread may have been faster


def _first_line(error: Exception | None) -> str:
    return next(iter(str(error or "").strip().splitlines()), "it does not answer")


def _code_tags() -> dict[str, str]:
    return {"skipreel.code_version": code_version()}
