"""Checks of the data before a training: a fault that is found here costs no training."""

from dataclasses import dataclass

from skipreel.features.batching.collate import Example, Task, check_labelled, load_examples, videos_with_features
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.training.ray_workers import TrainingData
from skipreel.pipeline import storage
from skipreel.pipeline.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Data that passed the checks.

    Attributes:
        training: the data that the workers read; they check its features when they load them.
        feature_set: opened for reading.
        test_split: the split to evaluate on.
        examples: the videos of that split.
        counts: for both splits, the videos that are used and those left out because they have no features; logged as
            parameters of a run.
    """

    training: TrainingData
    feature_set: FeatureSet
    test_split: str
    examples: list[Example]
    counts: dict[str, int]

    def __str__(self) -> str:
        parts = []
        for use in ("train", "test"):
            used, missing = self.counts[f"{use}_videos"], self.counts[f"{use}_videos_missing"]
            parts.append(f"{used} of {used + missing} videos to {use}")
        return ", ".join(parts)


def checked_data(manifest: str, features: str, task: Task, *, test_split: str, skip_missing: bool) -> CheckedData:
    """Open the data and check all that can be known before training.

    Args:
        manifest: URI of the manifest.
        features: URI of the feature set.
        test_split: the split to evaluate on.
        skip_missing: leave out videos without features instead of stopping.

    Raises:
        InputError: manifest or feature set cannot be read; a split does not exist, has videos without features (and
            not `skip_missing`) or labels of another task; or the test split holds NaN, infinity or no label.
    """
    training = TrainingData(storage.absolute(manifest), storage.absolute(features), task, skip_missing=skip_missing)
    feature_set, listing = FeatureSet(training.features), read_manifest(training.manifest)
    counts = {}
    for use, split in (("train", training.split), ("test", test_split)):
        present = videos_with_features(feature_set, listing, split=split, task=task, skip_missing=skip_missing)
        counts[f"{use}_videos"] = len(present)
        counts[f"{use}_videos_missing"] = sum(entry.split == split for entry in listing.entries) - len(present)
    examples = load_examples(feature_set, listing, split=test_split, task=task, skip_missing=skip_missing)
    check_labelled(examples, split=test_split)
    return CheckedData(training, feature_set, test_split, examples, counts)
