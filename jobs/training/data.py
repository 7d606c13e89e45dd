"""What train and sweep look at before they start: every fault of the data that is seen here costs no training."""

from dataclasses import dataclass

from skipreel.features.batching.collate import Example, Task, check_labelled, load_examples, videos_with_features
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.training.ray_workers import TrainingData
from skipreel.pipeline import storage
from skipreel.pipeline.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Data that can be trained and measured on.

    Attributes:
        training: what the workers read; they check the numbers in it when they load them.
        feature_set: opened for reading.
        examples: the videos of the split that is measured on.
        counts: videos of both splits that are used, and those left out as they have no features; parameters of a run.
    """

    training: TrainingData
    feature_set: FeatureSet
    examples: list[Example]
    counts: dict[str, int]

    def __str__(self) -> str:
        parts = []
        for use in ("train", "test"):
            used, missing = self.counts[f"{use}_videos"], self.counts[f"{use}_videos_missing"]
            parts.append(f"{used} of {used + missing} videos to {use}")
        return ", ".join(parts)


def checked_data(manifest: str, features: str, task: Task, *, test_split: str, skip_missing: bool) -> CheckedData:
    """Look at all that can be known before training.

    Raises:
        InputError: when manifest or feature set cannot be read, a split is not there, has videos without features (and
            ``skip_missing`` is not given) or labels of another task, or when the split that is measured on holds NaN or
            infinity, or no label.
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
    return CheckedData(training, feature_set, examples, counts)
