"""Losses, metrics and the cost model against numbers worked out by hand, the paper's, and scikit-learn's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from skipreel.models import (
    Cost,
    accuracy,
    average_precision,
    budget_loss,
    mean_average_precision,
    multiply_accumulates,
    task_loss,
)
from tests.support.tolerances import TOLERANCES, assert_close

DOUBLE = TOLERANCES[torch.float64]


def close(value: float) -> object:
    return pytest.approx(value, rel=DOUBLE.rtol, abs=DOUBLE.atol)


def test_frames_loss_by_hand_over_valid_frames_only() -> None:
    logits = torch.tensor([[[0.5, -1.0], [2.0, 0.0]], [[-0.3, 1.5], [99.0, math.nan]]], dtype=torch.float64)
    targets = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]])
    signed = [0.5, 1.0, -2.0, 0.0, -0.3, 1.5]  # the logit where positive, minus it where not
    expected = sum(math.log1p(math.exp(-value)) for value in signed) / len(signed)
    assert task_loss(logits, targets, torch.tensor([2, 1]), task="frames").mean.item() == close(expected)


def test_padding_gets_no_gradient_from_the_frames_loss() -> None:
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    task_loss(logits, torch.ones(2, 3, 4), torch.tensor([3, 1]), task="frames").mean.backward()
    assert logits.grad is not None
    assert logits.grad[1, 1:].eq(0).all()
    assert logits.grad[0].ne(0).all()


def test_video_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(1.0)) + math.log1p(math.exp(-1.0))) / 2
    assert task_loss(logits, torch.tensor([0, 0]), torch.tensor([5, 5]), task="video").mean.item() == close(expected)


@pytest.mark.parametrize("task", ["frames", "video"])
def test_the_losses_of_parts_add_up_to_that_of_the_whole(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    lengths, targets = torch.tensor([4, 1, 2]), (logits.roll(1) > 0).double()
    if task == "video":
        logits, targets = logits[:, 0], torch.tensor([0, 4, 2])
    whole = task_loss(logits, targets, lengths, task=task)  # type: ignore[arg-type]
    parts = [task_loss(logits[rows], targets[rows], lengths[rows], task=task) for rows in ([0], [1, 2])]  # type: ignore[arg-type]
    assert whole.count == sum(part.count for part in parts) == (7 * 5 if task == "frames" else 3)
    assert whole.total.item() == close(sum(part.total.item() for part in parts))
    gates = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    budgets = [budget_loss(gates[rows], weight=0.5) for rows in ([0], [1, 2], [0, 1, 2])]
    assert [budget.count for budget in budgets] == [1, 2, 3]
    assert budgets[2].total.item() == close(budgets[0].total.item() + budgets[1].total.item())


@pytest.mark.parametrize("task", ["frames", "video"])
def test_losses_of_narrow_logits_are_float32(task: str) -> None:
    shape = (2, 3, 4) if task == "frames" else (2, 4)
    targets = torch.zeros(shape) if task == "frames" else torch.zeros(2, dtype=torch.int64)
    loss = task_loss(torch.zeros(shape, dtype=torch.bfloat16), targets, torch.tensor([3, 3]), task=task)  # type: ignore[arg-type]
    assert loss.total.dtype == loss.mean.dtype == torch.float32


def test_losses_refuse_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"logits and targets must be \(B, T, C\).*\(2, 3, 4\), \(2, 3\), \(2,\)"):
        task_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.tensor([1, 1]), task="frames")
    with pytest.raises(ValueError, match=r"targets \(B,\), got \(2, 4\), \(3,\)"):
        task_loss(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), torch.tensor([1, 1]), task="video")
    with pytest.raises(ValueError, match=r"no frame is valid, got lengths \[0, 0\]"):
        task_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([0, 0]), task="frames")


def test_budget_loss_by_hand() -> None:
    gates = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = budget_loss(gates, weight=0.1).mean
    loss.backward()
    assert loss.item() == close(0.1 * (2 + 3) / 2)
    assert gates.grad is not None
    assert_close(gates.grad, torch.full((2, 3), 0.05, dtype=torch.float64))
    assert budget_loss(gates, weight=0.1, lengths=torch.tensor([1, 2])).mean.item() == close(0.1 * (1 + 2) / 2)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_budget_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"0 or more, got {weight}"):
        budget_loss(torch.ones(1, 1), weight=weight)


def test_average_precision_by_hand() -> None:
    # Ranked: + − + − −; the positives stand at ranks 1 and 3.
    scores = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.2])
    positives = torch.tensor([0, 1, 0, 1, 0])
    assert average_precision(scores, positives) == close((1 / 1 + 2 / 3) / 2)


def test_equal_scores_rank_in_the_order_given() -> None:
    ties = torch.zeros(40)
    positives = torch.zeros(40, dtype=torch.bool)
    positives[[0, 1]] = True
    assert average_precision(ties, positives) == 1
    assert average_precision(ties, positives.flip(0)) == close((1 / 39 + 2 / 40) / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-10_000, 10_000), st.booleans()), min_size=1, unique_by=lambda row: row[0]))
def test_average_precision_is_that_of_sklearn_without_ties(rows: list[tuple[int, bool]]) -> None:
    scores, positives = zip(*rows, strict=True)
    actual = average_precision(torch.tensor(scores, dtype=torch.float32), torch.tensor(positives))
    if any(positives):
        assert actual == close(average_precision_score(positives, scores))
    else:
        assert math.isnan(actual)


def test_classes_without_positives_are_left_out_of_the_mean() -> None:
    scores = torch.tensor([[0.9, 0.3, -math.inf], [0.1, 0.6, 0.2]])
    targets = torch.tensor([[1, 0, 1], [0, 0, 0]])
    mean, per_class = mean_average_precision(scores, targets)
    assert mean == close((1 + 0.5) / 2)
    assert per_class[[0, 2]].tolist() == [1.0, 0.5]
    assert per_class[1].isnan()
    assert math.isnan(mean_average_precision(scores, torch.zeros(2, 3))[0])


def test_metrics_refuse_nan_scores_and_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="scores must not be NaN"):
        average_precision(torch.tensor([0.1, math.nan]), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        average_precision(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        mean_average_precision(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"N of 1 or more, got \(0, 3\) and \(0,\)"):
        accuracy(torch.zeros(0, 3), torch.zeros(0))


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


@pytest.mark.parametrize(
    ("cell", "input_size", "num_steps", "published"),
    [("lstm", 2, 50, 2.46e6), ("gru", 2, 50, 1.85e6), ("lstm", 1, 784, 3.83e7), ("gru", 1, 784, 2.87e7)],
)
def test_multiply_accumulates_are_the_papers(cell: str, input_size: int, num_steps: int, published: float) -> None:
    per_update = multiply_accumulates(cell, input_size=input_size, hidden_size=110)  # type: ignore[arg-type]
    assert float(f"{num_steps * per_update:.2e}") == published


def test_multiply_accumulates_of_a_stack() -> None:
    per_layer = 4 * 512 * (512 + 2048) + 4 * 512 * (512 + 512)
    assert multiply_accumulates("lstm", input_size=2048, hidden_size=512, num_layers=2) == per_layer
    with pytest.raises(ValueError, match="one of lstm, gru, got 'mean'"):
        multiply_accumulates("mean", input_size=1, hidden_size=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden_size=0"):
        multiply_accumulates("gru", input_size=1, hidden_size=0)


def test_costs_add_and_what_was_not_measured_stays_unknown() -> None:
    first = Cost(
        frames_total=10, frames_wanted=3, frames_decoded=5, frames_encoded=3, state_updates=3, frames_converted=2
    )
    second = Cost(
        frames_total=20, frames_wanted=4, frames_decoded=9, frames_encoded=None, state_updates=4, frames_converted=5
    )
    assert first + second == Cost(
        frames_total=30, frames_wanted=7, frames_decoded=14, frames_encoded=None, state_updates=7, frames_converted=7
    )


def test_impossible_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="frames_wanted 4 is more than frames_total 3"):
        Cost(frames_total=3, frames_wanted=4, frames_decoded=None, frames_encoded=None, state_updates=4)
    with pytest.raises(ValueError, match="frames_decoded must be 0 or more, got -1"):
        Cost(frames_total=3, frames_wanted=3, frames_decoded=-1, frames_encoded=None, state_updates=3)
