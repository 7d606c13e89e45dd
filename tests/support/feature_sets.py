"""Small feature sets with known numbers, for tests that need no video."""

from pathlib import Path

import numpy as np

from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.schema import Segment, Source, shard_table
from skipreel.features.feature_set.shard_file import write_shard
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry, write_manifest
from skipreel.pipeline.storage import FileStat
from skipreel.pipeline.video.sampling import Sampling


def spec(dim: int = 5, *, weights: str = "ab" * 32) -> FeatureSpec:
    """The spec of an imaginary backbone."""
    return FeatureSpec("random:0", weights, {"resize": [4, 4]}, Sampling(rate_hz=2.0), dim)


def write_sequence(
    uri: str, video_id: str, features: np.ndarray, *, segment_frames: int = 1024, start_s: float = 0.0
) -> None:
    """Store the features (T, D) of a video as a shard of its own; frames are half a second apart."""
    segments = [
        Segment(
            number,
            np.arange(start, min(start + segment_frames, len(features)), dtype=np.int32),
            np.arange(start, min(start + segment_frames, len(features))) / 2,
            features[start : start + segment_frames].astype(np.float16),
        )
        for number, start in enumerate(range(0, len(features), segment_frames))
    ]
    source = Source("digest of " + video_id, FileStat(1000, 1_700_000_000_000_000), start_s)
    write_shard(uri, [shard_table(video_id, source, segments)], [video_id])


def two_class_corpus(folder: Path, *, num_train: int = 12, num_test: int = 6, dim: int = 5) -> tuple[str, str]:
    """Write a manifest and its feature set: a video has one label, which lasts while its first feature is high.

    Returns:
        URIs of the manifest and of the feature set.
    """
    manifest, features = str(folder / "manifest.parquet"), str(folder / "features")
    create_feature_set(features, spec(dim), about={"backbone": "numbers"})
    rng = np.random.default_rng(0)
    entries = []
    for number in range(num_train + num_test):
        length = int(rng.integers(8, 14))
        start, end = sorted(rng.choice(length, 2, replace=False))
        values = rng.normal(size=(length, dim)) * 0.3
        values[start : end + 1, 0] += 2
        video_id = f"video{number:02d}"
        write_sequence(features, video_id, values)
        split = "train" if number < num_train else "test"
        label = Label(number % 2, float(start) / 2, float(end) / 2)
        entries.append(VideoEntry(video_id, f"{video_id}.mp4", split, length / 2, (label,)))
    write_manifest(Manifest(tuple(entries), ("low", "high")), manifest)
    return manifest, features
