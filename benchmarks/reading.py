"""Speed of padded batches from shards, against merely reading the bytes: `python -m benchmarks.reading`.

First it checks that all ways give the same features. Then it times them in turn, in gigabytes of features per second
with all files in the page cache.

Letters: B batch, T frames, D features.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.timing import Row, machine, paired, ratio, write_json
from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.stream import stream_features
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Segment, Source, shard_table
from skipreel.features.feature_set.shard_file import write_shard
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline.storage import FileStat
from skipreel.pipeline.video.sampling import Sampling

SHARD_BYTES: Final = 64 << 20
LENGTHS: Final = (20, 400)
PLAN: Final = BatchPlan(batch_size=16, seed=0)
TARGETS: Final[dict[str, float | None]] = {
    "read, new memory": 0.5,
    "read, same memory": None,
    "np.load and pad": 1.0,
    "Arrow": 1.0,
}


@dataclass(frozen=True)
class Settings:
    """dims: lengths D of a feature vector. megabytes: features of each set. quick: a small set, few rounds."""

    dims: tuple[int, ...] = (2048, 768)
    megabytes: int = 200
    rounds: int = 7
    quick: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Corpus:
    """The same videos as a feature set and as one .npy file each."""

    folder: Path
    videos: dict[str, NDArray[np.float16]]

    @property
    def num_bytes(self) -> int:
        return sum(features.nbytes for features in self.videos.values())

    @property
    def shards(self) -> list[Path]:
        return sorted((self.folder / "set" / "shards").iterdir())

    def npy(self, video_id: str) -> Path:
        return self.folder / f"{video_id}.npy"


def make_corpus(folder: Path, *, dim: int, megabytes: int) -> Corpus:
    """Write videos of 20 to 400 frames with noise as features; the files are then in the page cache."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=1 << 21).astype(np.float16)
    corpus = Corpus(folder, {})
    uri = str(folder / "set")
    create_feature_set(uri, FeatureSpec("noise", "0" * 64, {}, Sampling(6.0), dim), about={})
    waiting: list[str] = []
    while corpus.num_bytes < megabytes * 1e6:
        video_id, length = f"v{len(corpus.videos):05d}", int(rng.integers(*LENGTHS))
        start = int(rng.integers(len(noise) // 2))
        corpus.videos[video_id] = np.resize(noise[start:], (length, dim))
        np.save(corpus.npy(video_id), corpus.videos[video_id])
        waiting.append(video_id)
        if sum(corpus.videos[name].nbytes for name in waiting) >= SHARD_BYTES:
            write_noise(uri, corpus, waiting)
            waiting = []
    if waiting:
        write_noise(uri, corpus, waiting)
    return corpus


def write_noise(uri: str, corpus: Corpus, video_ids: list[str]) -> None:
    source = Source("0" * 64, FileStat(0, 0))
    tables = []
    for video_id in video_ids:
        features = corpus.videos[video_id]
        index = np.arange(len(features), dtype=np.int32)
        tables.append(shard_table(video_id, source, [Segment(0, index, index / 6, features)]))
    write_shard(uri, tables, video_ids)


def ours(feature_set: FeatureSet) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    for batch in stream_features(feature_set, PLAN):
        yield batch.video_ids, batch.features


def from_npy(corpus: Corpus) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Make the same batches from one .npy file per video."""
    names = np.array(list(corpus.videos))
    lengths = np.array([len(features) for features in corpus.videos.values()])
    dim = next(iter(corpus.videos.values())).shape[1]
    for batch in PLAN.batches(lengths):
        padded = np.zeros((len(batch), lengths[batch].max(), dim), np.float16)
        for row, video_id in enumerate(names[batch]):
            features = np.load(corpus.npy(video_id))
            padded[row, : len(features)] = features
        yield tuple(names[batch]), torch.from_numpy(padded)


def check_equal(corpus: Corpus, feature_set: FeatureSet) -> None:
    """Check that all ways give all videos, bit for bit, padded with zeros."""
    for batches in (ours(feature_set), from_npy(corpus)):
        seen = set()
        for video_ids, features in batches:
            for video_id, row in zip(video_ids, features, strict=True):
                video = torch.from_numpy(corpus.videos[video_id])
                if not torch.equal(row[: len(video)], video) or row[len(video) :].any():
                    raise SystemExit(f"{video_id} differs: nothing is timed")
                seen.add(video_id)
        if seen != set(corpus.videos):
            raise SystemExit("videos are missing: nothing is timed")
    for row in (row for shard in corpus.shards for row in pq.read_table(shard).to_batches()):
        for name, values in zip(row["video_id"].to_pylist(), row["features"], strict=True):
            if not np.array_equal(values.values.to_numpy(), corpus.videos[name].reshape(-1)):
                raise SystemExit(f"{name} as Arrow decodes it differs: nothing is timed")


def ways(corpus: Corpus, feature_set: FeatureSet) -> dict[str, Callable[[], object]]:
    shards = corpus.shards
    buffer = bytearray(max(shard.stat().st_size for shard in shards))

    def exhaust(batches: Iterator[object]) -> None:
        for _ in batches:
            pass

    def read_into() -> None:
        for shard in shards:
            with shard.open("rb", buffering=0) as file:
                file.readinto(buffer)

    def decode() -> None:
        for shard in shards:
            pq.read_table(shard, columns=["features"])

    return {
        "ours": lambda: exhaust(ours(feature_set)),
        "read, new memory": lambda: [len(shard.read_bytes()) for shard in shards],
        "read, same memory": read_into,
        "np.load and pad": lambda: exhaust(from_npy(corpus)),
        "Arrow": decode,
        "with times": lambda: exhaust(stream_features(feature_set, PLAN, with_times=True)),
        "as float32": lambda: exhaust(stream_features(feature_set, PLAN, dtype="float32")),
        "index": lambda: FeatureSet(feature_set.uri).index(),
    }


def measure(dim: int, settings: Settings) -> list[Row]:
    """Print the table of one set; return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), dim=dim, megabytes=80 if settings.quick else settings.megabytes)
        feature_set = FeatureSet(str(Path(folder) / "set"))
        check_equal(corpus, feature_set)
        times = paired(ways(corpus, feature_set), rounds=2 if settings.quick else settings.rounds)
    speed = {name: corpus.num_bytes / 1e9 / statistics.median(seconds) for name, seconds in times.items()}
    print(f"\nD = {dim}: {len(corpus.videos)} videos, {corpus.num_bytes / 1e6:.0f} MB, batches of {PLAN.batch_size}")
    print(f"{'':24}{'GB/s':>8}   ours is … times as fast (smallest – largest of the rounds)")
    rows = []
    for name in times:
        against = ""
        if name in TARGETS:
            median, low, high = ratio(times[name], times["ours"])
            against = f"   {median:5.2f} ({low:.2f} – {high:.2f})"
            label = name.replace(",", "").replace(" ", "_")
            rows.append(
                Row(f"reading/{dim}/{label}", "GB/s", speed["ours"], speed[name], median, TARGETS[name], machine())
            )
        if name == "index":
            print(f"{name:24}{1000 * statistics.median(times[name]):5.0f} ms")
        else:
            print(f"{name:24}{speed[name]:8.2f}{against}")
    return rows


def main(settings: Settings) -> None:
    """Run all sizes in turn."""
    print(machine())
    rows = [row for dim in settings.dims for row in measure(dim, settings)]
    print(
        "\nours, np.load: the same padded batches, float16, in the same order; read: open and read() each shard, into\n"
        "a new bytes object or always the same buffer; Arrow: decode the column; index: what is read before batches."
    )
    if settings.json:
        write_json(settings.json, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
