"""Runs recorded on a real MLflow server."""

import mlflow
import pytest

from jobs.tracking import Tracking, log_to_finished_run, start_run
from pipeline.errors import InputError


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
