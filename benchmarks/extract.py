"""Speed and memory of extraction, against its limits and alternatives: `python -m benchmarks.extract`.

First it checks that ours and the plain loop store the same features. Then it times in turn: the backbone alone on ready
tensors and the decoder alone (the two limits, a process per core), a plain loop that decodes, encodes and saves one
video after another, Ray Data's read_videos with map_batches, and `skipreel extract`. Last, it measures time per video
by number of videos, and memory by number and length.
"""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro

from benchmarks.backbone import write_resnet50
from benchmarks.clips import repeat, write_clip
from benchmarks.memory import MEMORY_COLUMNS, PeakMemory
from benchmarks.timing import Row, machine, write_json
from skipreel.features.backbones.backbone import Backbone
from skipreel.features.backbones.loading import load_backbone
from skipreel.features.extraction.actors import BackboneSettings
from skipreel.features.extraction.planner import Skipped, plan
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.ray_executor import Extraction, PoolConfig
from skipreel.features.extraction.work import BLOCK_BYTES, CHUNK_BYTES, FrameSettings
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.ledger import read_state
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.sampling import Sampling

DATA = Path(__file__).parents[2] / "shared" / "data"
MOBILENET = DATA / "weights" / "mobilenet_v1_0.75_224"
THUMBNAIL = "benchmarks.backbone:thumbnail"
CORES = os.cpu_count() or 1
TARGET = 0.9
# Two blocks of frames per decoder and three per encoder, each at most a chunk beyond full; and 500 MB per process for
# libraries, one shard being collected, the index of a long video and, in the encoder, a small backbone.
MEMORY_BOUND = 5 * CORES * (BLOCK_BYTES + CHUNK_BYTES) + 3 * (500 << 20)


@dataclass(frozen=True)
class Settings:
    """rounds: of all contenders. quick: one round of short clips, under a minute. fight: the folder of real clips."""

    rounds: int = 3
    quick: bool = False
    fight: Path = DATA / "fight"
    json: Path | None = None


@dataclass(frozen=True)
class Measured:
    """One contender's run over all clips: encoded frames, seconds without start-up, and seconds of start-up."""

    frames: int
    seconds: float
    startup: float

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def main(settings: Settings) -> None:
    print(machine())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for case in cases(settings, folder):
            rows += compare(case, settings, folder / "out")
        rows += flat(folder, counts=(20, 100) if settings.quick else (100, 1000, 10000))
        rows += length(folder, minutes=(1, 3) if settings.quick else (2, 120))
    if settings.json:
        write_json(settings.json, rows)


@dataclass(frozen=True)
class Case:
    """Clips, a backbone and a sampling rate; ``limit`` is the contender that our target is relative to."""

    name: str
    files: list[Path]
    backbone: str
    limit: str
    rate_hz: float = 6.0
    are_short: bool = False  # read_videos makes a block of a gigabyte of a long clip, and stalls


def cases(settings: Settings, folder: Path) -> Iterator[Case]:
    """Yield the cases; each makes its clips when it is reached."""
    seconds, copies = (4, 2) if settings.quick else (30, 6)
    resnet = write_resnet50(folder / "resnet50")
    for key_distance in (250,) if settings.quick else (12, 250):
        clips = f"480p-key{key_distance}"
        files = [
            write_clip(folder / f"{clips}-{seed}.mp4", seconds=seconds, key_distance=key_distance, seed=seed)
            for seed in range(2)
        ]
        again = [
            Path(shutil.copy(file, folder / f"{number}-{file.name}")) for file in files for number in range(1, copies)
        ]
        yield Case(f"{clips}-thumbnail-6fps", files + again, THUMBNAIL, "decoder alone")
        if key_distance == 250:
            yield Case(f"{clips}-resnet50-6fps", files, f"hf:{resnet}", "backbone alone")
            yield Case(f"{clips}-thumbnail-1fps", files + again, THUMBNAIL, "decoder alone", rate_hz=1.0)
    if settings.fight.exists() and not settings.quick:
        files = sorted(settings.fight.glob("*/*.mp4"))
        yield Case("fight-thumbnail-6fps", files, THUMBNAIL, "decoder alone", are_short=True)
        if MOBILENET.exists():
            yield Case("fight-mobilenet-6fps", files, f"hf:{MOBILENET}", "backbone alone", are_short=True)


def compare(case: Case, settings: Settings, output: Path) -> list[Row]:
    """Print and return the rows of one case; contenders other than ours and its limit run once."""
    sampling = Sampling(case.rate_hz)
    contenders: dict[str, Callable[[], Measured]] = {
        "backbone alone": lambda: backbone_alone(case.backbone, case.files[0]),
        "decoder alone": lambda: decoder_alone(case.files, sampling),
        "skipreel": lambda: ours(case, output / "set"),
        "skipreel, apart": lambda: ours(case, output / "set", num_encoders=CORES),
        "plain loop": lambda: plain_loop(case, output / "plain"),
    }
    if case.are_short:
        contenders["Ray Data, naive"] = lambda: naive_ray_data(case)
    check_equal(replace(case, files=case.files[:1]), output)
    found: dict[str, list[Measured]] = {contender: [] for contender in contenders}
    for number in range(1 if settings.quick else settings.rounds):
        for contender, run in contenders.items():
            if number == 0 or contender in (case.limit, "skipreel"):
                found[contender].append(run())
                shutil.rmtree(output, ignore_errors=True)
    print(f"\n{case.name}\n{'':18}{'frames/s':>10}{'range':>20}{'start-up, s':>13}{'skipreel is':>13}")
    mine = statistics.median(run.rate for run in found["skipreel"])
    rows = []
    for contender, runs in found.items():
        rates = sorted(run.rate for run in runs)
        middle, startup = statistics.median(rates), statistics.median(run.startup for run in runs)
        target = {case.limit: TARGET, "plain loop": 1.0}.get(contender)
        verdict = "" if target is None else f"  target {target} {'met' if mine / middle >= target else 'MISSED'}"
        span = f"{rates[0]:.1f}–{rates[-1]:.1f}"
        print(f"{contender:18}{middle:10.1f}{span:>20}{startup:13.1f}{mine / middle:13.2f}{verdict}", flush=True)
        if contender != "skipreel":
            name = f"extract/{case.name}/{contender.replace(', ', '-').replace(' ', '-')}"
            rows.append(Row(name, "frames/s", mine, middle, mine / middle, target, machine()))
    return rows


def check_equal(case: Case, output: Path) -> None:
    """Compare ours with the plain loop on one clip; exits if they differ."""
    (file,) = case.files
    plain_loop(case, output / "plain")
    ours(case, output / "set")
    (sequence,) = FeatureSet(str(output / "set")).load([file.stem])
    expected = np.load(output / "plain" / f"{file.stem}.npy")
    # The loop encodes in larger batches: float32 sums have another order, then they are rounded to float16.
    if not np.allclose(sequence.features, expected, rtol=2e-2, atol=2e-3):
        raise SystemExit(f"features of {file} differ from the plain loop's: nothing is timed")
    shutil.rmtree(output)


# One process with one thread per core: we know no faster way to use a CPU for either stage.

_loaded: dict[str, Any] = {}


def _load(name: str) -> None:
    torch.set_num_threads(1)
    _loaded["backbone"] = load_backbone(name)


def _encode_ready(file: Path, seconds: float) -> int:
    backbone: Backbone = _loaded["backbone"]
    with open_video(str(file)) as video:
        frame = video.get_frame_at(0)
    images = backbone.prepare(torch.from_numpy(np.stack([frame] * backbone.batch_size)))
    count, started = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - started < seconds:
            backbone.network(images)
            count += len(images)
    return count


def backbone_alone(name: str, file: Path, seconds: float = 5.0) -> Measured:
    """Time the forward pass on ready tensors."""
    started = time.perf_counter()
    with _pool(partial(_load, name)) as pool:
        list(pool.map(_encode_ready, [file] * CORES, [0.5] * CORES))
        startup = time.perf_counter() - started
        frames = sum(pool.map(_encode_ready, [file] * CORES, [seconds] * CORES))
    return Measured(frames, seconds, startup)


def _decode(sampling: Sampling, file: Path) -> int:
    with open_video(str(file)) as video:
        wanted = sampling.select(video.pts_seconds).tolist()
        return sum(1 for _ in video.iter_frames_at(wanted))


def decoder_alone(files: Sequence[Path], sampling: Sampling) -> Measured:
    """Time decoding the sampled frames to RGB."""
    started = time.perf_counter()
    with _pool(None) as pool:
        list(pool.map(partial(_decode, sampling), files[:CORES]))
        ready = time.perf_counter()
        frames = sum(pool.map(partial(_decode, sampling), files))
        return Measured(frames, time.perf_counter() - ready, ready - started)


def _pool(initializer: Callable[[], None] | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)


def plain_loop(case: Case, output: Path) -> Measured:
    """Time one process with torch's own threads: for each video, decode all frames, encode them, np.save."""
    started = time.perf_counter()
    backbone = load_backbone(case.backbone)
    output.mkdir(parents=True)
    ready, count = time.perf_counter(), 0
    for file in case.files:
        with open_video(str(file)) as video:
            frames = list(video.iter_frames_at(Sampling(case.rate_hz).select(video.pts_seconds).tolist()))
        batches = [frames[first : first + 32] for first in range(0, len(frames), 32)]
        np.save(output / f"{file.stem}.npy", np.concatenate([backbone.encode(batch) for batch in batches]))
        count += len(frames)
    return Measured(count, time.perf_counter() - ready, ready - started)


class _NaiveEncoder:
    def __init__(self, name: str) -> None:
        torch.set_num_threads(1)
        self._backbone = load_backbone(name)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"path": batch["path"], "features": self._backbone.encode(list(batch["frame"]))}


def naive_ray_data(case: Case) -> Measured:
    """Time Ray Data as its documentation shows it: decord reads whole videos, every 5th or 30th row is encoded."""
    import ray

    started = time.perf_counter()
    with redirect_stdout(StringIO()), ray_cluster():
        frames = ray.data.read_videos([str(file) for file in case.files], include_paths=True)
        stride = round(30 / case.rate_hz)
        sampled = frames.filter(lambda row: row["frame_index"] % stride == 0)
        encoded = sampled.map_batches(
            _NaiveEncoder,
            fn_constructor_args=(case.backbone,),
            batch_size=32,
            compute=ray.data.ActorPoolStrategy(size=CORES),
            num_cpus=0.5,
        )
        count = sum(len(batch["path"]) for batch in encoded.iter_batches(batch_size=None))
    return Measured(count, time.perf_counter() - started, 0.0)


def ours(case: Case, output: Path, *, num_encoders: int = 0) -> Measured:
    """Time `skipreel extract`: a worker per core, or ``num_encoders`` encoders and a decoder per core."""
    started = time.perf_counter()
    videos = [(file.stem, str(file)) for file in case.files]
    progress = extract(case.backbone, videos, str(output), Sampling(case.rate_hz), num_encoders=num_encoders)
    seconds = progress.working_s
    return Measured(progress.frames, seconds, time.perf_counter() - started - seconds)


def extract(
    name: str, videos: Sequence[tuple[str, str]], output: str, sampling: Sampling, *, num_encoders: int = 0
) -> Progress:
    backbone = load_backbone(name)
    create_feature_set(output, backbone.spec(sampling), about={})
    batch = pa.record_batch({"video_id": [video[0] for video in videos], "uri": [video[1] for video in videos]})
    planned = plan([batch], read_state(output), retry_failed=False, skipped=Skipped())
    with redirect_stdout(StringIO()), ray_cluster():
        extraction = Extraction(
            planned,
            writer=ShardWriter(output, shard_bytes=64 << 20),
            frames=FrameSettings(sampling, backbone.batch_size),
            backbone=BackboneSettings(name),
            pools=PoolConfig(CORES, num_encoders, cpus_per_process=0.5),
            on_failure=_refuse,
        )
        extraction.run(lambda: None)
        return extraction.progress


def _refuse(failure: object) -> None:
    raise SystemExit(f"{failure}: nothing is timed with failures")


def flat(folder: Path, counts: Sequence[int]) -> list[Row]:
    """Measure time per short video after start-up, and memory, by number of videos."""
    clip = write_clip(folder / "short.mp4", size=(160, 120), seconds=2)
    print(f"\nvideos of 2 s, 160×120\n{'number':>10}{'ms a video':>12}{MEMORY_COLUMNS}")
    costs, peaks = [], []
    for count in counts:
        videos = [(f"v{number}", str(clip)) for number in range(count)]
        with PeakMemory() as memory:
            progress = extract("random:0", videos, str(folder / f"{count}"), Sampling())
        costs.append(progress.working_s / count)
        peaks.append(memory.total)
        print(f"{count:10}{1e3 * costs[-1]:12.2f}{memory}", flush=True)
    name = f"extract/flat/{counts[0]}-to-{counts[-1]}"
    ratio = costs[0] / costs[-1]
    print(f"  {name}: {ratio:.2f}  target {TARGET} {'met' if ratio >= TARGET else 'MISSED'}")
    return [Row(name, "s/video", costs[-1], costs[0], ratio, TARGET, machine()), _bounded(name, max(peaks))]


def length(folder: Path, minutes: Sequence[int]) -> list[Row]:
    """Measure memory of one video by its length."""
    clip = write_clip(folder / "minute.mp4", size=(320, 240), seconds=60)
    print(f"\none video, 320×240\n{'minutes':>10}{'s':>12}{MEMORY_COLUMNS}")
    peaks = []
    for count in minutes:
        long = repeat(clip, folder / f"{count}-minutes.mp4", count)
        with PeakMemory() as memory:
            progress = extract("random:0", [("long", str(long))], str(folder / f"{count}-minutes"), Sampling())
        peaks.append(memory.total)
        print(f"{count:10}{progress.working_s:12.1f}{memory}", flush=True)
    return [_bounded(f"extract/{minutes[-1]}-minutes", max(peaks))]


def _bounded(name: str, peak: int) -> Row:
    ratio = MEMORY_BOUND / peak
    print(f"  {name}/memory: {peak / 1e6:.0f} of {MEMORY_BOUND / 1e6:.0f} MB {'met' if ratio >= 1 else 'MISSED'}")
    return Row(f"{name}/memory", "bytes", peak, MEMORY_BOUND, ratio, 1.0, machine())


if __name__ == "__main__":
    main(tyro.cli(Settings))
