from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipreel.features.batching.collate import load_examples
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.from_arrays import build_from_arrays
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.maintenance.verify import changed_sources, verify
from skipreel.pipeline.errors import InputError, ManifestError
from skipreel.pipeline.manifest import read_manifest, write_manifest

REAL = Path(__file__).parents[4] / "shared" / "data" / "frame_scores"
LENGTHS = np.array([3, 1, 4])
DIM = 2


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def build(files: list[Path], tmp_path: Path, **options):
    """The manifest as read back, and the sequences by id."""
    options = {"rate_hz": 10.0, **options}
    manifest = build_from_arrays([str(file) for file in files], output=str(tmp_path / "set"), **options)
    write_manifest(manifest, str(tmp_path / "manifest.parquet"))
    feature_set = FeatureSet(str(tmp_path / "set"))
    assert list(verify(feature_set.uri)) == []
    ids = [entry.video_id for entry in manifest.entries]
    assert sorted(feature_set.video_ids()) == sorted(ids)
    return read_manifest(str(tmp_path / "manifest.parquet")), dict(zip(ids, feature_set.load(ids), strict=True))


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_all_steps_in_a_row(tmp_path):
    features = numbers(8, DIM)
    file = save(tmp_path / "flat.npz", scores=features, lengths=LENGTHS, split=np.array([1, 2, 1], np.int8))
    manifest, sequences = build([file], tmp_path)
    assert [entry.video_id for entry in manifest.entries] == ["flat-0000", "flat-0001", "flat-0002"]
    assert [entry.split for entry in manifest.entries] == ["1", "2", "1"]
    assert [entry.duration_s for entry in manifest.entries] == pytest.approx([0.3, 0.1, 0.4])
    np.testing.assert_array_equal(sequences["flat-0002"].features, features[4:].astype(np.float16))
    np.testing.assert_allclose(sequences["flat-0002"].pts_s, [0, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal(sequences["flat-0002"].frame_index, [0, 1, 2, 3])


def test_a_padded_block_with_ids(tmp_path):
    features = numbers(3, 5, DIM)
    file = save(tmp_path / "block.npz", features=features, lengths=LENGTHS, ids=np.array(["x", "y", "z"]))
    _, sequences = build([file], tmp_path)
    for number, name in enumerate("xyz"):
        np.testing.assert_array_equal(sequences[name].features, features[number, : LENGTHS[number]].astype(np.float16))


def test_a_full_block_needs_no_lengths(tmp_path):
    _, sequences = build([save(tmp_path / "a.npz", features=numbers(2, 5, DIM))], tmp_path)
    assert [len(sequence.pts_s) for sequence in sequences.values()] == [5, 5]


def parquet(path: Path, **columns: pa.Array | list) -> Path:
    table = {"sequence_id": ["x", "y"], "features": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]], **columns}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.list_(pa.float16(), 2)),
        pa.large_list(pa.large_list(pa.float64())),
        pa.list_(pa.list_(pa.int64())),
    ],
)
def test_parquet_of_lists(tmp_path, kind):
    values = pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(pa.list_(pa.int64()))).cast(
        pa.list_(pa.list_(pa.float32()))
    )
    values = pa.array(values.to_pylist(), kind)
    file = parquet(tmp_path / "a.parquet", features=values, labels=[[1, 0], [1]], split=["train", "test"])
    manifest, sequences = build([file], tmp_path)
    np.testing.assert_array_equal(sequences["x"].features, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(sequences["y"].features, [[5, 6]])
    assert [entry.split for entry in manifest.entries] == ["train", "test"]
    assert manifest.class_names == ("0", "1")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_label_for_each_sequence(tmp_path, suffix):
    if suffix == "npz":
        file = save(tmp_path / "a.npz", features=numbers(2, 5, DIM), labels=np.array([1, -1]))
    else:
        file = parquet(tmp_path / "a.parquet", labels=[1, None])
    manifest, _ = build([file], tmp_path)
    assert [[label.class_id for label in entry.labels] for entry in manifest.entries] == [[1], []]


def labels_back(manifest, folder: Path, split: str) -> dict[str, np.ndarray]:
    """Per-step labels, -1 for none, as a training of task frames sees them."""
    examples = load_examples(FeatureSet(str(folder / "set")), manifest, split=split, task="frames")
    found = {}
    for example in examples:
        target = example.target.numpy()
        assert (target.sum(1) <= 1).all()
        found[example.sequence.video_id] = np.where(target.any(1), target.argmax(1), -1)
    return found


@given(
    labels=st.lists(st.lists(st.integers(-1, 3), min_size=1, max_size=30), min_size=1, max_size=4),
    rate_hz=st.sampled_from([0.1, 1.0, 7.3, 29.97, 1000 / 3, 44100.0]),
)
def test_labels_of_steps_come_back_exactly(tmp_path_factory, labels, rate_hz):
    folder = tmp_path_factory.mktemp("arrays")
    lengths = np.array([len(own) for own in labels])
    flat = np.concatenate(labels).astype(np.int64)
    file = save(folder / "a.npz", features=numbers(len(flat), DIM), lengths=lengths, labels=flat)
    manifest, _ = build([file], folder, rate_hz=rate_hz, class_names=("a", "b", "c", "d"))
    found = labels_back(manifest, folder, "train")
    for number, own in enumerate(labels):
        np.testing.assert_array_equal(found[f"a-{number:04d}"], own)


def test_labels_late_in_a_long_sequence_come_back_exactly(tmp_path):
    """Times there are far coarser in float32 than in float64."""
    labels = np.arange(100_000) % 2
    file = save(tmp_path / "a.npz", features=numbers(1, 100_000, 1), labels=labels[None])
    manifest, _ = build([file], tmp_path, rate_hz=29.97)
    np.testing.assert_array_equal(labels_back(manifest, tmp_path, "train")["a-0000"], labels)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data folder is not there")
@pytest.mark.parametrize("name", ["50salads", "gtea"])
def test_real_frame_scores_are_ready_to_train_on(tmp_path, name):
    manifest, sequences = build([REAL / f"{name}.npz"], tmp_path, test_splits=("2",))
    archive = np.load(REAL / f"{name}.npz", allow_pickle=False)
    places = np.split(np.arange(len(archive["labels"])), np.cumsum(archive["lengths"])[:-1])
    found = labels_back(manifest, tmp_path, "train") | labels_back(manifest, tmp_path, "test")
    assert len(found) == len(places)
    for number, place in enumerate(places):
        sequence_id = f"{name}-{number:04d}"
        np.testing.assert_array_equal(found[sequence_id], archive["labels"][place])
        np.testing.assert_array_equal(sequences[sequence_id].features, archive["scores"][place].astype(np.float16))
    tested = [number for number, entry in enumerate(manifest.entries) if entry.split == "test"]
    np.testing.assert_array_equal(tested, np.flatnonzero(archive["split"] == 2))


def test_building_again_adds_nothing(tmp_path):
    file = save(tmp_path / "a.npz", features=numbers(2, 5, DIM))
    build([file], tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "set" / "shards").iterdir()}
    build([file], tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "set" / "shards").iterdir()} == before
    (shard,) = before
    shard.rename(shard.with_name("elsewhere.parquet"))  # as a compaction does
    build([file], tmp_path)


def test_other_contents_do_not_go_into_the_same_set(tmp_path):
    build([save(tmp_path / "a.npz", features=numbers(2, 5, DIM))], tmp_path)
    with pytest.raises(FeatureSetError, match="another spec"):
        build([save(tmp_path / "a.npz", features=1 + numbers(2, 5, DIM))], tmp_path)


def test_where_sequences_come_from_can_be_checked(tmp_path):
    file = save(tmp_path / "a.npz", features=numbers(2, 5, DIM))
    build([file], tmp_path)
    listing = str(tmp_path / "manifest.parquet")
    assert list(changed_sources(str(tmp_path / "set"), listing)) == []
    save(file, features=numbers(2, 6, DIM))
    (problem,) = changed_sources(str(tmp_path / "set"), listing)
    assert "'a-0000', 'a-0001'" in problem


def test_several_files_make_one_set_and_long_sequences_several_segments(tmp_path):
    files = [
        save(tmp_path / "a.npz", features=numbers(1, 2500, DIM)),
        save(tmp_path / "b.npz", features=numbers(1, 2, DIM)),
    ]
    _, sequences = build(files, tmp_path)
    np.testing.assert_array_equal(sequences["a-0000"].features, numbers(1, 2500, DIM)[0].astype(np.float16))
    assert FeatureSet(str(tmp_path / "set")).index()["num_segments"].to_pylist() == [3, 1]


FULL = {"features": numbers(8, DIM), "lengths": LENGTHS}
BAD_ARRAYS = {
    "no features": ({"labels": np.zeros(3, int)}, "has no features"),
    "unknown": ({**FULL, "extra": LENGTHS}, "has an array 'extra'; allowed: features, scores"),
    "one dimension": ({"features": numbers(8)}, r"has features float32 \(8,\): needed are"),
    "text": ({"features": np.array([["a"]])}, "has features <U1"),
    "objects": ({"features": np.array([[1, None]], object)}, "is not an npz of plain arrays"),
    "no lengths": ({"features": numbers(8, DIM)}, "no lengths"),
    "lengths too short": ({"features": numbers(9, DIM), "lengths": LENGTHS}, "add up to 8 .* do not fit"),
    "lengths too long": ({"features": numbers(3, 3, DIM), "lengths": LENGTHS}, "at most 4, they do not fit"),
    "lengths too few": ({"features": numbers(4, 5, DIM), "lengths": LENGTHS}, "do not fit"),
    "length 0": ({"features": numbers(8, DIM), "lengths": np.array([8, 0])}, "integers from 1 on"),
    "labels too few": ({**FULL, "labels": np.zeros(7, int)}, r"needed are integers of shape \(8,\) or \(3,\)"),
    "labels no integers": ({**FULL, "labels": np.zeros(8)}, "labels float64"),
    "label -2": ({**FULL, "labels": np.full(8, -2)}, "label -2, allowed are class numbers from 0 on, and -1"),
    "split too short": ({**FULL, "split": np.zeros(2)}, "split of shape"),
    "NaN": ({**FULL, "features": np.where(np.eye(8, DIM), np.nan, 0)}, "feature 0 of step 0 is nan"),
    "too large": (
        {**FULL, "features": np.full((8, DIM), 70000.0)},
        "sequence 'a-0000': feature 0 of step 0 is 70000.0, it must be a number of at most 65504 in size",
    ),
    "id twice": ({**FULL, "ids": np.array(["x", "y", "x"])}, "'x' appears more than once"),
    "id that escapes": ({**FULL, "ids": np.array(["x", "y", "../x"])}, "'../x' is absolute, has '..'"),
    "class without a name": ({**FULL, "labels": np.full(8, 3)}, "class_id 3 .* is not allowed: 0 to 1"),
    "no such split": ({**FULL, "split": np.array(["a", "b", "a"])}, "no split 'test' to test on; allowed: a, b"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_named_and_nothing_is_written(tmp_path, name):
    arrays, message = BAD_ARRAYS[name]
    file = save(tmp_path / "a.npz", **arrays)
    options = {"class_names": ("p", "q")}
    if name == "no such split":
        options["test_splits"] = ("test",)
    with pytest.raises((FeatureSetError, ManifestError), match=message):
        build([file], tmp_path, **options)
    assert not (tmp_path / "set").exists()


BAD_TABLES = {
    "no list of lists": ({"features": [[1.0], [2.0]]}, "needed is a list of lists of numbers"),
    "ragged": ({"features": [[[1.0, 2.0], [3.0]], [[5.0, 6.0]]]}, r"of one length of numbers, got lengths \[2, 1\]"),
    "null": ({"features": [[[1.0, None]], [[5.0, 6.0]]]}, "of one length of numbers"),
    "no steps": ({"features": [[], [[5.0, 6.0]]]}, r"got lengths \[\]"),
    "null list": ({"features": [None, [[5.0, 6.0]]]}, "needed is a list of lists"),
    "text": ({"features": [[["a"]], [["b"]]]}, "of one length of numbers"),
    "labels too many": ({"labels": [[1, 2, 3], [1]]}, r"labels int64 \(3,\), needed is an integer or 2"),
    "id no text": ({"sequence_id": [1, 2]}, "sequence_id must be a string"),
    "another length": ({"features": [[[1.0, 2.0]], [[5.0]]]}, "of different lengths, 1 and 2: build a set of each"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, name):
    columns, message = BAD_TABLES[name]
    file = parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(FeatureSetError, match=message):
        build([file], tmp_path)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_files_of_another_kind_are_named(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_text("odd")
    with pytest.raises(FeatureSetError, match=rf"a\{suffix} is n"):
        build([file], tmp_path)
    with pytest.raises(InputError, match=rf"b\{suffix}"):
        build([tmp_path / f"b{suffix}"], tmp_path)


def test_a_pickle_is_not_opened(tmp_path):
    file = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], object), allow_pickle=True)
    (tmp_path / "a.npy").rename(file)
    with pytest.raises(FeatureSetError, match="is not an npz of plain arrays"):
        build([file], tmp_path)
