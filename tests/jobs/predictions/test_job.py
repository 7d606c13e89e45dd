"""Predictions of a manifest on a real Ray cluster, with real kills, and the worker in this process."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from scripts.drill import children
from skipreel.features.errors import FeatureSetError
from skipreel.features.extraction.work import VideoJob
from skipreel.features.feature_set.card import locked
from skipreel.jobs.closed_loop.recognizer import predict
from skipreel.jobs.closed_loop.scheduler import SchedulerSettings
from skipreel.jobs.predictions import store as prediction_store
from skipreel.jobs.predictions import worker as prediction_worker
from skipreel.jobs.predictions.job import JobSettings, ProcessSettings, run_job
from skipreel.jobs.predictions.worker import PredictionWorker
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.video import VideoDecoder
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder
from tests.support.models import BACKBONE, make_model
from tests.support.videos import write_video

ROOT = Path(__file__).parents[3]
MODEL = make_model()
# A feature may differ in the last bit of its float16 by how many frames were encoded with it.
ROUNDING = 1e-5


def run(folder: Path, names: list[str], **settings) -> dict[str, Any]:
    """A job on these videos of a folder."""
    nested = {"looking": SchedulerSettings, "processes": ProcessSettings}
    for name, kind in nested.items():
        own = {field.name for field in dataclasses.fields(kind)} & set(settings)
        settings[name] = kind(**{field: settings.pop(field) for field in own})
    made = JobSettings(str(folder / "predictions"), "here", **settings)
    videos = ((name, str(folder / f"{name}.mp4")) for name in names)
    return run_job(made, model=MODEL, videos=videos, num_videos=len(names))


def good_videos(folder: Path, prefix: str, count: int) -> list[str]:
    names = [f"{prefix}{number}" for number in range(count)]
    for number, name in enumerate(names):
        write_video(folder / f"{name}.mp4", num_frames=20 + 3 * number, fps=10)
    return names


def check_rows(folder: Path, names: list[str]) -> None:
    """One row for each of these videos, as `predict` makes it of the file there is now."""
    found = list(prediction_store.iterate_predictions(str(folder / "predictions")))
    assert sorted(name for name, _ in found) == sorted(names)
    for name, made in found:
        expected = predict(str(folder / f"{name}.mp4"), model=MODEL, backbone=BACKBONE)
        for field in ("frame_index", "pts_s", "used"):
            np.testing.assert_array_equal(getattr(made, field), getattr(expected, field))
        np.testing.assert_allclose(made.scores, expected.scores, atol=ROUNDING)
        assert (made.uri, made.duration_s) == (expected.uri, expected.duration_s)
        assert made.cost == expected.cost


def failed(folder: Path) -> dict[str, str]:
    return {row["video_id"]: row["reason"] for row in prediction_store.failures(str(folder / "predictions"))}


def shards(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "predictions" / "shards").glob("*.parquet")}


def test_a_rerun_does_what_is_missing_and_nothing_else(tmp_path, cluster, capsys):
    names = good_videos(tmp_path, "good", 6)
    (tmp_path / "broken.mp4").write_text("not a video")
    listed = [*names, "broken", "missing"]
    summary = run(tmp_path, listed)
    assert (summary["videos"], summary["finished"], summary["failed"]) == (8, 6, 2)
    assert summary["this_run"]["frames"] == summary["cost"]["frames_total"] == sum(20 + 3 * n for n in range(6))
    assert 0 < summary["cost"]["frames_encoded"] < summary["cost"]["frames_total"]
    check_rows(tmp_path, names)
    assert failed(tmp_path).keys() == {"broken", "missing"}
    assert capsys.readouterr().err.count("failed: ") == 2
    card = prediction_store.read_card(str(tmp_path / "predictions"))
    assert {"output": summary["output"], **card["summary"]} == summary
    assert (card["task"], card["class_names"]) == ("frames", ["a", "b", "c"])

    before = shards(tmp_path)
    again = run(tmp_path, listed)
    assert (again["finished"], again["failed"], again["this_run"]["finished"]) == (6, 2, 0)
    assert again["cost"] == summary["cost"]
    assert shards(tmp_path) == before
    assert "failed: " not in capsys.readouterr().err  # nothing was tried

    write_video(tmp_path / "good0.mp4", num_frames=9, fps=10)
    (tmp_path / "good1.mp4").touch()
    write_video(tmp_path / "broken.mp4", num_frames=12, fps=10)
    write_video(tmp_path / "new.mp4", num_frames=13, fps=10)
    listed += ["new"]
    third = run(tmp_path, listed, retry_failed=True)
    assert (third["finished"], third["this_run"]["finished"], third["this_run"]["failed"]) == (8, 3, 1)
    assert failed(tmp_path).keys() == {"missing"}
    check_rows(tmp_path, [*names, "broken", "new"])

    (tmp_path / "good2.mp4").unlink()
    assert run(tmp_path, listed)["finished"] == 8  # a file that is gone keeps its prediction
    with pytest.raises(FeatureSetError, match="another model or another way to look"):
        run(tmp_path, listed, dense=True)


def test_what_a_decoder_does_to_its_process_is_that_videos_failure_alone(tmp_path, cluster):
    names = good_videos(tmp_path, "good", 4)
    bad = ["abort", "hang", "allocate"]
    for name in bad:
        write_video(tmp_path / f"{name}.mp4", num_frames=20, fps=10)
    limits = {"time_limit_s": 8.0, "decoder_memory_mb": 600}
    summary = run(tmp_path, [*bad, *names], decoder="tests.support.poison:open_video", **limits)
    assert (summary["finished"], summary["failed"]) == (4, 3)
    check_rows(tmp_path, names)
    reasons = failed(tmp_path)
    assert "the process that decoded it died 3 times" in reasons["abort"]
    assert "did not come within 8 seconds (--time-limit-s)" in reasons["hang"]
    assert "needs more memory than a decoder may take; give more with --decoder-memory-mb" in reasons["allocate"]


def test_a_killed_worker_loses_nothing(tmp_path, cluster):
    names = good_videos(tmp_path, "slow", 8)
    killed: list[int] = []

    def kill_one() -> None:
        while not shards(tmp_path):  # from then on processes have videos in hand
            time.sleep(0.02)
        for victim in children(os.getpid(), "ray::PredictionWorker"):
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    summary = run(tmp_path, names, decoder="tests.support.poison:open_video", shard_mb=1e-6)
    killer.join(timeout=10)
    assert killed
    assert summary["this_run"]["restarted_processes"] > 0
    assert (summary["finished"], summary["failed"]) == (8, 0)
    check_rows(tmp_path, names)


def test_a_killed_driver_loses_nothing_finished(tmp_path, cluster):
    names = good_videos(tmp_path, "slow", 12)
    job = {"decoder": "tests.support.poison:open_video", "shard_mb": 1e-6}
    code = f"from tests.jobs.predictions.test_job import *; run(Path({str(tmp_path)!r}), {names}, **{job})"
    address = ray.get_runtime_context().gcs_address  # a second driver on the cluster of this session
    environment = {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    ) as process:
        while process.poll() is None and len(shards(tmp_path)) < 2:
            time.sleep(0.02)
        process.kill()
        error = process.communicate()[1]
    done = shards(tmp_path)
    assert 2 <= len(done) < 12, error
    summary = run(tmp_path, names, **job)
    assert summary["finished"] == 12
    assert summary["this_run"]["finished"] == 12 - len(done)
    assert shards(tmp_path).items() >= done.items()
    check_rows(tmp_path, names)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("workers", -1), ("in_flight", 0), ("gpus_per_worker", 0.0), ("shard_mb", float("inf")), ("time_limit_s", 0.0)],
)
def test_a_wrong_setting_is_one_line_before_anything_is_made(tmp_path, flag, value):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} is {value}, allowed: "):
        run(tmp_path, ["a"], **{flag: value})
    assert not (tmp_path / "predictions").exists()


def test_a_second_job_into_the_same_output_is_kept_out(tmp_path):
    with (
        locked(str(tmp_path / "predictions")),
        pytest.raises(FeatureSetError, match="another prediction is writing to"),
    ):
        run(tmp_path, ["a"])


# The worker, in this process


OPENED: list[str] = []


def open_greedily(path: str) -> VideoDecoder:
    """As if there were never enough memory for a video that is ``greedy``, and at first none for one ``shared``."""
    name = Path(path).stem
    OPENED.append(name)
    if name.startswith("greedy") or (name.startswith("shared") and OPENED.count(name) == 1):
        raise MemoryError
    if name.startswith("rewritten"):
        Path(path).write_bytes(Path(path).read_bytes() + b"more")
    return PyAVDecoder(path)


@pytest.fixture
def worker(monkeypatch):
    """One that takes no memory away from the tests."""
    monkeypatch.setattr(prediction_worker, "limit_memory", lambda _: None)
    OPENED.clear()
    made = PredictionWorker(MODEL, SchedulerSettings(in_flight=8, decoder=f"{__name__}:open_greedily"), memory_bytes=0)
    made.ready()
    yield made
    made._scheduler.close()


def endings(worker: PredictionWorker, *tasks: VideoJob) -> dict[str, str]:
    """Every video's end: why it failed, "unchanged" or "predicted"."""
    found: dict[str, str] = {}
    given = tasks
    while len(found) < len(tasks):
        block, _ = worker.next_block(given)  # on a busy machine a block may come without an outcome
        given = ()
        assert len(block.chunks) == len(block.results)
        predicted = {part.job.video_id for part in block.chunks}
        for ending in block.outcomes:
            assert ending.job.video_id not in found
            done = "predicted" if ending.job.video_id in predicted else ""
            found[ending.job.video_id] = ending.reason or ("unchanged" if ending.unchanged else done)
    block, _ = worker.next_block(())
    assert not block.outcomes
    return found


def test_a_lack_of_memory_is_blamed_on_a_video_that_was_alone(worker, tmp_path):
    names = ["greedy", "shared", *good_videos(tmp_path, "good", 3)]
    for name in names[:2]:
        write_video(tmp_path / f"{name}.mp4", num_frames=20, fps=10)
    found = endings(worker, *(VideoJob(name, str(tmp_path / f"{name}.mp4")) for name in names))
    assert "needs more memory than a decoder may take" in found.pop("greedy")
    assert set(found.values()) == {"predicted"}
    assert (OPENED.count("greedy"), OPENED.count("shared")) == (2, 2)


def test_what_changes_while_it_is_read_fails_and_what_has_not_changed_is_not_opened(worker, tmp_path):
    for name in ("rewritten", "same"):
        write_video(tmp_path / f"{name}.mp4", num_frames=20, fps=10)
    first = endings(worker, VideoJob("same", str(tmp_path / "same.mp4")))
    assert first == {"same": "predicted"}
    digest = storage.sha256(str(tmp_path / "same.mp4"))
    tasks = [
        VideoJob("same", str(tmp_path / "same.mp4"), known_digest=digest),
        VideoJob("rewritten", str(tmp_path / "rewritten.mp4")),
        VideoJob("missing", str(tmp_path / "missing.mp4")),
    ]
    found = endings(worker, *tasks)
    assert found["same"] == "unchanged"
    assert "rewritten.mp4 changed while it was read" in found["rewritten"]
    assert "missing.mp4" in found["missing"]
    assert OPENED == ["same", "rewritten"]


def test_a_damaged_model_gives_no_predictions(worker, tmp_path):
    model = dataclasses.replace(MODEL, recognizer=make_model().recognizer)
    model.recognizer.head.bias.data[:] = float("nan")
    damaged = PredictionWorker(model, SchedulerSettings(), memory_bytes=0)
    damaged.ready()
    write_video(tmp_path / "a.mp4", num_frames=5, fps=10)
    found = endings(damaged, VideoJob("a", str(tmp_path / "a.mp4")))
    damaged._scheduler.close()
    assert "scores of" in found["a"]


def test_a_worker_returns_when_frames_were_encoded_and_not_before(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_worker, "BLOCK_S", 0.05)
    monkeypatch.setattr(prediction_worker, "_POLL_S", 0.01)
    path = write_video(tmp_path / "long.mp4", num_frames=250, fps=10)
    worker._scheduler.close()
    scheduler = worker._scheduler = _Slow()
    block, _ = worker.next_block([VideoJob("long", str(path))])
    assert not block.outcomes
    assert scheduler.waits > 10  # it went on while no frame had come


class _Slow:
    """A scheduler whose first frame is encoded at the 11th question."""

    waits = 0

    @property
    def frames_encoded(self) -> int:
        return int(self.waits > 10)

    def add(self, requests) -> None:
        pass

    def wait(self, timeout_s: float) -> list:
        self.waits += 1
        time.sleep(timeout_s)
        return []

    def close(self) -> None:
        pass
