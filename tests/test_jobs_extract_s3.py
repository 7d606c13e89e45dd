"""Videos, manifest and features on an S3 server: the commands as a user would give them, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features import store
from features.backbones import load_backbone
from features.extraction import extract_video
from features.reader import FeatureSet
from pipeline.sampling import Sampling
from videos import write_video

if TYPE_CHECKING:
    from s3 import S3Folder

pytest_plugins = ("s3",)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Ray's workers take the credentials from the environment of the cluster, so it must be a cluster of their own."""
    process = [sys.executable, "-m", "jobs.cli", *words]
    return subprocess.run(process, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=180)


def test_an_extraction_from_s3_to_s3_survives_a_rerun_with_a_changed_video(s3: "S3Folder", tmp_path: Path) -> None:
    for number in range(4):
        s3.write(
            f"clips/thing/{number}.mp4",
            write_video(tmp_path / f"{number}.mp4", num_frames=20 + number, fps=10).read_bytes(),
        )
    s3.write("clips/thing/broken.mp4", b"not a video")
    manifest, features = s3.join("m.parquet"), s3.join("features")
    done = command("manifest", "folder", s3.join("clips"), "--output", manifest)
    assert done.returncode == 0, done.stderr
    words = ["extract", "--manifest", manifest, "--output", features, "--backbone", "random:0", "--json"]
    done = command(*words)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["finished"] == 4
    s3.write("clips/thing/0.mp4", write_video(tmp_path / "0.mp4", num_frames=9, fps=10).read_bytes())
    done = command(*words)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["this_run"]["finished"] == 1
    (failure,) = store.failures(features)
    assert failure["video_id"] == "thing/broken"
    assert s3.uri.partition("?")[0] in failure["reason"]
    backbone = load_backbone("random:0")
    for sequence in FeatureSet(features).load([f"thing/{number}" for number in range(4)]):
        local = str(tmp_path / f"{sequence.video_id.partition('/')[2]}.mp4")
        parts = [values for _, values in extract_video(local, backbone=backbone, sampling=Sampling())]
        np.testing.assert_array_equal(sequence.features, np.concatenate(parts))
