import os

import numpy as np
import pyarrow as pa
import pytest

from skipreel.features.extraction.planner import Skipped, plan
from skipreel.features.feature_set.ledger import read_state, write_failures
from skipreel.features.feature_set.schema import Failure, Segment, Source, shard_table
from skipreel.features.feature_set.shard_file import write_shard
from skipreel.pipeline import storage


@pytest.fixture
def folder(tmp_path):
    for name in ("new", "done", "gone", "changed", "failed", "mended"):
        (tmp_path / f"{name}.mp4").write_text(name)
    return tmp_path


def planned(folder, *, retry_failed: bool = False):
    names = ["new", "done", "gone", "changed", "failed", "mended", "never"]
    uris = {name: str(folder / f"{name}.mp4") for name in names}
    file_stats = dict(zip(names, storage.file_stats(list(uris.values())), strict=True))
    features = str(folder / "features")
    segment = Segment(0, np.zeros(1, np.int32), np.zeros(1), np.zeros((1, 2), np.float16))
    for name in ("done", "gone", "changed"):
        write_shard(features, [shard_table(name, Source("d-" + name, file_stats[name]), [segment])], [name])
    failures = [Failure(name, uris[name], "bad", file_stats[name]) for name in ("failed", "mended", "never")]
    write_failures(features, failures)
    (folder / "gone.mp4").unlink()
    for name in ("changed", "mended"):
        os.utime(uris[name], (1, 1))
    skipped = Skipped()
    batch = pa.record_batch({"video_id": names, "uri": list(uris.values())})
    found = list(plan([batch], read_state(features), retry_failed=retry_failed, skipped=skipped))
    assert found[-1] is None  # after the only batch
    return {item.job.video_id: item for item in found[:-1]}, skipped


def test_new_and_changed_videos_are_planned_and_nothing_else(folder):
    found, skipped = planned(folder)
    assert set(found) == {"new", "changed", "mended"}
    assert (skipped.finished, skipped.failed) == (2, 2)
    assert found["new"].replaces == ""
    assert found["changed"].job.known_digest == "d-changed"
    assert found["changed"].replaces.startswith("shards/")
    assert found["mended"].job.known_digest == ""
    assert found["mended"].replaces.startswith("failures/")
    assert found["new"].num_bytes == 3


def test_failed_videos_are_planned_when_asked_for(folder):
    found, skipped = planned(folder, retry_failed=True)
    assert set(found) == {"new", "changed", "mended", "failed", "never"}
    assert (skipped.finished, skipped.failed) == (2, 0)
    assert found["never"].num_bytes == 0
