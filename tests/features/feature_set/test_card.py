import json

import numpy as np
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import CARD, create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from tests.support.feature_sets import spec, write_sequence


@pytest.fixture
def uri(tmp_path):
    uri = str(tmp_path / "features")
    create_feature_set(uri, spec(), about={"backbone": "numbers"})
    return uri


def test_another_spec_is_refused_and_the_same_one_accepted(uri):
    create_feature_set(uri, spec(), about={})
    with pytest.raises(FeatureSetError, match="another spec"):
        create_feature_set(uri, spec(weights="cd" * 32), about={})


def test_what_a_killed_writer_left_is_removed_and_nothing_else(uri, tmp_path):
    write_sequence(uri, "a", np.zeros((2, 5)))
    left = tmp_path / "features" / "shards" / ".x.parquet.1234abcd.tmp"
    left.write_bytes(b"PAR1")
    create_feature_set(uri, spec(), about={})
    assert not left.exists()
    assert FeatureSet(uri).video_ids() == {"a"}


def test_a_damaged_card_is_one_clear_line(uri, tmp_path):
    card = tmp_path / "features" / CARD
    content = json.loads(card.read_text())
    content["recipe"]["dim"] = 7
    card.write_text(json.dumps(content))
    with pytest.raises(FeatureSetError, match="does not follow from its recipe"):
        FeatureSet(uri)
    card.write_text("{")
    with pytest.raises(FeatureSetError, match="is damaged"):
        FeatureSet(uri)


def test_a_folder_without_card_is_not_a_feature_set(tmp_path):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        FeatureSet(str(tmp_path))
