"""Frames become CNN features, features become Parquet shards, shards become padded batches; runs without Ray.

The public names are imported at first use, so that importing this package loads neither torch nor Arrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipreel.features.errors import BackboneError, FeatureSetError

if TYPE_CHECKING:
    from skipreel.features.backbones.backbone import Backbone
    from skipreel.features.backbones.loading import load_backbone
    from skipreel.features.backbones.preprocessing import Preprocessing
    from skipreel.features.batching.buckets import BatchPlan
    from skipreel.features.batching.collate import Batch, Example, collate, load_examples, stream_batches
    from skipreel.features.batching.stream import PaddedFeatures, stream_features
    from skipreel.features.extraction.steps import extract_video
    from skipreel.features.feature_set.from_arrays import build_from_arrays
    from skipreel.features.feature_set.reader import FeatureSet, Sequence
    from skipreel.features.spec import FeatureSpec

_MODULES = {
    "Backbone": "backbones.backbone",
    "Batch": "batching.collate",
    "BatchPlan": "batching.buckets",
    "Example": "batching.collate",
    "FeatureSet": "feature_set.reader",
    "FeatureSpec": "spec",
    "PaddedFeatures": "batching.stream",
    "Preprocessing": "backbones.preprocessing",
    "Sequence": "feature_set.reader",
    "build_from_arrays": "feature_set.from_arrays",
    "collate": "batching.collate",
    "extract_video": "extraction.steps",
    "load_backbone": "backbones.loading",
    "load_examples": "batching.collate",
    "stream_batches": "batching.collate",
    "stream_features": "batching.stream",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
