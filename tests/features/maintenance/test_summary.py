from pathlib import Path

import numpy as np
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import create_feature_set, read_card
from skipreel.features.feature_set.ledger import write_failures
from skipreel.features.feature_set.schema import Failure
from skipreel.features.maintenance.summary import FailureGroup, summarise
from tests.support.feature_sets import spec, write_sequence


@pytest.fixture
def uri(tmp_path: Path) -> str:
    create_feature_set(str(tmp_path), spec(), about={"backbone": "numbers"})
    return str(tmp_path)


def test_counts_and_sizes(uri):
    write_sequence(uri, "a", np.zeros((7201, 5)))  # one hour, half a second between frames
    write_sequence(uri, "b", np.zeros((1, 5)))
    summary = summarise(uri)
    assert summary.card == read_card(uri)
    assert (summary.num_videos, summary.num_frames, summary.num_shards) == (2, 7202, 2)
    assert summary.video_hours == pytest.approx(1.0)
    assert summary.num_bytes == sum(path.stat().st_size for path in Path(uri, "shards").iterdir())
    assert (summary.num_failed, summary.failures) == (0, ())


def test_an_empty_set_counts_nothing(uri):
    summary = summarise(uri)
    assert (summary.num_videos, summary.num_frames, summary.num_bytes, summary.video_hours) == (0, 0, 0, 0)


def test_failures_are_grouped_by_reason_whatever_file_they_name(uri):
    write_failures(uri, [Failure("x", "/data/x.mp4", "/data/x.mp4 is empty")])
    write_failures(
        uri,
        [Failure(f"v{n}", f"s3://b/v{n}.mp4", f"cannot open s3://b/v{n}.mp4: no video in v{n}") for n in range(5)],
    )
    assert summarise(uri).failures == (
        FailureGroup("cannot open …: no video in …", 5, ("v0", "v1", "v2")),
        FailureGroup("… is empty", 1, ("x",)),
    )
    assert summarise(uri, num_named=1).failures[0].video_ids == ("v0",)
    assert summarise(uri).num_failed == 6


def test_a_folder_that_is_no_feature_set_is_named(tmp_path):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        summarise(str(tmp_path))
