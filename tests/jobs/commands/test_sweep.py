"""A whole sweep on a real Ray cluster with two training processes, recorded in MLflow, and its report."""

import csv
import json
import re

import mlflow
import pytest

from skipreel.jobs.cli import main
from skipreel.jobs.reporting.sweep_report import showcase
from skipreel.jobs.trained.model import load_model
from skipreel.jobs.training.record import load_record
from skipreel.models import CheckpointError


def test_the_record_has_every_family_and_its_checkpoints(swept):
    record = load_record(swept.sweep)
    families = [point.settings.family for point in record.points]
    assert families[:3] == ["dense", "skip", "skip"]
    assert set(families[3:]) == {"random", "stride"}
    for point in record.points:
        model = load_model(swept.sweep / point.checkpoint)
        assert model.settings == point.settings.to_json()
        assert model.spec.feature_set_id == model.feature_set_id
        assert (model.budget_curve is not None) == (point.settings.family == "skip")
        assert point.cost.frames_wanted == point.cost.state_updates <= point.cost.frames_total
    assert {path.name for path in (swept.sweep / "checkpoints").iterdir()} == {p.settings.name for p in record.points}


def test_controls_are_at_the_budget_of_the_network_they_are_matched_to(swept):
    points = load_record(swept.sweep).points
    skip = min((p for p in points if p.settings.family == "skip"), key=lambda p: p.cost.state_updates)
    stride = min((p for p in points if p.settings.family == "stride"), key=lambda p: p.cost.state_updates)
    assert stride.cost.state_updates == pytest.approx(skip.cost.state_updates, rel=0.1, abs=2)


def test_mlflow_shows_a_parent_with_comparable_children(swept):
    record = load_record(swept.sweep)
    client = mlflow.MlflowClient(record.mlflow_uri)
    parent = client.get_run(record.run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{record.run_id}'", max_results=50
    )
    assert {run.info.run_id for run in children} == {point.run_id for point in record.points}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    for run in [parent, *children]:
        assert {"train_videos", "train_videos_missing", "test_videos"} <= run.data.params.keys()
    for run in children:
        assert {"model", "budget_weight", "p_skip", "stride", "seed", "feature_set_id"} <= run.data.params.keys()
        assert {"mAP", "updates_per_video", "update_share", "loss"} <= run.data.metrics.keys()
        assert "skipreel.code_version" in run.data.tags
        history = client.get_metric_history(run.info.run_id, "task_loss")
        assert [metric.step for metric in history] == [1, 2]


def test_the_report_holds_figure_table_strips_and_timings(swept):
    assert main(["report", str(swept.sweep), "--num-strips", "2", "--num-timed", "2"]) == 0
    record = load_record(swept.sweep)
    page = (swept.sweep / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=.http", page)
    shown = showcase(record.points)
    assert f"{shown.metric:.3f}" in page
    with (swept.sweep / "tradeoff.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record.points)
    assert {row["on_front"] for row in rows} <= {"True", "False"}
    artifacts = mlflow.MlflowClient(record.mlflow_uri).list_artifacts(record.run_id)
    assert {"report.html", "tradeoff.png", "tradeoff.csv", "sweep.json"} <= {entry.path for entry in artifacts}


def test_a_damaged_checkpoint_or_record_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(CheckpointError):
        load_model(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"points": []}))
    assert main(["report", str(tmp_path)]) == 1
    assert "sweep.json is damaged" in capsys.readouterr().err
