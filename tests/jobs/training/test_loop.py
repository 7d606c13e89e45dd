"""Training one network: it learns, it is deterministic, and settings that contradict each other are refused."""

import dataclasses

import pytest
import torch

from skipreel.features.batching.collate import load_examples
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.training.curve import Curve
from skipreel.jobs.training.evaluation import evaluate
from skipreel.jobs.training.loop import build_recognizer, fit
from skipreel.jobs.training.record import SweepPoint
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import Cost
from skipreel.pipeline.manifest import read_manifest
from tests.support.feature_sets import two_class_corpus


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    manifest, features = two_class_corpus(tmp_path_factory.mktemp("numbers"), num_train=24, num_test=12)
    feature_set, listing = FeatureSet(features), read_manifest(manifest)
    return [load_examples(feature_set, listing, split=split, task="frames") for split in ("train", "test")]


def train(settings: ModelSettings, examples, *, epochs: int = 15):
    recognizer = build_recognizer(settings, examples, task="frames", num_classes=2)
    seen = []
    schedule = Schedule(epochs=epochs, batch_size=8, learning_rate=0.02)
    fit(recognizer, examples, settings=settings, schedule=schedule, on_epoch=seen.append)
    return recognizer, seen


@pytest.mark.parametrize("model", ["skip-gru", "skip-lstm", "gru", "lstm", "mean"])
def test_every_model_learns(splits, model):
    recognizer, seen = train(ModelSettings(model=model, hidden_size=8), splits[0])
    assert seen[-1].task_loss < 0.8 * seen[0].task_loss
    untrained = build_recognizer(ModelSettings(model=model, hidden_size=8), splits[0], task="frames", num_classes=2)
    assert evaluate(recognizer, splits[1]).metric > evaluate(untrained, splits[1]).metric + 0.1


def test_the_same_seed_gives_the_same_network_bit_for_bit(splits):
    settings = ModelSettings(hidden_size=8, budget_weight=1e-2, dropout=0.2)
    (first, _), (again, _), (other, _) = (
        train(dataclasses.replace(settings, seed=seed), splits[0], epochs=3) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_price_on_updates_buys_fewer_of_them(splits):
    free, _ = train(ModelSettings(hidden_size=8, budget_weight=0.0), splits[0])
    priced, _ = train(ModelSettings(hidden_size=8, budget_weight=0.1), splits[0])
    assert evaluate(priced, splits[1]).update_share < 0.7 * evaluate(free, splits[1]).update_share


def test_evaluation_does_not_depend_on_batching(splits, monkeypatch):
    recognizer, _ = train(ModelSettings(model="gru", p_skip=0.5, hidden_size=8), splits[0], epochs=2)
    whole = evaluate(recognizer, splits[1])
    monkeypatch.setattr("skipreel.jobs.training.evaluation.EVALUATION_BATCH", 5)
    parts = evaluate(recognizer, splits[1])
    assert parts.cost == whole.cost
    assert parts.metric == pytest.approx(whole.metric, abs=1e-6)


def skip_point(*, updates: int, frames: int, weight: float) -> SweepPoint:
    settings = ModelSettings(budget_weight=weight)
    return SweepPoint(settings, 0.5, Cost(frames, updates, None, None, updates), 10, "", "")


def test_controls_are_matched_to_each_budget_worth_matching():
    curve = Curve(ModelSettings(model="gru"), budget_weights=(0.0, 0.01), num_seeds=2)
    points = [skip_point(updates=990, frames=1000, weight=0.0), skip_point(updates=250, frames=1000, weight=0.01)]
    controls = curve.matched_controls(points)
    # 25 of 100 frames, the first always: 24 of the other 99 are not skipped
    assert {(c.p_skip, c.stride, c.seed) for c in controls} == {
        (0.7576, 1.0, 0),
        (0.7576, 1.0, 1),
        (0.0, 4.0, 0),
        (0.0, 4.0, 1),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gru", "budget_weight": 0.1}, "no gate to train"),
        ({"model": "skip-gru", "p_skip": 0.5}, "controls of gru and lstm"),
        ({"model": "gru", "p_skip": 0.5, "stride": 2.0}, "not both"),
        ({"budget_weight": -1.0}, "must not be negative"),
        ({"seed": -1}, "--seed is -1, it must not be negative"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**settings)
