import numpy as np
import pyarrow.parquet as pq
import pytest

from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import SHARD_SCHEMA
from tests.support.feature_sets import spec, write_sequence


@pytest.fixture
def uri(tmp_path):
    uri = str(tmp_path / "features")
    create_feature_set(uri, spec(), about={"backbone": "numbers"})
    return uri


def values(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(length, 5)).astype(np.float16)


def test_shards_have_the_documented_schema_and_stay_inside_the_folder(uri, tmp_path):
    write_sequence(uri, "../../escape", values(2))
    (shard,) = (tmp_path / "features" / "shards").iterdir()
    assert pq.read_schema(shard).remove_metadata().equals(SHARD_SCHEMA)
    assert not list(tmp_path.parent.glob("*escape*"))


def test_writing_a_shard_again_replaces_it(uri):
    write_sequence(uri, "a", values(4))
    write_sequence(uri, "a", values(4))
    assert len(FeatureSet(uri).load(["a"])[0].features) == 4
