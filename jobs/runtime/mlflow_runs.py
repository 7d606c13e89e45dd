"""MLflow runs: a job is one run, a sweep is a parent run with a child per network.

Only the driver process logs, so workers and restarts cannot disagree about the id of a run. A started run does not wait
for MLflow: an `Outbox` delivers what it logs, and retries while MLflow cannot be reached. What is still undelivered at
the end is kept in a file of the output folder.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from skipreel.jobs.runtime.code_version import code_version
from skipreel.jobs.runtime.database import database_file, database_uri
from skipreel.jobs.runtime.mlflow_client import MLFLOW_ERRORS, few_retries, first_line, is_permanent, reading
from skipreel.jobs.runtime.outbox import Outbox
from skipreel.pipeline.errors import InputError

# The end of a job waits for MLflow until nothing was delivered for so many seconds. SQLite's own timeout is 20 s.
PATIENCE_S = 60.0
PATIENCE_AFTER_ERROR_S = 10.0
UNLOGGED_FILE = "mlflow-unlogged.jsonl"


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where to record the runs.

    Attributes:
        tracking_uri: MLflow server or database; default: MLFLOW_TRACKING_URI, else mlflow.db in the output folder.
        experiment: the MLflow experiment.
    """

    tracking_uri: str | None = None
    experiment: str = "skipreel"


class TrackedRun:
    """An MLflow run that ends with its `with` block: as FINISHED, as KILLED on Ctrl-C, or as FAILED.

    Only `flush`, `register` and the end of the block of a run without a parent wait for MLflow.

    Attributes:
        name: name of the run.
        id: id of the run; "" until MLflow has made it.
        experiment_id: id of its experiment.
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
            unlogged: only for a run without a parent: the file for entries that could not be logged.
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
        """Log parameters; their values become strings."""
        values = {key: str(value) for key, value in params.items()}
        entries = [Param(key, value) for key, value in values.items()]
        self._send(lambda: self._client.log_batch(self.id, params=entries), params=values)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log the metrics of one step in one request."""
        now = _now_ms()  # the same time in every retry, so that MLflow keeps one value
        entries = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._send(
            lambda: self._client.log_batch(self.id, metrics=entries), metrics=dict(metrics), step=step, time_ms=now
        )

    def log_files(self, *paths: Path) -> None:
        """Log files or folders as artifacts."""
        for path in paths:
            self._send(lambda path=path: _log_file(self._client, self.id, path), file=str(path))  # type: ignore[misc]

    def flush(self, *, patience_s: float = PATIENCE_S) -> bool:
        """Wait until everything is logged, or nothing was for `patience_s` seconds. True if everything is logged."""
        return self._outbox.flush(patience_s=patience_s)

    def register(self, name: str, folder: Path) -> str:
        """Register a logged folder as a new version of a model, which is created if it does not exist.

        Returns:
            The version.

        Raises:
            InputError: MLflow raises an error.
        """
        if not self.flush():
            raise InputError(f"the network cannot be registered as {name}: {first_line(self._outbox.last_error)}")
        try:
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            found = self._client.create_model_version(name, source=f"runs:/{self.id}/{folder.name}", run_id=self.id)
        except MLFLOW_ERRORS as error:
            raise InputError(f"the network cannot be registered as {name}: {first_line(error)}") from error
        return str(found.version)

    def _send(self, deliver: Callable[[], object], **record: Any) -> None:
        def once() -> None:
            with few_retries():  # the outbox retries
                deliver()

        self._outbox.put(once, {"run": self.name, "run_id": self.id, **record})

    def _keep(self, records: list[dict[str, Any]], path: Path) -> None:
        """Write entries that could not be logged to a file, and print one line about it."""
        counts = Counter(record["run"] for record in records)
        what = ", ".join(f"{count} entries of {name}" for name, count in counts.items())
        line = f"skipreel: not logged to MLflow ({first_line(self._outbox.last_error)}): {what}"
        try:
            with path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
            line += f"; they are kept in {path}"
        except OSError as error:
            line += f"; nor can they be kept in {path} ({error.strerror})"
        print(line, file=sys.stderr)


def log_to_finished_run(uri: str, run_id: str, paths: Sequence[Path]) -> None:
    """Add artifacts, such as a report, to a run that has ended.

    Raises:
        InputError: MLflow or the run cannot be found.
    """
    with reading(f"run {run_id}", uri=uri) as client:
        client.get_run(run_id)
        for path in paths:
            _log_file(client, run_id, path)


def runs_page(uri: str, run_id: str, *, local_server: str = "http://127.0.0.1:5000") -> str:
    """The URL of the page that lists the runs of a run's experiment.

    Args:
        local_server: the server's URL, where `uri` is a database.

    Raises:
        InputError: MLflow or the run cannot be read.
    """
    with reading(f"run {run_id}", uri=uri) as client:
        experiment = client.get_run(run_id).info.experiment_id
    server = uri.rstrip("/") if uri.startswith("http") else local_server
    # Without the last part MLflow opens its page for language models, which has no runs.
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def start_run(tracking: Tracking, *, name: str, output: Path) -> TrackedRun:
    """Start a run; its experiment is created if it does not exist.

    Args:
        output: the job's output folder; without a tracking URI it gets the database and the artifacts.

    Raises:
        InputError: MLflow cannot be used.
    """
    uri = tracking_uri(tracking, output=output)
    try:
        with few_retries(), _creation_lock(uri):
            client = mlflow.MlflowClient(uri)
            experiment_id = _experiment_id(client, tracking.experiment, uri)
            tags = {MLFLOW_RUN_NAME: name, **_code_tags()}
            run = client.create_run(experiment_id, run_name=name, tags=tags)
    except MLFLOW_ERRORS as error:
        raise InputError(f"MLflow at {uri} cannot be used: {first_line(error)}") from error
    return TrackedRun(
        client,
        Outbox(is_permanent=is_permanent),
        name=name,
        experiment_id=experiment_id,
        run_id=run.info.run_id,
        unlogged=output / UNLOGGED_FILE,
    )


def _experiment_id(client: mlflow.MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server chooses its own artifact store; for a database file the default would be the current folder.
        database = database_file(uri)
        store = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=store))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job may have created it meanwhile
            if found is None:
                raise
    return str(found.experiment_id)


def tracking_uri(tracking: Tracking, *, output: Path) -> str:
    """The URI that runs are recorded at."""
    return tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or database_uri(output / "mlflow.db")


def _creation_lock(uri: str) -> AbstractContextManager[object]:
    """A lock on a database file: two jobs that create its tables at the same time break each other."""
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


def _now_ms() -> int:
    return int(time.time() * 1000)


def _code_tags() -> dict[str, str]:
    return {"skipreel.code_version": code_version()}
