"""Every Python block of docs/features.md runs, and reads what was written."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from skipreel.features.batching.collate import load_examples
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.ledger import write_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import SHARD_SCHEMA, Failure
from skipreel.pipeline.manifest import read_manifest
from tests.support.feature_sets import spec, write_sequence

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
DIM = 6
LENGTHS = {"cooking-01": 2300, "cooking-02": 1, "walking": 5}


def block(text: str) -> str:
    """The one block with this text in it."""
    (found,) = (block for block in BLOCKS if text in block)
    return found


def features_of(video_id: str) -> np.ndarray:
    """Any finite float16: tiny, huge and negative zero among them."""
    bits = np.random.default_rng(LENGTHS[video_id]).integers(0, 1 << 16, (LENGTHS[video_id], DIM), dtype=np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] = 0x8000
    return bits.view(np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    uri = str(folder / "features")
    create_feature_set(uri, spec(DIM), about={})
    for video_id in LENGTHS:
        write_sequence(uri, video_id, features_of(video_id))
    failures = [("a", "is empty"), ("b", "is empty"), ("c", "has no video")]
    write_failures(uri, [Failure(name, f"{name}.mp4", reason) for name, reason in failures])
    # What unfinished writers leave must not disturb.
    (folder / "features" / "shards" / ".x.parquet.12345678.tmp").write_text("half")
    (folder / "features" / "shards" / ".x.parquet.merged").write_text("half")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the block with a text in it, gives its names."""
    monkeypatch.chdir(folder)

    def run_block(text: str) -> dict[str, object]:
        names: dict[str, object] = {}
        exec(block(text), names)
        return names

    return run_block


def assert_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    halves = np.asarray(found).astype(np.float16)
    np.testing.assert_array_equal(halves, np.asarray(found))  # nothing is lost by it
    np.testing.assert_array_equal(halves.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    "text",
    [
        'to_batches(columns=["video_id", "features", "dim"]):\n    for',
        "import polars",
        "import pandas",
        "by_video = {sequence",
    ],
)
def test_all_features_are_read_bit_for_bit(run, text):
    by_video = run(text)["by_video"]
    assert set(by_video) == set(LENGTHS)
    for video_id, found in by_video.items():
        assert found.dtype == np.float16
        assert_bits(found, features_of(video_id))


def test_one_video_with_pyarrow(run):
    names = run("filters=[")
    assert_bits(names["features"], features_of("cooking-01"))
    np.testing.assert_array_equal(names["pts_s"], np.arange(2300) / 2)


def test_counts_with_duckdb(run):
    assert run("longest =")["longest"] == [("cooking-01", 2300, 1149.5), ("walking", 5, 2.0), ("cooking-02", 1, 0.0)]


def test_frames_with_duckdb(run):
    frames = run("frames = duckdb")["frames"]
    assert [frame[:2] for frame in frames] == [
        ("cooking-01", 0.0),
        ("cooking-01", 0.5),
        ("cooking-02", 0.0),
        ("walking", 0.0),
        ("walking", 0.5),
    ]
    for video_id, pts_s, feature in frames:
        assert_bits(np.array(feature, np.float32), features_of(video_id)[int(pts_s * 2)])


def test_failures_with_duckdb(run):
    assert run("reasons =")["reasons"] == [("is empty", 2, "a"), ("has no video", 1, "c")]


def test_times_of_change(run):
    assert {row[1] for row in run("modified =")["modified"]} == {1_700_000_000_000_000}
    table = run("import polars")["table"]
    assert {moment.timestamp() for moment in table["source_modified"]} == {1_700_000_000.0}


def test_last_times_with_polars(run):
    seconds = dict(run("import polars")["seconds"].iter_rows())
    assert seconds == {"cooking-01": 1149.5, "cooking-02": 0.0, "walking": 2.0}


@pytest.mark.parametrize("text", ["class Videos", "BatchPlan(batch_size=32"])
def test_batches_for_torch(run, text):
    found = {}
    for ids, features, lengths in run(text)["batches"]:
        assert features.dtype == torch.float16
        for video_id, feature, length in zip(ids, features, lengths, strict=True):
            assert not feature[length:].any()
            found[video_id] = feature[:length].numpy()
    assert set(found) == set(LENGTHS)
    for video_id, feature in found.items():
        assert_bits(feature, features_of(video_id))


def test_the_card(run):
    assert run("card = json")["card"]["id"] == spec(DIM).feature_set_id


def test_sequences_that_are_not_video(run, folder):
    walks = run("walks.npz")["walks"]
    examples = load_examples(
        FeatureSet(str(folder / "walks")), read_manifest(str(folder / "walks.parquet")), split="train", task="frames"
    )
    assert len(examples) == 3
    for example, walk in zip(examples, walks, strict=False):
        np.testing.assert_array_equal(example.target.numpy()[:, 1], walk[:, 0] > 0)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_runs_by_itself(folder, monkeypatch, number):
    monkeypatch.chdir(folder)
    exec(BLOCKS[number], {})


def test_the_columns_are_those_of_the_schema():
    listed = re.findall(r"^\| `(\w+)` \| (list<)?(\w+)", PAGE.partition("The failures have")[0], re.MULTILINE)
    assert [name for name, _, _ in listed] == SHARD_SCHEMA.names
    for name, is_list, kind in listed:
        stored = SHARD_SCHEMA.field(name).type
        assert str(stored.value_type if is_list else stored).startswith(
            kind.replace("float16", "halffloat").replace("float64", "double")
        )
