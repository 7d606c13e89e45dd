"""Training one network by its command, on a real Ray cluster with two workers."""

import signal
import subprocess
import sys
import time

import mlflow

from feature_sets import two_class_corpus
from jobs import cli
from jobs.cli import main
from jobs.evaluation import load_model


def command(folder, *more: str) -> list[str]:
    manifest, features = two_class_corpus(folder)
    places = ["--manifest", manifest, "--features", features, "--output", str(folder / "run")]
    return ["train", *places, "--hidden-size", "8", "--batch-size", "4", *more]


def test_a_video_level_network_is_trained_evaluated_and_recorded(tmp_path, cluster, capsys):
    assert main(command(tmp_path, "--task", "video", "--model", "skip-lstm", "--epochs", "2")) == 0
    assert "skip-lstm-lambda-0-seed-0: accuracy" in capsys.readouterr().err
    model = load_model(tmp_path / "run" / "checkpoints" / "skip-lstm-lambda-0-seed-0")
    assert model.recognizer.config.task == "video"
    assert model.class_names == ("low", "high")
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert {"accuracy", "updates_per_video"} <= run.data.metrics.keys()


def test_ctrl_c_ends_a_training_with_one_line_and_leaves_no_part(tmp_path):
    words = [sys.executable, "-m", "jobs.cli", *command(tmp_path, "--epochs", "100000")]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        while not list((tmp_path / "run" / "checkpoints").glob(".ray-*")):
            assert process.poll() is None
            time.sleep(0.1)
        while "loss" not in client.search_runs(["1"])[0].data.metrics:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=90)[1]
    assert process.returncode == cli.EXIT_INTERRUPTED, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert client.search_runs(["1"])[0].info.status == "KILLED"
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
