"""Train and sweep with a stub in place of Ray's workers: what is kept when a network, the disk or the user ends it."""

import contextlib
import json
import shutil
from dataclasses import asdict

import mlflow
import pytest

from skipreel.features.batching.collate import load_examples
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.cli import EXIT_INTERRUPTED, main
from skipreel.jobs.commands import sweep, train
from skipreel.jobs.trained.model import load_model
from skipreel.jobs.training import ray_workers
from skipreel.jobs.training.events import Started, Trained
from skipreel.jobs.training.loop import Epoch, build_recognizer
from skipreel.jobs.training.record import load_record
from skipreel.jobs.training.runs import EXIT_INCOMPLETE
from skipreel.jobs.training.settings import ModelSettings
from skipreel.models import pack_checkpoint
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import read_manifest
from tests.support.feature_sets import two_class_corpus


class Workers:
    """Stands for `run_workers`: every network is "trained" at once, unless `ends` has an error for part of its name."""

    def __init__(self) -> None:
        self.ends: dict[str, Exception | type[BaseException]] = {}
        self.groups = 0

    def __call__(self, config, _workers, relay):
        self.groups += 1
        for point in config["points"]:
            relay.handle(Started(point.name))
            relay.handle(Epoch(point.name, 1, 0.5, 0.5, 1.0))
            end = next((end for part, end in self.ends.items() if part in point.name), None)
            if isinstance(end, Exception):
                return end
            if end is not None:
                raise end
            relay.handle(Trained(point.name, self.files(point, config)))
        return None

    def files(self, point: ModelSettings, config) -> dict[str, bytes]:
        data = config["data"]
        examples = load_examples(FeatureSet(data.features), read_manifest(data.manifest), split="train", task=data.task)
        network = build_recognizer(point, examples, task=data.task, num_classes=2)
        feature_set = FeatureSet(data.features)
        metadata = {
            "settings": point.to_json(),
            "schedule": asdict(config["schedule"]),
            "class_names": ["low", "high"],
            "feature_set_id": feature_set.id,
            "recipe": feature_set.spec.to_json(),
        }
        return pack_checkpoint(network, metadata)


@pytest.fixture
def workers(monkeypatch):
    stub = Workers()
    monkeypatch.setattr(ray_workers, "run_workers", stub)
    for command in (sweep, train):
        monkeypatch.setattr(command, "ray_cluster", contextlib.nullcontext)
    return stub


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    manifest, features = two_class_corpus(tmp_path_factory.mktemp("data"))
    return ["--manifest", manifest, "--features", features, "--hidden-size", "4", "--epochs", "1"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database without runs: its tables take seconds to make."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def output(tmp_path, database):
    shutil.copy(database, tmp_path)
    return tmp_path


def statuses(output) -> dict[str, str]:
    runs = mlflow.MlflowClient(f"sqlite:///{output}/mlflow.db").search_runs(["1"])
    return {run.info.run_name: run.info.status for run in runs}


def test_ctrl_c_keeps_the_networks_that_are_finished(workers, data, output, capsys):
    workers.ends = {"lambda-0.2": KeyboardInterrupt}
    words = ["sweep", *data, "--output", str(output), "--budget-weights", "0.1", "0.2", "0.3"]
    assert main(words) == EXIT_INTERRUPTED
    kept = ["gru-dense-seed-0", "skip-gru-lambda-0.1-seed-0"]
    assert [point.settings.name for point in load_record(output).points] == kept
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == kept
    assert load_model(output / "checkpoints" / kept[1]).settings["budget_weight"] == 0.1
    assert "λ=0.1" in capsys.readouterr().err
    killed = {"sweep " + output.name: "KILLED", "skip-gru-lambda-0.2-seed-0": "KILLED"}
    assert statuses(output) == dict.fromkeys(kept, "FINISHED") | killed
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlflow.db")
    run = client.get_run(load_record(output).points[1].run_id)
    assert run.data.params["budget_weight"] == "0.1"
    assert {"mAP", "updates_per_video", "loss"} <= run.data.metrics.keys()
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == [kept[1]]


def test_a_sweep_that_ended_too_early_for_a_report_is_one_clear_line(workers, data, output, capsys):
    workers.ends = {"lambda": KeyboardInterrupt}
    assert main(["sweep", *data, "--output", str(output)]) == EXIT_INTERRUPTED
    assert main(["report", str(output)]) == 1
    assert "the sweep has no finished skip network to report on" in capsys.readouterr().err


def test_a_network_that_fails_is_named_and_the_others_are_kept(workers, data, output, capsys):
    workers.ends = {"lambda-3e+38": InputError("rows [0] became NaN")}
    assert main(["sweep", *data, "--output", str(output), "--budget-weights", "3e38", "0.1"]) == EXIT_INCOMPLETE
    assert "skip-gru-lambda-3e+38-seed-0 (λ=3e+38) failed: rows [0] became NaN" in capsys.readouterr().err
    names = [point.settings.name for point in load_record(output).points]
    assert names[:2] == ["gru-dense-seed-0", "skip-gru-lambda-0.1-seed-0"]
    assert statuses(output)["skip-gru-lambda-3e+38-seed-0"] == "FAILED"
    assert statuses(output)[names[1]] == "FINISHED"


def test_when_no_network_can_be_trained_the_sweep_fails(workers, data, output, capsys):
    workers.ends = {"": InputError("no memory")}
    assert main(["sweep", *data, "--output", str(output)]) == 1
    assert "no network could be trained; the first one: no memory" in capsys.readouterr().err
    assert set(statuses(output).values()) == {"FAILED"}


def test_a_full_disk_keeps_the_older_checkpoint(workers, data, output, monkeypatch, capsys):
    words = ["train", *data, "--output", str(output)]
    folder = output / "checkpoints" / "skip-gru-lambda-0-seed-0"
    assert main(words) == 0
    before = (folder / "model.safetensors").read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(words) == 1
    assert "skip-gru-lambda-0-seed-0 (λ=0) failed: [Errno 28] No space left" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in (output / "checkpoints").iterdir()] == [folder.name]
    load_model(folder)


def test_other_settings_under_the_same_name_are_refused(workers, data, output, capsys):
    words = ["train", *data, "--output", str(output)]
    assert main(words) == 0
    assert main(words) == 0  # the same again
    before = (output / "checkpoints" / "skip-gru-lambda-0-seed-0" / "model.json").read_text()
    for more, difference in [
        (["--hidden-size", "5"], "hidden_size 4, now 5"),
        (["--epochs", "2"], "epochs 1, now 2"),
        (["--task", "video"], "task frames, now video"),
    ]:
        assert main([*words, *more]) == 1
        assert difference in capsys.readouterr().err
    assert workers.groups == 2
    assert (output / "checkpoints" / "skip-gru-lambda-0-seed-0" / "model.json").read_text() == before


def test_mlflow_that_goes_away_costs_no_training_and_is_told_at_the_end(workers, data, output, monkeypatch, capsys):
    def gone(*_, **__):
        raise mlflow.exceptions.MlflowException("the database is locked")

    monkeypatch.setattr("skipreel.jobs.runtime.mlflow_runs.PATIENCE_S", 0.01)
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", gone)
    assert main(["train", *data, "--output", str(output)]) == EXIT_INCOMPLETE
    load_model(output / "checkpoints" / "skip-gru-lambda-0-seed-0")
    said = capsys.readouterr().err
    kept = output / "mlflow-unlogged.jsonl"
    assert (
        f"not logged to MLflow (the database is locked): 5 entries of skip-gru-lambda-0-seed-0; they are kept in {kept}"
        in said
    )
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert records[0]["metrics"] == {"loss": 0.5, "task_loss": 0.5, "train_update_share": 1.0}
    assert records[0]["step"] == 1
    assert records[-1]["status"] == "FINISHED"
    assert statuses(output) == {"skip-gru-lambda-0-seed-0": "RUNNING"}


def test_what_mlflow_missed_is_logged_when_it_is_back(workers, data, output, monkeypatch):
    log, failures = mlflow.MlflowClient.log_batch, iter(range(2))

    def away_twice(*words, **more):
        if next(failures, None) is not None:
            raise mlflow.exceptions.MlflowException("the database is locked")
        return log(*words, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away_twice)
    assert main(["train", *data, "--output", str(output)]) == 0
    (run,) = mlflow.MlflowClient(f"sqlite:///{output}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert {"loss", "mAP"} <= run.data.metrics.keys()
    assert not (output / "mlflow-unlogged.jsonl").exists()
