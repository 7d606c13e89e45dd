import subprocess
import sys

import pytest

from skipreel import features

NAMES = [
    "Backbone",
    "BackboneError",
    "Batch",
    "BatchPlan",
    "Example",
    "FeatureSet",
    "FeatureSetError",
    "FeatureSpec",
    "PaddedFeatures",
    "Preprocessing",
    "Sequence",
    "build_from_arrays",
    "collate",
    "extract_video",
    "load_backbone",
    "load_examples",
    "stream_batches",
    "stream_features",
]


def test_the_public_names_are_these_and_all_of_them_are_there():
    assert dir(features) == features.__all__ == NAMES
    for name in NAMES:
        assert getattr(features, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = features.nothing


def test_importing_the_package_loads_nothing_heavy():
    code = "import skipreel.features, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "skipreel.features" in loaded
    assert not {"torch", "ray", "pyarrow", "numpy", "av"} & set(loaded)
