"""Budgets of a trained network: the share they lead to, and that the shifted network is an ordinary Skip RNN."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from skipreel.features.batching.collate import Example, load_examples
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.reader import FeatureSet, Sequence
from skipreel.jobs.cli import main
from skipreel.jobs.trained.budget import MAX_POINTS, calibration_examples, measure_curve, with_budget
from skipreel.jobs.trained.model import TrainedModel, load_model
from skipreel.jobs.training.evaluation import evaluate
from skipreel.jobs.training.loop import build_recognizer, fit
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import RandomGate, Recognizer
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import Manifest, VideoEntry, read_manifest
from tests.support.feature_sets import spec, two_class_corpus, write_sequence
from tests.support.models import save_model, untrained

DIM = 5


def drawn_examples(count: int, *, seed: int) -> list[Example]:
    """Sequences of 60 to 99 frames in which class 1 is on while the first feature is high."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        length = int(rng.integers(60, 100))
        values = rng.normal(size=(length, DIM)).astype(np.float16) * np.float16(0.3)
        start, end = sorted(rng.choice(length, 2, replace=False))
        values[start:end, 0] += 2
        target = torch.zeros(length, 2)
        target[start:end, 1] = 1
        sequence = Sequence(f"v{number}", np.arange(length), np.arange(length) / 2, values)
        examples.append(Example(sequence, target))
    return examples


def as_model(recognizer: Recognizer, curve: list[tuple[float, float]] | None) -> TrainedModel:
    made = spec(DIM)
    return TrainedModel(recognizer, ("low", "high"), made.feature_set_id, made, {}, curve and tuple(curve))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return drawn_examples(24, seed=0)


@pytest.fixture(scope="module", params=["skip-gru", "skip-lstm"])
def model(request, examples) -> TrainedModel:
    settings = ModelSettings(model=request.param, hidden_size=8, budget_weight=1e-3)
    recognizer = build_recognizer(settings, examples, task="frames", num_classes=2)
    schedule = Schedule(epochs=6, batch_size=8, learning_rate=0.02)
    fit(recognizer, examples, settings=settings, schedule=schedule, on_epoch=lambda _: None)
    return as_model(recognizer.eval(), measure_curve(recognizer, examples))


def test_the_share_asked_for_is_the_share_looked_at(model, examples):
    asked = [0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0]
    found = [evaluate(with_budget(model, share).recognizer, examples).update_share for share in asked]
    assert found == pytest.approx(asked, rel=0.15)
    assert found == sorted(found)
    assert found[-1] == 1


def test_a_curve_reaches_from_the_lowest_share_to_every_frame(model, examples):
    deltas, shares = zip(*model.budget_curve, strict=True)
    assert list(deltas) == sorted(set(deltas))
    assert len(deltas) <= MAX_POINTS
    assert shares[0] <= 0.02
    assert shares[-1] == 1
    assert dict(model.budget_curve)[0.0] == evaluate(model.recognizer, examples).update_share
    assert max(high / low for low, high in pairwise(shares)) < 2


def test_a_curve_is_the_same_each_time_and_leaves_the_network_as_it_was(model, examples):
    before = {name: value.clone() for name, value in model.recognizer.state_dict().items()}
    assert tuple(measure_curve(model.recognizer, examples)) == model.budget_curve
    with_budget(model, 0.3)
    assert all(torch.equal(value, before[name]) for name, value in model.recognizer.state_dict().items())


def test_a_shifted_network_steps_as_its_dense_pass_does(model, examples):
    features = torch.from_numpy(np.asarray(examples[0].sequence.features)).float()
    looks = []
    for share in (0.05, 0.3, 0.8):
        recognizer = with_budget(model, share).recognizer
        with torch.inference_mode():
            logits, gates = recognizer(features[None], torch.tensor([len(features)]))
            used, state, t = [], None, 0
            while t < len(features):
                used.append(t)
                answer, state, wait = recognizer.step(features[t : t + 1], state, limit=len(features) - t - 1)
                torch.testing.assert_close(
                    logits[0, t : t + int(wait) + 1], answer.expand(int(wait) + 1, -1), atol=1e-5, rtol=1e-4
                )
                state = recognizer.skip(state, wait)
                t += 1 + int(wait)
        assert used == gates[0].nonzero().flatten().tolist()
        looks.append(len(used))
    assert looks == sorted(set(looks))


def test_the_last_budget_counts(model):
    once, twice = with_budget(model, 0.5), with_budget(with_budget(model, 0.1), 0.5)
    torch.testing.assert_close(twice.recognizer.recurrent.update_bias, once.recognizer.recurrent.update_bias)
    np.testing.assert_allclose(twice.budget_curve, once.budget_curve, atol=1e-6)


def test_a_curve_that_is_not_monotone_is_read_as_one_that_is(model):
    curve = ((-1.0, 0.1), (0.0, 0.4), (1.0, 0.3), (2.0, 0.8), (3.0, 0.7))
    wavy = dataclasses.replace(model, budget_curve=curve)
    deltas = [float(with_budget(wavy, share).budget_curve[0][0]) for share in (0.1, 0.3, 0.4, 0.6, 0.8)]
    assert deltas == sorted(deltas, reverse=True)  # the curve moves down as the budget goes up
    with pytest.raises(InputError, match=r"it can look at 0\.1 to 0\.8 of the frames"):
        with_budget(wavy, 0.05)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_is_a_share(model, share):
    with pytest.raises(InputError, match=r"above 0 and at most 1"):
        with_budget(model, share)


def test_networks_without_a_budget_are_refused(examples):
    for cell, gate in (("gru", RandomGate(0.5)), ("mean", None)):
        network = untrained(spec(DIM), cell=cell, gate=gate)
        with pytest.raises(InputError, match=f"cell {cell}, .*leave the budget out"):
            with_budget(network, 0.5)
        with pytest.raises(ValueError, match="does not learn its gate"):
            measure_curve(network.recognizer, examples)


def listing(features: str, splits: dict[str, int]) -> Manifest:
    entries, number = [], 0
    for split, count in splits.items():
        for _ in range(count):
            write_sequence(features, f"{split}{number}", np.zeros((3, DIM)))
            entries.append(VideoEntry(f"{split}{number}", "a.mp4", split, 2.0, ()))
            number += 1
    return Manifest(tuple(entries), ("low", "high"))


def test_a_curve_is_measured_on_a_validation_split_if_there_is_one(tmp_path):
    manifest, features = two_class_corpus(tmp_path, num_train=4, num_test=2)
    feature_set, training = FeatureSet(features), drawn_examples(250, seed=1)
    without = calibration_examples(feature_set, read_manifest(manifest), training, task="frames")
    assert 50 < len(without) <= 100
    assert {id(example) for example in without} <= {id(example) for example in training}
    with_split = listing(features, {"val": 3})
    chosen = calibration_examples(FeatureSet(features), with_split, training, task="frames")
    assert [example.sequence.video_id for example in chosen] == ["val0", "val1", "val2"]
    # Without exactly one label a video is of no use for task video.
    assert len(calibration_examples(FeatureSet(features), with_split, training, task="video")) == len(without)


def test_a_validation_split_with_nan_is_not_passed_over(tmp_path):
    _, features = two_class_corpus(tmp_path, num_train=4, num_test=2)
    with_split = listing(features, {"val": 2})
    write_sequence(features, "val1", np.full((3, DIM), np.nan))
    with pytest.raises(FeatureSetError, match=r"'val1' \(split 'val'\)"):
        calibration_examples(FeatureSet(features), with_split, [], task="frames")


@pytest.fixture
def stored(tmp_path):
    """The words of an evaluation, and the function that writes its checkpoint with or without a curve."""
    manifest, features = two_class_corpus(tmp_path)
    feature_set = FeatureSet(features)
    examples = load_examples(feature_set, read_manifest(manifest), split="test", task="frames")
    network = untrained(feature_set.spec, class_names=("low", "high"), num_layers=1, update_bias=1.0, spread=1.0)
    words = ["evaluate", "--model", str(tmp_path / "net"), "--manifest", manifest, "--features", features]

    def save(*, with_curve: bool) -> list[str]:
        curve = {"budget_curve": measure_curve(network.recognizer, examples)} if with_curve else {}
        save_model(tmp_path / "net", network, **curve)
        return words

    return save


def test_evaluate_measures_a_network_at_a_budget(stored, capsys):
    words = stored(with_curve=True)
    shares = []
    for more in (["--budget", "0.3"], ["--budget", "0.6"], []):
        assert main([*words, *more]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["budget"] == (float(more[1]) if more else None)
        shares.append(result["update_share"])
    assert shares[:2] == pytest.approx([0.3, 0.6], rel=0.15)
    assert shares[2] > 0.7


def test_a_checkpoint_of_an_earlier_version_loads_and_says_why_it_has_no_budget(stored, tmp_path, capsys):
    words = stored(with_curve=False)
    assert load_model(tmp_path / "net").budget_curve is None
    assert main(words) == 0
    assert main([*words, "--budget", "0.5"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*words, "--budget", "0.5"]) == 1
    assert "trained by an earlier version: train it again" in capsys.readouterr().err
