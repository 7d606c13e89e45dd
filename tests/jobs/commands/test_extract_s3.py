"""Videos, manifest and features on an S3 server: the commands as a user would give them, on a cluster of their own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.extraction.steps import extract_video
from skipreel.features.feature_set.ledger import read_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.cli import main
from skipreel.pipeline.video.sampling import Sampling
from tests.support.videos import write_video

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)

ROOT = Path(__file__).parents[3]


# Ray's workers take the credentials from the environment of the cluster, so it must be one of their own.
COMMANDS = """
import json, sys
from skipreel.jobs.cli import main
from skipreel.jobs.runtime.ray_cluster import ray_cluster
with ray_cluster():
    for line in sys.stdin:
        print("exit code", main(json.loads(line)), flush=True)
"""


@pytest.fixture
def command(s3: "S3Folder") -> Iterator[Callable[..., tuple[dict[str, Any], int]]]:
    """Runs commands one after the other on one cluster: what each prints, and its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS], text=True, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(*words: str) -> tuple[dict[str, Any], int]:
            print(json.dumps(words), file=process.stdin, flush=True)
            printed = []
            while not (line := process.stdout.readline()).startswith("exit code"):
                assert line, "the process has ended"
                printed.append(line)
            return json.loads("".join(printed)), int(line.split()[-1])

        yield run
        process.stdin.close()


def test_an_extraction_from_s3_to_s3_survives_a_rerun_with_a_changed_video(
    s3: "S3Folder", tmp_path: Path, command: Callable[..., tuple[dict[str, Any], int]]
) -> None:
    for number in range(4):
        s3.write(
            f"clips/thing/{number}.mp4",
            write_video(tmp_path / f"{number}.mp4", num_frames=20 + number, fps=10).read_bytes(),
        )
    s3.write("clips/thing/broken.mp4", b"not a video")
    manifest, features = s3.join("m.parquet"), s3.join("features")
    assert main(["manifest", "folder", s3.join("clips"), "--output", manifest]) == 0
    words = ["extract", "--manifest", manifest, "--output", features, "--backbone", "random:0", "--json"]
    summary, code = command(*words)
    assert (summary["finished"], code) == (4, 3)
    s3.write("clips/thing/0.mp4", write_video(tmp_path / "0.mp4", num_frames=9, fps=10).read_bytes())
    summary, code = command(*words)
    assert (summary["this_run"]["finished"], code) == (1, 3)
    (failure,) = read_failures(features)
    assert failure["video_id"] == "thing/broken"
    assert s3.uri.partition("?")[0] in failure["reason"]
    backbone = load_backbone("random:0")
    for sequence in FeatureSet(features).load([f"thing/{number}" for number in range(4)]):
        local = str(tmp_path / f"{sequence.video_id.partition('/')[2]}.mp4")
        parts = [values for _, values in extract_video(local, backbone=backbone, sampling=Sampling())]
        np.testing.assert_array_equal(sequence.features, np.concatenate(parts))
