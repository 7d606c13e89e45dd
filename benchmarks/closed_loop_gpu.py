"""Many videos in flight before one GPU, without the decoder's share: part of `benchmarks.gpu`.

Frames lie in memory, so what is measured is how the scheduler keeps the device at work. The limit is the backbone's own
rate from host memory, which `benchmarks.backbone` prints.
"""

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.closed_loop_ways import CORES, fixed_share
from benchmarks.timing import Row
from skipreel.features.backbones.loading import load_backbone
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.scheduler import Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.models import Cost
from skipreel.pipeline.video import Frame, VideoDecoder
from skipreel.pipeline.video.sampling import Sampling

FRAME = (480, 854, 3)
SHARES = (1.0, 0.25, 0.1)
# Of the time, that the device is given work; of the ideal, 1 / share times the dense pass.
BUSY_TARGET, IDEAL_TARGET = 0.9, 0.8


class Remembered(VideoDecoder):
    """Frames of noise, of which there are eight; the URI says how many the video has."""

    frames: Sequence[Frame] = ()

    def __init__(self, uri: str) -> None:
        count = int(uri.rpartition("/")[2])
        self.pts_seconds = np.arange(count) / 6
        self.duration_s = count / 6
        self._num_read = 0

    @property
    def num_decoded(self) -> int:
        return self._num_read

    def get_frame_at(self, index: int) -> Frame:
        self._num_read += 1
        return self.frames[index % len(self.frames)]

    def close(self) -> None:
        pass


def compare(
    name: str, device: str, *, rounds: int, label: str, videos: int = 512, length: int = 60, in_flight: int = 256
) -> list[Row]:
    """Prints and returns, by share of looks, seconds a video and the share of the time that the device works.

    SystemExit where skipping gives other gates or scores than the dense pass.
    """
    rng = np.random.default_rng(0)
    Remembered.frames = list(rng.integers(0, 256, (8, *FRAME), np.uint8))
    backbone = load_backbone(name, device=device)
    requests = [Request(f"{number}/{length}", f"{number}/{length}") for number in range(videos)]
    rows = []
    for share in SHARES:
        model = fixed_share(backbone, share, Sampling(6.0))
        found: dict[bool, list[Prediction]] = {}
        times: dict[bool, list[float]] = {False: [], True: []}
        for number in range(1 + rounds):
            for dense in (True, False):
                started = time.perf_counter()
                settings = SchedulerSettings(dense, in_flight, math.inf, f"{__name__}:Remembered")
                with Scheduler(model, backbone, settings, num_workers=CORES) as scheduler:
                    outcomes = list(scheduler.run(requests))
                if number:  # the first round warms up
                    times[dense].append(time.perf_counter() - started)
                outcomes.sort(key=lambda outcome: outcome.request.key)
                found[dense] = [outcome.prediction for outcome in outcomes if outcome.prediction is not None]
        _check(found[True], found[False])
        seconds, dense_s = statistics.median(times[False]), statistics.median(times[True])
        busy = sum(look.seconds.encode for look in found[False]) / times[False][-1]
        cost = sum((look.cost for look in found[False][1:]), start=found[False][0].cost)
        print(_line(name, cost, seconds, dense_s, busy), flush=True)
        key = f"gpu/{label}/closed-loop/{share}"
        of_ideal = dense_s / seconds * cost.frames_wanted / cost.frames_total
        rows.append(Row(f"{key}/dense", "s", seconds, dense_s, of_ideal, IDEAL_TARGET if share == 0.1 else None, label))
        rows.append(Row(f"{key}/busy", "share", busy, 1.0, busy, BUSY_TARGET, label))
    return rows


def _check(dense: list[Prediction], skipping: list[Prediction]) -> None:
    for one, other in zip(dense, skipping, strict=True):
        # A GPU rounds by the size of a batch; features keep eleven bits.
        if not np.array_equal(one.used, other.used) or not np.allclose(one.scores, other.scores, atol=5e-3):
            raise SystemExit(f"{one.uri}: skipping differs from the dense pass: nothing is timed")


def _line(name: str, cost: Cost, seconds: float, dense_s: float, busy: float) -> str:
    share = cost.frames_wanted / cost.frames_total
    return (
        f"closed loop, {name}: {share:.0%} of the frames, {cost.frames_wanted / seconds:.0f} looks/s, "
        f"{dense_s / seconds:.2f} times the dense pass ({dense_s / seconds * share:.2f} of the ideal), "
        f"device at work {busy:.0%} of the time"
    )
