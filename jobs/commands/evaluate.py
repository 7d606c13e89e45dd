"""Measure a checkpoint on a split of a feature set: the task's metric and the updates per video."""

import json
from dataclasses import asdict, dataclass

from skipreel.features.batching.collate import check_labelled, load_examples
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.trained.budget import with_budget
from skipreel.jobs.trained.location import local_model
from skipreel.jobs.trained.model import check_same_spec, load_model
from skipreel.jobs.training.evaluation import evaluate
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class Settings:
    """The model and the data.

    Attributes:
        model: a checkpoint folder written by train or sweep, or runs:/… or models:/… of MLflow.
        manifest: the videos and their labels.
        features: their features, made as those that the model was trained on.
        split: the split to evaluate on.
        skip_missing: leave out videos without features instead of stopping.
        budget: share of the frames to look at on average, above 0 and at most 1; default: as trained.
        tracking_uri: MLflow's server or database, for a model in MLflow; default: MLFLOW_TRACKING_URI.
    """

    model: str
    manifest: str
    features: str
    split: str = "test"
    skip_missing: bool = False
    budget: float | None = None
    tracking_uri: str | None = None


def run(settings: Settings) -> int:
    """Print the evaluation as JSON on standard output."""
    model = load_model(local_model(settings.model, tracking_uri=settings.tracking_uri))
    if settings.budget is not None:
        model = with_budget(model, settings.budget)
    feature_set, manifest = FeatureSet(settings.features), read_manifest(settings.manifest)
    check_same_spec(model, feature_set)
    if manifest.class_names != model.class_names:
        raise InputError(
            f"the model knows the classes {', '.join(model.class_names)}; "
            f"{settings.manifest} has {', '.join(manifest.class_names)}"
        )
    task, split = model.recognizer.config.task, settings.split
    examples = load_examples(feature_set, manifest, split=split, task=task, skip_missing=settings.skip_missing)
    check_labelled(examples, split=split)
    num_listed = sum(entry.split == split for entry in manifest.entries)
    result = evaluate(model.recognizer, examples)
    per_class = dict(zip(model.class_names, result.per_class, strict=False))
    print(
        json.dumps(
            {
                "model": settings.model,
                "split": settings.split,
                "budget": settings.budget,
                "num_videos": result.num_videos,
                "num_videos_missing": num_listed - result.num_videos,
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
