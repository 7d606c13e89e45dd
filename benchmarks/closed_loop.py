"""From video files to scores, four ways: `python -m benchmarks.closed_loop` (20 minutes; `--quick` a minute).

Ours, which decodes and encodes only the frames that the gate asks for; the same network looking at every frame; what
everyone does, extracting features to disk and running the network on them; and uniform subsampling at the same number
of frames, which knows them all beforehand. First that the first three give the same scores. The gates are synthetic,
with a fixed share of looks, so that the shares compare; or those of a trained network (`--model`), dialled to each.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.backbone import write_resnet50
from benchmarks.clips import write_clip
from benchmarks.closed_loop_ways import CORES, Setup, extracted, fixed_share, looked_at, subsampled
from benchmarks.timing import Row, machine, write_json
from skipreel.features.backbones.loading import load_backbone
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.budget import with_budget
from skipreel.jobs.trained.model import TrainedModel, load_model
from skipreel.models import Cost
from skipreel.pipeline.video.sampling import Sampling

DATA = Path(__file__).parents[2] / "shared" / "data"
MOBILENET = f"hf:{DATA / 'weights' / 'mobilenet_v1_0.75_224'}"
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)
# Of the ideal, 1 / share times the dense pass, where the CNN dominates; of uniform subsampling; of the whole.
IDEAL_TARGET, UNIFORM_TARGET, MAX_OVERHEAD = 0.8, 1 / 1.15, 0.05


@dataclass(frozen=True)
class Settings:
    """rounds: turns of everything. cases: those whose name contains one of these. model: a trained network to dial.

    figure: where the speed-up by share is drawn, for one video at a time.
    """

    rounds: int = 3
    quick: bool = False
    cases: tuple[str, ...] = ("",)
    model: str | None = None
    figure: Path | None = None
    json: Path | None = None


@dataclass(frozen=True)
class Case:
    """Videos, and by their share of looks the networks that label them."""

    name: str
    setup: Setup
    models: dict[float, TrainedModel]
    rounds: int


def cases(settings: Settings, folder: Path) -> Iterator[Case]:
    """One video at a time in several rounds; many in flight in one, of which each is long."""
    rounds = 1 if settings.quick else settings.rounds
    for name, backbone_name, files in _clips(settings, folder):
        if not any(part in name for part in settings.cases):
            continue
        if backbone_name is None:
            trained = load_model(settings.model or "")
            backbone = load_backbone_of(trained)
            lowest = min(share for _, share in trained.budget_curve or ())
            models = {share: with_budget(trained, share) for share in (*SHARES, lowest) if lowest <= share < 1}
        else:
            backbone = load_backbone(backbone_name)
            shares = (1.0, 0.1) if settings.quick else SHARES
            models = {share: fixed_share(backbone, share, Sampling(6.0)) for share in shares}
        in_flight = int(name.rpartition("-")[2])
        is_slow = in_flight > 1 or "resnet50" in name
        yield Case(name, Setup(files(), backbone, in_flight), models, 1 if is_slow else rounds)


def _clips(settings: Settings, folder: Path) -> Iterator[tuple[str, str | None, Callable[[], list[str]]]]:
    """Name of a case, its backbone (None: the trained network's), and what makes its files."""
    resnet = f"hf:{write_resnet50(folder / 'resnet50')}"
    backbones = {"random": "random:0"} if settings.quick else {"mobilenet": MOBILENET, "resnet50": resnet}
    for key_distance in (48,) if settings.quick else (12, 48, 250):
        for label, backbone in backbones.items():
            name = f"480p-key{key_distance}-{label}"
            yield f"{name}-1", backbone, partial(_write, folder, key_distance, 1, 5 if settings.quick else 30)
            if key_distance == 48:
                count, seconds = (16 if label == "resnet50" else 64), (5 if settings.quick else 10)
                yield f"{name}-64", backbone, partial(_write, folder, key_distance, count, seconds)
    fight = [str(file) for file in sorted((DATA / "fight").glob("*/*.mp4"))]
    if fight and not settings.quick:
        for label, backbone_name in [("mobilenet", MOBILENET)] + [("trained", None)] * (settings.model is not None):
            yield f"fight-{label}-1", backbone_name, lambda: fight[::10]
            yield f"fight-{label}-64", backbone_name, lambda: fight


def _write(folder: Path, key_distance: int, count: int, seconds: float) -> list[str]:
    """Clips of which every fourth has the same content under another name."""
    stem = f"{key_distance}-{seconds}"
    files = [folder / f"{stem}-{number}.mp4" for number in range(count)]
    for number, file in enumerate(files):
        if number < 4:
            write_clip(file, seconds=seconds, key_distance=key_distance, seed=number)
        else:
            shutil.copy(files[number % 4], file)
    return [str(file) for file in files]


def main(settings: Settings) -> None:
    """Prints a table for each case."""
    print(machine())
    torch.set_num_threads(CORES)
    rows: list[Row] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for case in cases(settings, Path(place)):
            check(case, Path(place))
            lines[case.name] = compare(case, Path(place), rows)
    if settings.figure:
        speed_up_figure(lines).savefig(settings.figure)
    if settings.json:
        write_json(settings.json, rows)


def check(case: Case, folder: Path) -> None:
    """Ours, dense and by way of the disk must agree; nothing is timed if not."""
    setup = Setup(case.setup.files[:1], case.setup.backbone, case.setup.in_flight)
    for share, model in case.models.items():
        (skipping,), (dense,) = looked_at(setup, model), looked_at(setup, model, dense=True)
        (disk,) = extracted(setup, model, folder)
        if not np.array_equal(skipping.used, dense.used):
            raise SystemExit(f"{case.name} at {share:.0%}: gates differ from the dense pass: nothing is timed")
        for name, scores in (("the dense pass", dense.scores), ("features on disk", disk)):
            # With several threads features may differ in their last of eleven bits.
            if not np.allclose(skipping.scores, scores, atol=2e-3):
                raise SystemExit(f"{case.name} at {share:.0%}: scores differ from {name}: nothing is timed")


def compare(case: Case, folder: Path, rows: list[Row]) -> list[tuple[float, float]]:
    """Prints the table of a case, adds its rows, and returns (share of frames, speed-up over the dense pass)."""
    any_model = next(iter(case.models.values()))
    ways: dict[Any, Callable[[], Any]] = {
        "dense": partial(looked_at, case.setup, any_model, dense=True),
        "disk": partial(extracted, case.setup, any_model, folder),
    }
    looks: dict[float, list[Prediction]] = {}
    for share, model in case.models.items():
        looks[share] = looked_at(case.setup, model)
        counts = {look.uri: int(look.used.sum()) for look in looks[share]}
        ways["ours", share] = partial(looked_at, case.setup, model)
        ways["uniform", share] = partial(subsampled, case.setup, model, counts)
    times: dict[Any, list[float]] = {way: [] for way in ways}
    shares_of_work = {share: list[float]() for share in case.models}
    for _ in range(case.rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            found = run()
            times[way].append(time.perf_counter() - started)
            if way[0] == "ours":
                work = sum(look.seconds.total for look in found)
                workers = 1 if case.setup.in_flight == 1 else CORES
                shares_of_work[way[1]].append(work / (times[way][-1] * workers))
    per_video = {way: statistics.median(values) / len(case.setup.files) for way, values in times.items()}
    return _report(case, per_video, looks, {s: statistics.median(v) for s, v in shares_of_work.items()}, rows)


def _report(
    case: Case,
    per_video: dict[Any, float],
    looks: dict[float, list[Prediction]],
    work: dict[float, float],
    rows: list[Row],
) -> list[tuple[float, float]]:
    dense, disk = per_video["dense"], per_video["disk"]
    print(f"\n{case.name}: {len(case.setup.files)} videos, seconds a video: every frame {dense:.3f}, disk {disk:.3f}")
    print("  share    ours  uniform  times dense  of ideal  of uniform  wanted decoded converted encoded  overhead")
    _add(rows, f"{case.name}/dense-of-disk", dense, disk, disk / dense, 1.0)
    points = []
    for share, predictions in looks.items():
        cost = sum((look.cost for look in predictions[1:]), predictions[0].cost)
        real = cost.frames_wanted / cost.frames_total
        ours, uniform = per_video["ours", share], per_video["uniform", share]
        speed_up, overhead = dense / ours, 1 - work[share]
        print(
            f"  {real:5.1%} {ours:7.3f} {uniform:8.3f} {speed_up:12.2f} {speed_up * real:9.2f} {uniform / ours:11.2f} "
            f"{_counts(cost, len(predictions))} {overhead:9.1%}",
            flush=True,
        )
        name = f"{case.name}/{share}"
        decisive = share == 0.1 and "resnet50" in case.name
        _add(rows, f"{name}/dense", ours, dense, speed_up * real, IDEAL_TARGET if decisive else None)
        _add(rows, f"{name}/uniform", ours, uniform, uniform / ours, UNIFORM_TARGET)
        _add(rows, f"{name}/overhead", overhead, MAX_OVERHEAD, MAX_OVERHEAD / max(overhead, 1e-4), 1.0)
        points.append((real, speed_up))
    return points


def _counts(cost: Cost, videos: int) -> str:
    counts = (cost.frames_wanted, cost.frames_decoded, cost.frames_converted, cost.frames_encoded)
    return " ".join(f"{(count or 0) / videos:{width}.1f}" for count, width in zip(counts, (7, 7, 9, 7), strict=True))


def _add(rows: list[Row], name: str, ours: float, peer: float, ratio: float, target: float | None) -> None:
    rows.append(Row(f"closed-loop/{name}", "s/video", ours, peer, ratio, target, machine()))
    if target is not None and ratio < target:
        print(f"    missed: {name} {ratio:.2f} of {target:.2f}")


def speed_up_figure(lines: dict[str, list[tuple[float, float]]]) -> Figure:
    """Speed-up over the dense pass against the share of frames: a panel per backbone, a line per key distance."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, points in lines.items():
        clips, label, in_flight = name.rsplit("-", 2)
        if in_flight == "1":
            panels.setdefault(label, {})[clips] = points
    figure = Figure(figsize=(4.5 * len(panels), 4), dpi=150, layout="constrained")
    for place, (label, by_clips) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, points in by_clips.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        ends = np.array([0.03, 1])
        axes.plot(ends, 1 / ends, color="0.6", linestyle="--", label="ideal: 1 / share")
        axes.axhline(1, color="0.8", linewidth=1)
        axes.set(xscale="log", yscale="log", title=label, xlabel="share of the frames looked at")
        axes.set(ylabel="times as fast as looking at every frame")
        axes.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yticks([1, 2, 5, 10, 20, 30], ["1", "2", "5", "10", "20", "30"])
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
