"""Whatever Parquet a shard is written as, the same features come out; from our own they are read without decoding."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Segment, Source, shard_table
from skipreel.features.feature_set.shard_file import write_shard
from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage import FileStat
from tests.support.feature_sets import spec, write_sequence

DIM = 5
SOURCE = Source("digest", FileStat(1, 1))
NO_FRAME = Segment(0, np.empty(0, np.int32), np.empty(0), np.empty((0, DIM), np.float16))
LENGTHS = {"a": 3, "b": 1, "c": 40}


def features_of(video_id: str) -> np.ndarray:
    return np.random.default_rng(ord(video_id)).normal(size=(LENGTHS[video_id], DIM)).astype(np.float16)


def rows_of(video_id: str, features: np.ndarray, *, segment_frames: int = 15) -> pa.Table:
    places = np.arange(len(features), dtype=np.int32)
    parts = [slice(start, start + segment_frames) for start in range(0, len(features), segment_frames)]
    segments = [Segment(number, places[part], places[part] / 2, features[part]) for number, part in enumerate(parts)]
    return shard_table(video_id, SOURCE, segments)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The one shard of a set of three videos, the last in three segments."""
    create_feature_set(str(tmp_path), spec(DIM), about={})
    write_shard(str(tmp_path), [rows_of(name, features_of(name)) for name in LENGTHS], LENGTHS)
    (path,) = (tmp_path / "shards").iterdir()
    return path


def assert_all_come_back(shard: Path) -> None:
    for name, sequence in zip(LENGTHS, FeatureSet(str(shard.parent.parent)).load(LENGTHS), strict=True):
        assert sequence.features.dtype == np.float16
        np.testing.assert_array_equal(sequence.features.view(np.uint16), features_of(name).view(np.uint16))
        np.testing.assert_array_equal(sequence.pts_s, np.arange(LENGTHS[name]) / 2)
        np.testing.assert_array_equal(sequence.frame_index, np.arange(LENGTHS[name]))


def is_read_directly(shard: Path) -> bool:
    (layout,) = FeatureSet(str(shard.parent.parent)).video_index.layouts
    assert (layout.offsets >= 0).all() or (layout.offsets == -1).all()
    return bool((layout.offsets >= 0).all())


def test_our_own_shards_are_read_directly(shard):
    assert is_read_directly(shard)
    assert_all_come_back(shard)


PLAIN = {"use_dictionary": False, "compression": "none"}
WRITINGS = {
    "plain": (PLAIN, True),
    "one page of version 2": ({**PLAIN, "data_page_version": "2.0"}, True),
    "no statistics": ({**PLAIN, "write_statistics": False}, True),
    "row groups of two rows": ({**PLAIN, "row_group_size": 2}, True),
    "several pages": ({**PLAIN, "data_page_size": 64, "write_batch_size": 1}, False),
    "dictionary": ({"compression": "none"}, False),
    "zstd": ({"compression": "zstd", "use_dictionary": False}, False),
    "zstd, version 2": ({"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"}, False),
    "byte stream split": ({**PLAIN, "column_encoding": {"features.list.element": "BYTE_STREAM_SPLIT"}}, False),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_a_shard_rewritten_by_pyarrow_gives_the_same(shard, name):
    options, directly = WRITINGS[name]
    pq.write_table(pq.read_table(shard), shard, **options)
    assert is_read_directly(shard) == directly
    assert_all_come_back(shard)


def test_elements_that_could_be_null_are_read_all_the_same(shard):
    table = pq.read_table(shard)
    lists = table["features"].combine_chunks()
    nullable = pa.ListArray.from_arrays(lists.offsets, lists.values)
    pq.write_table(table.set_column(4, "features", nullable), shard, **PLAIN)
    assert is_read_directly(shard)
    assert_all_come_back(shard)


def test_a_null_among_the_features_is_not_read_as_what_lies_there(shard):
    """With as many places for values as there should be, one of them takes no bytes."""
    table = pq.read_table(shard)
    lists = table["features"].combine_chunks()
    values = pa.array([None, *lists.values.to_pylist()[1:]], pa.float16())
    nullable = pa.ListArray.from_arrays(lists.offsets, values)
    pq.write_table(table.set_column(4, "features", nullable), shard, **PLAIN)
    assert not is_read_directly(shard)
    (sequence,) = FeatureSet(str(shard.parent.parent)).load(["a"])
    assert np.isnan(sequence.features[0, 0])
    np.testing.assert_array_equal(sequence.features[1:], features_of("a")[1:])


def test_a_shard_rewritten_by_duckdb_gives_the_same(shard):
    copy = shard.with_suffix(".copy")
    duckdb.sql(f"COPY (FROM '{shard}') TO '{copy}' (FORMAT parquet)")
    copy.replace(shard)
    assert pq.read_schema(shard).field("features").type.value_type == pa.float32()  # it knows no float16
    assert not is_read_directly(shard)
    assert_all_come_back(shard)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=6), st.integers(1, 9))
def test_any_lengths_come_back(tmp_path_factory, videos, dim):
    uri = str(tmp_path_factory.mktemp("set"))
    create_feature_set(uri, spec(dim), about={})
    rng = np.random.default_rng(0)
    values = {f"v{n}": rng.normal(size=(frames, dim)).astype(np.float16) for n, (frames, _) in enumerate(videos)}
    tables = [rows_of(f"v{n}", values[f"v{n}"], segment_frames=size) for n, (_, size) in enumerate(videos)]
    write_shard(uri, tables, values)
    for sequence in FeatureSet(uri).load(reversed(values)):
        np.testing.assert_array_equal(sequence.features, values[sequence.video_id])


def test_nan_with_any_bits_comes_back_as_it_is(tmp_path):
    create_feature_set(str(tmp_path), spec(DIM), about={})
    bits = np.arange(0x7C00, 0x7C00 + 10 * DIM, dtype=np.uint16).reshape(10, DIM)
    write_sequence(str(tmp_path), "odd", bits.view(np.float16))
    (sequence,) = FeatureSet(str(tmp_path)).load(["odd"])
    np.testing.assert_array_equal(sequence.features.view(np.uint16), bits)


@pytest.mark.parametrize(
    "table",
    [rows_of("a", np.ones((3, DIM + 1), np.float16)), shard_table("a", SOURCE, [NO_FRAME])],
    ids=["another length", "no frame"],
)
def test_features_that_do_not_fit_their_frames_are_refused(shard, table):
    pq.write_table(table, shard)
    with pytest.raises(FeatureSetError, match=r"not of length frames × 5 .*delete it and run skipreel extract"):
        FeatureSet(str(shard.parent.parent)).index()


@pytest.mark.parametrize("damage", ["cut", "text", "no columns"])
def test_a_damaged_shard_is_named(shard, damage):
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-20])
    elif damage == "text":
        shard.write_text("not Parquet")
    else:
        pq.write_table(pa.table({"video_id": ["a"]}), shard)
    with pytest.raises(FeatureSetError, match=rf"{shard.name} cannot be read .*delete it"):
        FeatureSet(str(shard.parent.parent)).index()


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_and_not_old_memory(shard):
    feature_set = FeatureSet(str(shard.parent.parent))
    feature_set.index()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StorageError, match="has become shorter"):
        feature_set.load(["c"])
