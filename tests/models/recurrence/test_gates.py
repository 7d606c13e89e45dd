"""Schedules of gates, and the jump to the next learned update."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skipreel.models.recurrence.gates import (
    TABLE_SIZE,
    Gate,
    LearnedGate,
    RandomGate,
    StridedGate,
    accumulate_steps,
    gate_from_json,
    gate_to_json,
    negated_thresholds,
    steps_until_update,
)
from skipreel.models.recurrence.reference import accumulate, binarise


def stepwise(p: torch.Tensor, a: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The gates (T, B) that the recurrence would take while p stays."""
    gates = []
    for _ in range(num_steps):
        a = accumulate(p, a)
        u = binarise(a)
        a = (1 - u) * a
        gates.append(u)
    return torch.stack(gates)


probabilities = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(0, 2**-7, width=32),
    st.integers(1, 90).map(lambda n: float(torch.tensor(0.5 / n))),  # at and around the ties
    st.integers(1, 90).map(lambda n: float(torch.nextafter(torch.tensor(0.5 / n), torch.tensor(1.0)))),
    st.integers(1, 90).map(lambda n: float(torch.nextafter(torch.tensor(0.5 / n), torch.tensor(0.0)))),
)


@settings(deadline=None)
@given(st.lists(probabilities, min_size=1, max_size=6))
@example([0.5, 0.25, 0.1, 1 / 6])
@example([0.0, 1e-45, 1e-30, 1.0])
def test_the_jump_lands_on_the_first_update_of_stepping(values: list[float]) -> None:
    limit = 64
    p = torch.tensor(values)
    gates = stepwise(p, torch.zeros_like(p), limit)
    expected = torch.where(gates.any(0), gates.argmax(0) + 1, limit + 1)
    assert torch.equal(steps_until_update(p, limit=limit), expected)


@settings(deadline=None)
@given(st.lists(probabilities, min_size=1, max_size=6), st.integers(0, 20))
def test_the_jump_can_start_while_waiting(values: list[float], waited: int) -> None:
    p = torch.tensor(values)
    whole = steps_until_update(p, limit=64)
    a = torch.zeros_like(p)
    for _ in range(waited):
        a = torch.where(accumulate(p, a) <= 0.5, accumulate(p, a), a)
    rest = steps_until_update(p, a=a, limit=64)
    reachable = (whole > waited) & (whole <= 64)
    assert torch.equal(rest[reachable], (whole - waited)[reachable])


def waited(p: torch.Tensor, a: torch.Tensor, limit: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What `steps_until_update` promises, one step after another; and the sums on the way, limit + 1 of (B,)."""
    steps, sums = torch.ones(p.shape, dtype=torch.int64), [a]
    for _ in range(limit):
        sums.append(accumulate(p, sums[-1]))
        steps += sums[-1] <= 0.5
    return steps, sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(probabilities, st.floats(0, 1, width=32)), min_size=1, max_size=5),
    limit=st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 600]),
)
@example(rows=[(2**-9, 0.0), (0.5 / 200, 0.25)], limit=300)
@example(rows=[(0.3, 0.7), (1.0, 1.0), (0.0, 0.5)], limit=3)
def test_a_long_wait_is_the_plain_accumulation_of_its_steps(
    dtype: torch.dtype, rows: list[tuple[float, float]], limit: int
) -> None:
    p, a = (torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True))
    steps, sums = waited(p, a, limit)
    assert torch.equal(steps_until_update(p, a=a, limit=limit), steps)
    for count in {0, 1, limit // 2, limit}:
        counts = torch.minimum(torch.tensor(count), steps - 1)
        expected = torch.stack([sums[n][row] for row, n in enumerate(counts.tolist())])
        assert torch.equal(accumulate_steps(p, a, counts), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [0, 1, 200, 400])
def test_the_jump_is_exact_at_every_threshold_of_its_table_and_beyond(dtype: torch.dtype, limit: int) -> None:
    assert TABLE_SIZE < 400
    eq_6 = 0.5 / torch.arange(1, 400, dtype=dtype)
    edges = -negated_thresholds(512, dtype, torch.device("cpu"))[1:]
    p = torch.cat([eq_6, edges, torch.nextafter(edges, torch.zeros((), dtype=dtype)), torch.zeros(1, dtype=dtype)])
    expected, _ = waited(p, torch.zeros_like(p), limit)
    assert torch.equal(steps_until_update(p, limit=limit), expected)
    short = p[expected <= 200]  # without the rows that must be added up
    assert torch.equal(steps_until_update(short, limit=limit), expected[expected <= 200])


def test_what_is_not_a_number_does_not_wait_and_holds_up_no_other_row() -> None:
    p, a = torch.tensor([torch.nan, 0.2, 0.2]), torch.tensor([0.0, 0.0, torch.nan])
    assert steps_until_update(p, limit=100).tolist() == [1, 3, 3]
    assert steps_until_update(p, a=a, limit=100).tolist() == waited(p, a, 100)[0].tolist() == [1, 3, 1]
    after = accumulate_steps(p, a, torch.tensor([0, 2, 1]))
    assert after[:2].tolist() == [0.0, pytest.approx(0.4)]
    assert after[2].isnan()


def test_a_wait_has_the_gradients_of_its_steps() -> None:
    a, p = torch.tensor([0.1, 0.0, 0.3], requires_grad=True), torch.tensor([0.02, 0.3, 0.15], requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0])
    counts = torch.tensor([7, 0, 1])
    _, sums = waited(p, a, 7)
    expected = torch.stack([sums[n][row] for row, n in enumerate(counts.tolist())])
    actual = accumulate_steps(p, a, counts)
    assert torch.equal(actual, expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual @ weight, (p, a)), torch.autograd.grad(expected @ weight, (p, a)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_jump_at_ties() -> None:
    assert steps_until_update(torch.tensor([0.5, 0.25, 0.1, 1 / 6, 1.0])).tolist() == [2, 3, 6, 4, 1]


def test_the_jump_ends_for_probabilities_that_never_reach_half() -> None:
    p = torch.tensor([0.0, 1e-45, 1e-20, 0.3])
    assert steps_until_update(p, limit=7).tolist() == [8, 8, 8, 2]
    assert steps_until_update(p, limit=0).tolist() == [1, 1, 1, 1]


def test_the_jump_refuses_what_it_cannot_answer() -> None:
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.bfloat16"):
        steps_until_update(torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="limit must be 0 steps or more, got -1"):
        steps_until_update(torch.ones(1), limit=-1)


def test_a_stride_of_one_is_dense_and_a_whole_stride_takes_every_nth() -> None:
    assert StridedGate(1.0).schedule(5, batch_size=2).tolist() == [[1.0, 1.0]] * 5
    assert StridedGate(3).schedule(8).flatten().tolist() == [1, 0, 0, 1, 0, 0, 1, 0]


def test_a_broken_stride_by_hand() -> None:
    # ⌊t / 1.5⌋ for t = 0…6 is 0 0 1 2 2 3 4.
    assert StridedGate(1.5).schedule(7).flatten().tolist() == [1, 0, 1, 1, 0, 1, 1]


@settings(deadline=None)
@given(st.floats(1, 50), st.integers(1, 200))
def test_a_stride_meets_its_budget(stride: float, num_steps: int) -> None:
    used = StridedGate(stride).schedule(num_steps).sum().item()
    assert abs(used - num_steps / stride) <= 1
    assert StridedGate(stride).schedule(num_steps)[0].item() == 1


def test_random_gates_skip_as_often_as_asked() -> None:
    num_steps, p_skip = 20_000, 0.3
    for gates in (
        RandomGate(p_skip, seed=1).schedule(num_steps)[1:],
        RandomGate(p_skip).sample(200, batch_size=100, generator=torch.Generator().manual_seed(0))[1:],
    ):
        deviation = (p_skip * (1 - p_skip) / gates.numel()) ** 0.5
        assert abs(gates.mean().item() - (1 - p_skip)) < 4 * deviation
        assert set(gates.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("p_skip", "used"), [(0.0, 1.0), (1.0, 0.0)])
def test_random_gates_at_the_ends_of_the_range_still_use_the_first_step(p_skip: float, used: float) -> None:
    for gates in (RandomGate(p_skip).schedule(50, batch_size=3), RandomGate(p_skip).sample(50, batch_size=3)):
        assert gates[0].tolist() == [1, 1, 1]
        assert gates[1:].eq(used).all()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**40))
def test_in_evaluation_a_random_gate_depends_on_seed_and_step_alone(
    short: int, longer: int, batch_size: int, seed: int
) -> None:
    gate = RandomGate(0.5, seed)
    schedule = gate.schedule(short + longer, batch_size=batch_size)
    assert torch.equal(schedule[:short], gate.schedule(short).expand(-1, batch_size))


@pytest.mark.parametrize("gate", [RandomGate(0.6, seed=4), StridedGate(2.5)])
@pytest.mark.parametrize("key", [None, "", "0UNUJ"])
def test_a_stream_of_gates_is_the_schedule_of_its_key(gate: RandomGate | StridedGate, key: str | None) -> None:
    schedule = gate.schedule(1500, key=key)[:, 0].bool().tolist()
    assert list(islice(gate.stream(key=key), 1500)) == schedule


def test_each_key_has_a_mask_of_its_own_beside_the_one_without() -> None:
    masks = {tuple(RandomGate(0.5).schedule(64, key=key)[:, 0].tolist()) for key in (None, "", "a", "b", "a")}
    assert len(masks) == 4
    share = np.mean([RandomGate(0.75).schedule(100, key=str(number)).mean() for number in range(100)])
    assert share == pytest.approx(0.25 + 0.0075, abs=0.02)
    assert len({tuple(StridedGate(2).schedule(9, key=key)[:, 0].tolist()) for key in (None, "a", "b")}) == 1


def test_another_seed_is_another_mask() -> None:
    assert not torch.equal(RandomGate(0.5, seed=0).schedule(100), RandomGate(0.5, seed=1).schedule(100))


def test_training_masks_are_fresh_for_every_row_and_reproducible_from_a_generator() -> None:
    gate = RandomGate(0.5)
    first, second = gate.sample(100, batch_size=2), gate.sample(100, batch_size=2)
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])
    again = [gate.sample(100, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_an_evaluation_mask_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    RandomGate(0.5).schedule(10)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("p_skip", [-0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_refused(p_skip: float) -> None:
    with pytest.raises(ValueError, match=f"allowed are 0 to 1, got {p_skip}"):
        RandomGate(p_skip)


@pytest.mark.parametrize("stride", [0.99, 0.0, -2.0, float("nan"), float("inf")])
def test_a_stride_out_of_range_is_refused(stride: float) -> None:
    with pytest.raises(ValueError, match=f"1 or more, got {stride}"):
        StridedGate(stride)


def test_a_negative_seed_and_an_empty_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        RandomGate(0.5, seed=-1)
    with pytest.raises(ValueError, match="num_steps=0, batch_size=1"):
        StridedGate(2).schedule(0)


@pytest.mark.parametrize("gate", [LearnedGate(), RandomGate(0.25, seed=7), StridedGate(2.5)])
def test_gates_survive_json(gate: Gate) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "psychic"}, "unknown gate kind 'psychic', allowed are learned, random, strided"),
        ({}, "unknown gate kind None"),
        ({"kind": "strided"}, "a strided gate cannot be made from {}"),
        ({"kind": "learned", "seed": 1}, "a learned gate cannot be made from {'seed': 1}"),
        ({"kind": "random", "p_skip": 2}, "p_skip is a probability"),
    ],
)
def test_a_malformed_gate_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_from_json(data)
