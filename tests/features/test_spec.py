import dataclasses

from tests.support.feature_sets import spec


def test_the_id_follows_from_the_weights_not_from_their_path():
    moved = dataclasses.replace(spec(), backbone="hf:elsewhere")
    assert moved.feature_set_id == spec().feature_set_id
    assert spec(dim=6).feature_set_id != spec().feature_set_id
