"""Runs recorded on a real MLflow server and in databases."""

import subprocess
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from skipreel.jobs.runtime import code_version, database
from skipreel.jobs.runtime.mlflow_runs import Tracking, log_to_finished_run, runs_page, start_run, tracking_uri
from skipreel.pipeline.errors import InputError


def test_parent_and_children_reach_the_server(mlflow_uri, tmp_path):
    picture = tmp_path / "figure.png"
    picture.write_bytes(b"png")
    with start_run(Tracking(tracking_uri=mlflow_uri, experiment="e"), name="sweep", output=tmp_path) as parent:
        with parent.child("point") as child:
            child.log_params({"seed": 3})
            child.log_metrics({"loss": 0.5}, step=1)
            child.log_metrics({"loss": 0.25}, step=2)
        parent.log_files(picture)
    log_to_finished_run(mlflow_uri, parent.id, [picture])
    client = mlflow.MlflowClient(mlflow_uri)
    (found,) = client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.id}'")
    assert found.info.run_id == child.id
    assert found.data.params == {"seed": "3"}
    assert [m.value for m in client.get_metric_history(child.id, "loss")] == [0.5, 0.25]
    assert [entry.path for entry in client.list_artifacts(parent.id)] == ["figure.png"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_run_that_breaks_off_says_so(tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for error, status in ((KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")):
        with pytest.raises(error), start_run(Tracking(), name="a", output=tmp_path) as run:
            raise error
        assert client.get_run(run.id).info.status == status


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        start_run(Tracking(tracking_uri="http://127.0.0.1:9"), name="a", output=tmp_path)


def test_an_output_folder_of_any_name_holds_its_database_and_artifacts(tmp_path):
    name = "a%20b what?x=1 ha#sh é中"
    output, picture = tmp_path / name, tmp_path / "figure.png"
    picture.write_bytes(b"png")
    with start_run(Tracking(), name="a", output=output) as run:
        run.log_files(picture)
    uri = tracking_uri(Tracking(), output=output)
    assert database.database_file(uri) == output / "mlflow.db"
    copy = mlflow.artifacts.download_artifacts(
        run_id=run.id, artifact_path="figure.png", tracking_uri=uri, dst_path=str(tmp_path / "copy")
    )
    assert Path(copy).read_bytes() == b"png"
    assert {path.name for path in tmp_path.iterdir()} == {name, "figure.png", "copy"}
    assert {path.name for path in output.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}


def test_one_job_at_a_time_creates_a_database(tmp_path, monkeypatch):
    """MLflow makes its tables without a lock: of two processes that begin together one died."""
    monkeypatch.setattr("skipreel.jobs.runtime.mlflow_runs.PATIENCE_S", 0.05)
    with FileLock(tmp_path / ".mlflow.db.lock"), pytest.raises(InputError, match=r"cannot be used: .*lock"):
        start_run(Tracking(), name="a", output=tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_jobs_that_share_a_database_keep_their_artifacts_beside_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/shared.db"
    for name in ("a", "b"):
        with start_run(Tracking(uri), name=name, output=tmp_path / name):
            pass
    runs = mlflow.MlflowClient(uri).search_runs(["1"])
    assert {run.info.artifact_uri.split("/mlartifacts/")[0] for run in runs} == {tmp_path.as_uri()}


def test_a_database_that_cannot_be_used_is_one_clear_line(tmp_path):
    (tmp_path / "no.db").write_text("not a database, but long enough to be looked at" * 30)
    with pytest.raises(InputError, match=r"MLflow at sqlite:///.*no\.db cannot be used: .*not a database"):
        start_run(Tracking(f"sqlite:///{tmp_path}/no.db"), name="a", output=tmp_path)
    with pytest.raises(InputError, match="there is no MLflow database"):
        log_to_finished_run(f"sqlite:///{tmp_path}/gone.db", "0" * 32, [])
    assert not (tmp_path / "gone.db").exists()


def test_a_child_that_waits_for_mlflow_has_its_own_times(tmp_path):
    with start_run(Tracking(), name="sweep", output=tmp_path) as parent:
        first = parent.child("first")
        first.end()
        first.end(ValueError())  # too late
        assert parent.flush()
        second = parent.child("second")
        second.end(KeyboardInterrupt())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    one, two = (client.get_run(run.id).info for run in (first, second))
    assert one.start_time <= one.end_time <= two.start_time <= two.end_time
    assert (one.status, two.status) == ("FINISHED", "KILLED")
    assert parent.all_logged


def test_the_link_to_the_runs_opens_the_page_that_has_them(mlflow_uri, tmp_path):
    with start_run(Tracking(tracking_uri=mlflow_uri, experiment="link"), name="a", output=tmp_path) as run:
        pass
    number = mlflow.MlflowClient(mlflow_uri).get_run(run.id).info.experiment_id
    assert runs_page(mlflow_uri, run.id) == f"{mlflow_uri}/#/experiments/{number}/runs?workflowType=machine_learning"


def test_the_commit_is_named_only_where_the_repository_is_ours(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    def installed_at(folder) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(code_version, "__file__", str(folder / "code_version.py"))
        return code_version.code_version()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert "+" in installed_at(tmp_path / "jobs" / "runtime")
    assert "+" not in installed_at(tmp_path / ".venv" / "site-packages" / "jobs" / "runtime")
    monkeypatch.setenv("PATH", "")
    assert "+" not in installed_at(tmp_path / "jobs" / "runtime")
