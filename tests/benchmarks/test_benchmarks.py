"""The benchmarks run, and stop where an implementation is wrong; their figures are not tested."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import backbone, closed_loop, closed_loop_gpu, extract, gpu, layers, timing
from benchmarks.clips import write_clip
from benchmarks.closed_loop_ways import Setup, fixed_share, looked_at
from benchmarks.workloads import Cell, Mode, Size
from skipreel.features.backbones.loading import load_backbone
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models.recurrence import event
from skipreel.pipeline.video.sampling import Sampling

TINY = Size("tiny", batch=4, steps=12, features=2, hidden=5, layers=1)


@pytest.fixture
def _threads() -> Iterator[None]:
    """As many as before: benchmarks take their own number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that would be timed for a twentieth of a second, again and again, is called once."""

    def called(functions: Mapping[str, Callable[[], object]], *, rounds: int, **_: object) -> dict[str, list[float]]:
        for function in functions.values():
            function()
        return {name: [1.0] * rounds for name in functions}

    for module in (layers, gpu):
        monkeypatch.setattr(module, "paired", called)


def test_functions_are_timed_in_turn_and_as_often() -> None:
    calls: list[str] = []
    slow = {name: partial(_note, calls, name) for name in ("ours", "peer")}
    times = timing.paired(slow, rounds=1)
    assert {name: len(seconds) for name, seconds in times.items()} == {"ours": 3, "peer": 3}
    assert calls == ["ours"] * 2 + ["peer"] * 2 + ["ours", "peer"] * 3
    assert min(min(seconds) for seconds in times.values()) > 0.05


def test_peak_bytes_are_those_of_the_largest_moment() -> None:
    assert timing.peak_bytes(lambda: bytearray(b"1") * (64 << 20)) > 60 << 20


def _note(calls: list[str], name: str) -> None:
    calls.append(name)
    time.sleep(0.06)


@pytest.mark.usefixtures("_threads", "_untimed")
def test_the_table_of_the_layers_and_its_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    monkeypatch.setattr(layers, "TRAINING", (replace(TINY, name="A"),))
    monkeypatch.setattr(layers, "INFERENCE", (replace(TINY, name="A4"), replace(TINY, name="A1", batch=1)))
    monkeypatch.setattr(layers, "rate", lambda: 1e9)
    monkeypatch.setattr(layers, "peak_bytes", lambda function: function() or 1 << 20)  # of these sizes it may be 0
    layers.main(layers.Settings(sizes=("A",), threads=(1,), rounds=1, json=path))
    rows = json.loads(path.read_text())
    kinds = {tuple(row["name"].split("/")[1:5]) for row in rows}
    expected = {("train", "A", cell, backend) for cell in ("lstm", "gru") for backend in layers.COMPARED}
    expected |= {("infer", "A4", cell, backend) for cell in ("lstm", "gru") for backend in layers.COMPARED}
    expected |= {("infer", "A1", cell, backend) for cell in ("lstm", "gru") for backend in ("event", "cpp")}
    expected |= {("memory", "A", cell, backend) for cell in ("lstm", "gru") for backend in ("event", "cpp")}
    assert kinds == expected
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)
    assert capsys.readouterr().out.count("cpp") == sum("/cpp/" in row["name"] for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
def test_the_quick_table_of_the_layers_at_its_real_sizes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    layers.main(layers.Settings(quick=True, json=path))
    rows = json.loads(path.read_text())
    assert {row["name"].split("/")[1] for row in rows} == {"train", "infer"}
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "benchmarks.gpu needs a CUDA device and a torch built for CUDA; there is none here\n"


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_what_the_gpu_benchmark_does(cell: Cell, mode: Mode, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.check(TINY, cell, "event", "cpu", tf32=False)
    gpu.check(TINY, cell, "triton", "cpu", tf32=False)
    first, second = capsys.readouterr().out.splitlines()
    assert "gates alike in" in first
    assert "cannot do this (tensors on cpu)" in second
    rows = gpu.compare(TINY, cell, mode, "cpu", rounds=1, label="here")
    assert [row.name for row in rows] == [
        f"gpu/here/{mode}/tiny/{cell}/event/{share}" for share in (1.0, 0.5, 0.25, 0.1, 0.03)
    ]
    assert all(row.ours > 0 and row.ratio > 0 for row in rows)


def test_a_backbone_from_frame_to_feature(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = backbone.compare("random:0", "cpu", rounds=1, label="here")
    assert [row.name for row in rows] == ["gpu/here/random:0/float32", "gpu/here/random:0/bfloat16"]
    assert all(row.ratio > 0 for row in rows)
    assert "float32: largest difference from the CPU's float32 0.0000" in capsys.readouterr().out
    monkeypatch.setattr(backbone, "TOLERANCE", {"float32": -1.0, "bfloat16": -1.0})
    with pytest.raises(SystemExit, match="differs from the CPU"):
        backbone.compare("random:0", "cpu", rounds=1, label="here")


@pytest.mark.parametrize("factor", [1.01, torch.nan])
def test_nothing_is_timed_that_is_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = event.backward

    def wrong(*args: object, **kwargs: object) -> object:
        adjoints = right(*args, **kwargs)  # type: ignore[arg-type]
        return adjoints._replace(logit=factor * adjoints.logit)

    monkeypatch.setattr(event, "backward", wrong)
    with pytest.raises(SystemExit, match="event differs from the reference at tiny"):
        gpu.check(TINY, "lstm", "event", "cpu", tf32=False)


def test_an_implementation_that_makes_nan_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = event.forward

    def wrong(*args: object, **kwargs: object) -> object:
        answer = right(*args, **kwargs)  # type: ignore[arg-type]
        return answer._replace(state=answer.state._replace(update_prob=torch.nan * answer.state.update_prob))

    monkeypatch.setattr(event, "forward", wrong)
    with pytest.raises(ValueError, match=r"rows \[0\] became NaN"):
        gpu.check(TINY, "gru", "event", "cpu", tf32=False)


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [write_clip(tmp_path / f"{seed}.mp4", size=(64, 48), seconds=1, seed=seed) for seed in range(2)]


def test_extraction_and_the_plain_loop_see_the_same(clips: list[Path], tmp_path: Path, cluster: None) -> None:
    extract.check_equal(extract.Case("one", clips[:1], "random:0", ""), tmp_path / "out")
    case = extract.Case("two", clips, "benchmarks.backbone:thumbnail", "", rate_hz=3.0)
    measured = extract.ours(case, tmp_path / "set", num_encoders=1)
    assert measured.frames == 6
    assert measured.rate > 0
    assert extract.plain_loop(case, tmp_path / "plain").frames == 6


def test_no_extraction_is_timed_whose_features_are_wrong(
    clips: list[Path], tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "load", lambda _: np.ones((6, 128), np.float16))
    with pytest.raises(SystemExit, match="differ from the plain loop's"):
        extract.check_equal(extract.Case("one", clips[:1], "random:0", ""), tmp_path / "out")


def test_peak_memory_is_that_of_the_largest_moment() -> None:
    with extract.PeakMemory() as memory:
        block = bytearray(b"1") * (200 << 20)
        time.sleep(0.5)
        del block
    assert memory.total > 200 << 20


def test_many_videos_before_a_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"videos": 12, "length": 20, "in_flight": 8}
    rows = closed_loop_gpu.compare("random:0", "cpu", rounds=1, label="here", **small)
    assert [row.name for row in rows][:2] == ["gpu/here/closed-loop/1.0/dense", "gpu/here/closed-loop/1.0/busy"]
    shares = [line.split(": ")[1].split(" of the frames")[0] for line in capsys.readouterr().out.splitlines()]
    assert shares == ["100%", "25%", "10%"]
    assert all(row.ours > 0 and row.ratio > 0 for row in rows)
    monkeypatch.setattr(closed_loop_gpu.np, "allclose", lambda *_, **__: False)
    with pytest.raises(SystemExit, match="nothing is timed"):
        closed_loop_gpu.compare("random:0", "cpu", rounds=1, label="here", **small)


@pytest.mark.usefixtures("_threads")
def test_the_four_ways_from_files_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = closed_loop.Settings(
        quick=True, cases=("random-1",), figure=tmp_path / "f.png", json=tmp_path / "r.json"
    )
    monkeypatch.setattr(closed_loop, "write_resnet50", lambda folder: folder)
    closed_loop.main(settings)
    rows = {
        row["name"].removeprefix("closed-loop/480p-key48-random-1/"): row
        for row in json.loads(settings.json.read_text())
    }
    assert set(rows) == {
        "dense-of-disk",
        *(f"{share}/{peer}" for share in (1.0, 0.1) for peer in ("dense", "uniform", "overhead")),
    }
    assert all(row["ours"] > 0 for row in rows.values())
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_no_way_is_timed_whose_gates_are_wrong(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("random:0")
    models = {0.1: fixed_share(backbone, 0.1, Sampling(6.0))}
    case = closed_loop.Case("one", Setup([str(clips[0])], backbone, 1), models, rounds=1)
    closed_loop.check(case, tmp_path)
    monkeypatch.setattr(closed_loop, "looked_at", lambda setup, model, dense=False: _other_gates(setup, model, dense))
    with pytest.raises(SystemExit, match="gates differ"):
        closed_loop.check(case, tmp_path)


def _other_gates(setup: Setup, model: TrainedModel, dense: bool) -> list[Prediction]:
    found = looked_at(setup, model, dense=dense)
    found[0].used[-1] ^= dense
    return found
