"""The writing process dies before each of its steps on the disk in turn; a rerun must end as if it had not."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.extraction.planner import Skipped, plan
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.steps import decode
from skipreel.features.extraction.tracker import VideoTracker
from skipreel.features.extraction.work import FrameSettings, VideoOutcome
from skipreel.features.feature_set.card import CARD, create_feature_set, read_card
from skipreel.features.feature_set.ledger import read_failures, read_state
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.pipeline.video.sampling import Sampling
from tests.support.feature_sets import spec
from tests.support.videos import write_video


class _Killed(BaseException):
    """Like SIGKILL: no cleanup reaches the disk."""


class _Disk:
    """Lets ``steps`` steps through and none after them."""

    def __init__(self, monkeypatch, steps: int) -> None:
        self.left = steps
        for name in ("replace", "unlink", "fsync"):
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, function):
        def step(*arguments, **options):
            if self.left == 0:
                raise _Killed
            self.left -= 1
            return function(*arguments, **options)

        return step


def extract(folder: Path) -> None:
    """An extraction without processes: the frame's number is its feature."""
    output = str(folder / "features")
    names = ["new", "changed", "mended", "broken", "kept"]
    create_feature_set(output, spec(3), about={})
    batch = pa.record_batch({"video_id": names, "uri": [str(folder / f"{name}.mp4") for name in names]})
    planned = plan([batch], read_state(output), retry_failed=False, skipped=Skipped())
    writer = ShardWriter(output, shard_bytes=100)
    tracker = VideoTracker(planned, writer=writer, progress=Progress(1, 1), on_failure=lambda _: None)
    while not tracker.is_done:
        tracker.plan_paused = False
        for item in tracker.more([]):
            for piece in decode(item.job, FrameSettings(Sampling(rate_hz=10), 4)):
                if isinstance(piece, VideoOutcome):
                    tracker.end(piece)
                else:
                    chunk, _ = piece
                    tracker.receive(chunk, np.repeat(chunk.frame_index[:, None], 3, axis=1).astype(np.float16))
    writer.flush()


def content(folder: Path) -> tuple[list, list]:
    shards = (folder / "features" / "shards").glob("*.parquet")
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    found = sorted((row["video_id"], row["source_digest"], row["features"]) for row in rows)
    return found, [(row["video_id"], row["reason"]) for row in read_failures(str(folder / "features"))]


def before_and_after(folder: Path) -> None:
    """A set with features and failures whose files then change."""
    write_video(folder / "changed.mp4", num_frames=5, fps=10)
    write_video(folder / "kept.mp4", num_frames=6, fps=10)
    for name in ("new", "mended", "broken"):
        (folder / f"{name}.mp4").write_text("not a video")
    extract(folder)
    for name, length in (("new", 7), ("changed", 8), ("mended", 9)):
        write_video(folder / f"{name}.mp4", num_frames=length, fps=10)
        os.utime(folder / f"{name}.mp4", (length, length))
    (folder / "broken.mp4").write_text("still not a video")


def test_whatever_step_is_the_last_a_rerun_completes_the_set(tmp_path, monkeypatch):
    (tmp_path / "undisturbed").mkdir()
    before_and_after(tmp_path / "undisturbed")
    extract(tmp_path / "undisturbed")
    rows, failures = content(tmp_path / "undisturbed")
    assert [row[0] for row in rows] == ["changed", "kept", "mended", "new"]
    assert [failure[0] for failure in failures] == ["broken"]
    steps = 0
    while True:
        folder = tmp_path / f"{steps}"
        folder.mkdir()
        before_and_after(folder)
        try:
            with monkeypatch.context() as patched:
                _Disk(patched, steps)
                extract(folder)
            break  # nothing was left to forbid
        except _Killed:
            seen, failed = content(folder)
            assert len({row[0] for row in seen} | {name for name, _ in failed}) == len(seen) + len(failed)
        extract(folder)
        again = content(folder)
        assert again[0] == rows
        assert [name for name, _ in again[1]] == ["broken"]
        assert not list((folder / "features").rglob("*.tmp"))
        steps += 1
    assert steps > 10


@pytest.mark.parametrize("steps", [0, 1])
def test_a_card_is_there_whole_or_not_at_all(tmp_path, monkeypatch, steps):
    with monkeypatch.context() as patched:
        _Disk(patched, steps)
        with pytest.raises(_Killed):
            create_feature_set(str(tmp_path), spec(), about={})
    assert not (tmp_path / CARD).exists()
    create_feature_set(str(tmp_path), spec(), about={})
    assert read_card(str(tmp_path))["id"] == spec().feature_set_id
