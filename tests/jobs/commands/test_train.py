"""Training one network by its command, on a real Ray cluster with two workers."""

import os
import signal
import subprocess
import sys
import time

import mlflow
import pytest
import ray
from mlflow.entities import Run

from skipreel.jobs import cli
from skipreel.jobs.cli import main
from skipreel.jobs.commands.train import Settings
from skipreel.jobs.runtime.mlflow_runs import Tracking, start_run
from skipreel.jobs.trained.location import local_model
from skipreel.jobs.trained.model import load_model
from tests.support.feature_sets import two_class_corpus


def command(folder, *more: str) -> list[str]:
    manifest, features = two_class_corpus(folder)
    places = ["--manifest", manifest, "--features", features, "--output", str(folder / "run")]
    return ["train", *places, "--hidden-size", "8", "--batch-size", "4", *more]


def test_a_video_level_network_is_trained_evaluated_and_recorded(tmp_path, cluster, capsys):
    words = command(tmp_path, "--task", "video", "--model", "skip-lstm", "--epochs", "2", "--register", "ours")
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "skip-lstm-lambda-0-seed-0: accuracy" in said
    assert "models:/ours/1" in said
    model = load_model(tmp_path / "run" / "checkpoints" / "skip-lstm-lambda-0-seed-0")
    assert model.recognizer.config.task == "video"
    assert model.class_names == ("low", "high")
    assert model.budget_curve is not None
    assert model.budget_curve[-1][1] == 1  # every frame
    uri = f"sqlite:///{tmp_path}/run/mlflow.db"
    (run,) = mlflow.MlflowClient(uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert {"accuracy", "updates_per_video"} <= run.data.metrics.keys()
    assert (run.data.params["train_videos"], run.data.params["test_videos"]) == ("12", "6")
    assert "data: 12 of 12 videos to train, 6 of 6 videos to test" in said
    registered = load_model(local_model("models:/ours/1", tracking_uri=uri))
    assert registered.budget_curve == model.budget_curve
    assert load_model(local_model(f"runs:/{run.info.run_id}", tracking_uri=uri)).settings == model.settings


@pytest.mark.parametrize("name", ["", "a/b", "a:1", "a@b", "a'b"])
def test_a_name_that_cannot_be_registered_is_refused_before_training(tmp_path, name):
    with pytest.raises(ValueError, match=f"--register is .{name}., a name must"):
        Settings(manifest="m", features="f", output=str(tmp_path / "o"), register=name)


def test_ctrl_c_ends_a_training_with_one_line_and_leaves_no_part(tmp_path, cluster):
    address = ray.get_runtime_context().gcs_address  # a second driver on the cluster of this session
    words = [sys.executable, "-m", "skipreel.jobs.cli", *command(tmp_path, "--epochs", "100000")]
    with start_run(Tracking(), name="earlier", output=tmp_path / "run"):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")

    def training() -> Run | None:
        return next((run for run in client.search_runs(["1"]) if run.info.run_name != "earlier"), None)

    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, process_group=0, env={**os.environ, "RAY_ADDRESS": address}
    ) as process:
        while (run := training()) is None or "loss" not in run.data.metrics:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=90)[1]
    assert process.returncode == cli.EXIT_INTERRUPTED, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert training().info.status == "KILLED"
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}
