"""Compares the decoder's choice of seeks with the cheapest choice: `python -m benchmarks.decode_plan`.

The wanted frames are read one by one, as in the closed loop. The best choice is found by measuring both ways to each
frame, decoding on and a seek, and taking the cheaper; these costs add up, since both ways leave the decoder in the same
state. `--fit` measures the constants of `pipeline/video/pyav/seek_cost.py` instead. All times are CPU seconds without
opening the file.
"""

import csv
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.clips import write_clip
from benchmarks.timing import Row, machine, write_json
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder
from skipreel.pipeline.video.pyav.frame_index import KeyFrame
from skipreel.pipeline.video.pyav.seek_cost import Costs, Wanted
from skipreel.pipeline.video.sampling import Sampling

SIZES = ((320, 240), (854, 480), (1280, 720), (1920, 1080))
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)
FIGHT = Path(__file__).parents[2] / "shared" / "data" / "fight"
TARGET = 1 / 1.2


@dataclass(frozen=True)
class Settings:
    """rounds: repetitions of each way. quick: one short clip, under a minute. fit: print the constants of the plan."""

    rounds: int = 5
    quick: bool = False
    fit: bool = False
    json: Path | None = None


class Measured(PyAVDecoder):
    """Measures each read; `always_seek` forces one way wherever both are possible."""

    def __init__(self, uri: str, *, always_seek: bool | None = None) -> None:
        super().__init__(uri)
        self._always_seek = always_seek

    def _seek_pays(self, key: KeyFrame | None) -> bool:
        if self._always_seek is None or key is None or key.place < self._fed:
            return super()._seek_pays(key)
        return self._always_seek

    def cost(self, index: int) -> float:
        """CPU seconds to read a frame."""
        start = time.process_time()
        self.get_frame_at(index)
        return time.process_time() - start


def samplings(grid: Sequence[int], shares: Sequence[float]) -> Iterator[tuple[str, list[int]]]:
    """Yield a name and the frames for each share of the grid, with even and with random gaps."""
    for share in shares:
        count = max(1, round(share * len(grid)))
        even = np.linspace(0, len(grid) - 1, count).astype(int)
        yield f"{share:.0%}/even", [grid[place] for place in even]
        if share < 1:
            yield f"{share:.0%}/random", sorted(random.Random(0).sample(grid, count))


def reads(path: Path, wanted: Sequence[int], grid: Sequence[int], *, always_seek: bool | None) -> list[float]:
    """CPU seconds of each read."""
    with Measured(str(path), always_seek=always_seek) as video:
        video.set_candidates(grid)
        return [video.cost(index) for index in wanted]


def compare(name: str, paths: Sequence[Path], rounds: int, shares: Sequence[float]) -> list[Row]:
    """Print and return the rows of some clips together."""
    grids = {path: _grid(path) for path in paths}
    rows = []
    for sampling in [label for label, _ in samplings(range(100), shares)]:
        chosen = {path: dict(samplings(grid, shares))[sampling] for path, grid in grids.items()}
        ours = np.zeros(rounds)
        best = 0.0
        for path, wanted in chosen.items():
            ways: dict[bool | None, list[list[float]]] = {None: [], True: [], False: []}
            for _ in range(rounds):
                for way, times in ways.items():
                    times.append(reads(path, wanted, grids[path], always_seek=way))
            ours += np.sum(ways[None], axis=1)
            best += np.minimum(*(np.median(ways[way], axis=0) for way in (True, False))).sum()
        decoded, converted, known = np.sum([_frames(p, frames, grids[p]) for p, frames in chosen.items()], axis=0)
        middle = statistics.median(ours)
        low, high = best / ours.max(), best / ours.min()
        missed = " missed" if best / middle < TARGET else ""
        count = sum(map(len, chosen.values()))
        print(
            f"| {name} | {sampling} | {count} | {decoded} | {known} | {converted} | {1e3 * middle:.1f} "
            f"| {1e3 * best:.1f} | {best / middle:.2f} ({low:.2f}–{high:.2f}){missed} |",
            flush=True,
        )
        label = f"decode-plan/{name}/{sampling}"
        rows.append(Row(label, "s", middle, best, best / middle, TARGET, machine()))
    return rows


def _grid(path: Path) -> list[int]:
    with PyAVDecoder(str(path)) as video:
        grid: list[int] = Sampling(rate_hz=6.0).select(video.pts_seconds).tolist()
    return grid


def _frames(path: Path, wanted: Sequence[int], grid: Sequence[int]) -> tuple[int, int, int]:
    """Frames decoded and converted one by one, and frames decoded if all wanted ones are known in advance."""
    with PyAVDecoder(str(path)) as video, PyAVDecoder(str(path)) as ahead:
        video.set_candidates(grid)
        for index, picture, known in zip(
            wanted, map(video.get_frame_at, wanted), ahead.iter_frames_at(wanted), strict=True
        ):
            if not np.array_equal(picture, known):
                raise SystemExit(f"{path.name}: frame {index} differs when it is read alone: nothing is timed")
        return video.num_decoded, video.num_converted, ahead.num_decoded


def fit(folder: Path, *, quick: bool) -> tuple[Costs, Costs]:
    """Fit the costs of packets and seeks: the fixed part and the part per million pixels."""
    sizes = SIZES[:2] if quick else SIZES
    rows = [_costs(write_clip(folder / f"{size[0]}.mp4", size=size, seconds=10, key_distance=48)) for size in sizes]
    megapixels = np.array([width * height / 1e6 for width, height in sizes])
    both = np.stack([np.ones(len(sizes)), megapixels], 1)
    table = np.array(rows)
    # Weighted by relative error; otherwise the costs of large pictures would dominate.
    lines = [np.linalg.lstsq(both / column[:, None], np.ones(len(sizes)))[0] for column in table.T]
    fixed, sloped = (Costs(*(float(line[part]) for line in lines)) for part in (0, 1))
    return fixed, sloped


def _costs(path: Path) -> list[float]:
    """Median seconds of a seek, mean seconds of a key frame, of another decoded frame and of a dropped frame."""
    seeks: list[float] = []
    kinds: dict[str, list[float]] = {"key": [], "frame": [], "dropped": []}
    with PyAVDecoder(str(path)) as video:
        index = video._index
        for wanted in (Wanted((), len(index.pts_seconds)), Wanted(range(len(index.pts_seconds)), 0)):
            for key in index.keys * 5:
                start = time.process_time()
                video._restart(key)
                packet = next(video._packets)
                seeks.append(time.process_time() - start)
                video._wanted = wanted
                for place in range(key.place, min(key.place + 24, len(index.order))):
                    frame = index.order[place]
                    dropped = frame in index.droppable and wanted.may_drop(frame)
                    start = time.process_time()
                    video._feed(packet)
                    spent = time.process_time() - start
                    kinds["key" if place == key.place else "dropped" if dropped else "frame"].append(spent)
                    packet = next(video._packets)
    return [statistics.median(seeks), *(statistics.mean(times) for times in kinds.values())]


def main(settings: Settings) -> None:
    rows: list[Row] = []
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        if settings.fit:
            fixed, sloped = fit(Path(folder), quick=settings.quick)
            print(f"FIXED = {fixed}\nPER_MEGAPIXEL = {sloped}")
            return
        print(
            "| clip | share of 6 fps | wanted | decoded | … all known ahead | converted | ms | best ms | best / ours |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        rounds, shares = (2, SHARES[::2]) if settings.quick else (settings.rounds, SHARES)
        for distance in (12,) if settings.quick else (12, 48, 250):
            path = Path(folder, f"{distance}.mp4")
            write_clip(path, seconds=6 if settings.quick else 30, key_distance=distance)
            rows += compare(f"480p/{distance}", [path], rounds, shares)
        if FIGHT.exists() and not settings.quick:
            with (FIGHT / "clips.csv").open() as file:
                names = [row["file"] for row in csv.DictReader(file)]
            rows += compare("fight", [FIGHT / name for name in names[::20]], rounds, shares)
    if settings.json:
        write_json(settings.json, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
