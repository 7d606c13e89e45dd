"""What is wrong with the data is said in one line before anything is trained, by each command that uses them."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.ledger import write_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Failure
from skipreel.jobs.cli import main
from skipreel.jobs.training.data import checked_data
from skipreel.jobs.training.ray_workers import TrainingData, train_worker
from skipreel.jobs.training.record import SweepPoint, SweepRecord
from skipreel.jobs.training.settings import ModelSettings
from skipreel.models import Cost
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry, read_manifest, write_manifest
from tests.support.feature_sets import two_class_corpus, write_sequence
from tests.support.models import save_model, untrained

DIM, NUM_TRAIN, NUM_TEST = 5, 4, 3


class Data:
    """A manifest, its features and an untrained network, to be spoilt in one place."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.manifest, self.features = str(folder / "manifest.parquet"), str(folder / "features")

    def listed(self, change) -> None:
        """Rewrite the manifest with what ``change`` makes of each entry."""
        listing = read_manifest(self.manifest)
        entries = tuple(change(entry) for entry in listing.entries)
        write_manifest(Manifest(entries, listing.class_names), self.manifest)

    def add_missing(self, split: str, *, failed: int, never: int) -> None:
        listing = read_manifest(self.manifest)
        names = [f"{split}-gone{number}" for number in range(failed + never)]
        entries = tuple(VideoEntry(name, "a.mp4", split, None, (Label(0),)) for name in names)
        write_manifest(Manifest(listing.entries + entries, listing.class_names), self.manifest)
        write_failures(self.features, [Failure(name, "a.mp4", "broken") for name in names[:failed]])

    def rewrite(self, split: str, make) -> None:
        """Give the videos of a split other features: ``make(number)`` (T, D)."""
        entries = read_manifest(self.manifest).only(split).entries
        for number, entry in enumerate(entries):
            write_sequence(self.features, entry.video_id, make(number))

    def words(self, command: str) -> list[str]:
        words = [command, "--manifest", self.manifest, "--features", self.features]
        if command != "evaluate":
            return [*words, "--output", str(self.folder / "out")]
        return [*words, "--model", str(self.folder / "net")]


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unspoilt")
    _, features = two_class_corpus(folder, num_train=NUM_TRAIN, num_test=NUM_TEST, dim=DIM)
    feature_set = FeatureSet(features)
    save_model(folder / "net", untrained(feature_set.spec, class_names=("low", "high")))
    return folder


@pytest.fixture
def data(unspoilt, tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr("skipreel.jobs.commands.train.start_run", started)
    monkeypatch.setattr("skipreel.jobs.commands.sweep.start_run", started)
    return Data(shutil.copytree(unspoilt, tmp_path, dirs_exist_ok=True))


def unlabelled(split: str):
    return lambda entry: replace(entry, labels=()) if entry.split == split else entry


def too_late(entry: VideoEntry) -> VideoEntry:
    return replace(entry, labels=(Label(0, 1000.0, 1001.0),)) if entry.split == "test" else entry


def with_nan(number: int) -> np.ndarray:
    features = np.zeros((6, DIM))
    features[4, 2] = math.inf if number == 1 else 0
    return features


FAULTS = {
    "test videos missing": (
        lambda data: data.add_missing("test", failed=2, never=4),
        r"6 of 9 videos of split 'test' have no features in .*: 2 failed in extraction, 4 were never extracted, such "
        r"as 'test-gone0': run skipreel extract .*--skip-missing",
    ),
    "no features at all": (
        lambda data: data.listed(lambda e: replace(e, video_id="new-" + e.video_id) if e.split == "test" else e),
        r"3 of 3 videos of split 'test' have no features in .*: 0 failed .*, 3 were never extracted",
    ),
    "infinity in test": (
        lambda data: data.rewrite("test", with_nan),
        r"features of video 'video05' \(split 'test'\) in .* NaN or infinity, first at its sampled frame 4",
    ),
    "no labels in test": (
        lambda data: data.listed(unlabelled("test")),
        r"no sampled frame of split 'test' has a label in 3 videos, so there is no mAP",
    ),
    "labels of test at other times": (lambda data: data.listed(too_late), r"no sampled frame of split 'test' has"),
    "no test split": (
        lambda data: data.listed(lambda entry: replace(entry, split="train")),
        r"the manifest has no video of split 'test': its splits are train",
    ),
}
TRAINING_FAULTS = {
    "training videos missing": (
        lambda data: data.add_missing("train", failed=1, never=0),
        r"1 of 5 videos of split 'train' have no features in .*: 1 failed in extraction, 0 were never",
    ),
    "no training split": (
        lambda data: data.listed(lambda entry: replace(entry, split="test")),
        r"the manifest has no video of split 'train': its splits are test",
    ),
}


def said(capsys, words: list[str]) -> str:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_said_before_anything_starts(fault, command, data, capsys):
    spoil, message = FAULTS[fault]
    words = data.words(command)
    spoil(data)
    assert re.search(message, said(capsys, words))


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_fault_of_the_training_split_is_said_before_anything_starts(fault, command, data, capsys):
    spoil, message = TRAINING_FAULTS[fault]
    spoil(data)
    assert re.search(message, said(capsys, data.words(command)))


def test_a_sweep_of_single_frames_has_nothing_to_skip(data, capsys):
    data.rewrite("test", lambda _: np.zeros((1, DIM)))
    data.listed(lambda entry: replace(entry, labels=(Label(0),)))
    assert "every video of split 'test' has a single sampled frame" in said(capsys, data.words("sweep"))


def test_evaluate_skips_missing_videos_when_told_to_and_counts_them(data, capsys):
    data.add_missing("test", failed=1, never=1)
    assert main([*data.words("evaluate"), "--skip-missing"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_videos"], result["num_videos_missing"]) == (NUM_TEST, 2)


def test_training_skips_missing_videos_when_told_to_and_counts_them(data):
    data.add_missing("test", failed=1, never=1)
    data.add_missing("train", failed=1, never=0)
    checked = checked_data(data.manifest, data.features, "frames", test_split="test", skip_missing=True)
    assert checked.training.skip_missing
    assert len(checked.examples) == NUM_TEST
    assert str(checked) == "4 of 5 videos to train, 3 of 5 videos to test"
    assert checked.counts == {
        "train_videos": 4,
        "train_videos_missing": 1,
        "test_videos": 3,
        "test_videos_missing": 2,
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.rewrite("train", with_nan), r"features of video 'video01' \(split 'train'\) .* NaN"),
        (lambda data: data.listed(unlabelled("train")), "no sampled frame of split 'train' has a label"),
        (lambda data: data.add_missing("train", failed=0, never=1), "1 of 5 videos of split 'train'"),
    ],
)
def test_a_worker_refuses_what_it_finds_in_the_training_split(spoil, message, data, monkeypatch):
    monkeypatch.setattr("ray.train.get_context", lambda: None)
    monkeypatch.setattr("torch.set_flush_denormal", lambda _: None)  # it would hold for this process from then on
    spoil(data)
    config = {"data": TrainingData(data.manifest, data.features, "frames"), "points": []}
    with pytest.raises(FeatureSetError, match=message):
        train_worker(config)


def test_a_sweeps_record_never_holds_nan(tmp_path):
    point = SweepPoint(ModelSettings(), math.nan, Cost(10, 5, None, None, 5), 2, "net", "run")
    record = SweepRecord("frames", "m", "f", "test", "uri", "id", {}, (point,))
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.save(tmp_path)
    assert not list(tmp_path.iterdir())
