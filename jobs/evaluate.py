"""Measure a checkpoint on a split of a feature set: the task's metric and the updates per video."""

import json
from dataclasses import asdict, dataclass

from features.batches import load_examples
from features.reader import FeatureSet
from jobs.evaluation import check_same_recipe, evaluate, load_model
from pipeline.errors import InputError
from pipeline.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        model: a checkpoint folder written by train or sweep.
        manifest: the videos and their labels.
        features: their features, of the recipe that the model was trained on.
        split: which videos.
    """

    model: str
    manifest: str
    features: str
    split: str = "test"


def run(settings: Settings) -> int:
    """Print the evaluation as JSON on standard output."""
    model = load_model(settings.model)
    feature_set, manifest = FeatureSet(settings.features), read_manifest(settings.manifest)
    check_same_recipe(model, feature_set)
    if manifest.class_names != model.class_names:
        raise InputError(
            f"the model knows the classes {', '.join(model.class_names)}; "
            f"{settings.manifest} has {', '.join(manifest.class_names)}"
        )
    examples = load_examples(feature_set, manifest, split=settings.split, task=model.recognizer.config.task)
    result = evaluate(model.recognizer, examples)
    per_class = dict(zip(model.class_names, result.per_class, strict=False))
    print(
        json.dumps(
            {
                "model": settings.model,
                "split": settings.split,
                "num_videos": result.num_videos,
                result.metric_name: result.metric,
                "updates_per_video": result.updates_per_video,
                "update_share": result.update_share,
                "cost": asdict(result.cost),
                # a class without positives has no average precision: null
                "per_class": {name: None if ap != ap else ap for name, ap in per_class.items()},
            },
            indent=2,
        )
    )
    return 0
