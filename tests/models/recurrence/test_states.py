"""Rows taken out of states and joined again, as by a caller whose rows fall due at different times."""

import pytest
import torch

from skipreel.models import SkipGRU, SkipLSTM, SkipState, rows_of, stack_states

LAYERS = [SkipGRU, SkipLSTM]


def drawn(layer: type[SkipGRU | SkipLSTM], rows: int, *, seed: int = 0) -> SkipState:
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    c = values(2, rows, 3) if layer.has_cell_state else None
    return SkipState(values(2, rows, 3), c, values(rows), values(rows))


def assert_equal(actual: SkipState, expected: SkipState) -> None:
    for ours, part in zip(actual, expected, strict=True):
        assert (ours is None) == (part is None)
        assert ours is None or (part is not None and torch.equal(ours, part))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_rows_of_a_state_stacked_again_are_the_state(layer: type[SkipGRU | SkipLSTM]) -> None:
    state = drawn(layer, 5)
    assert_equal(stack_states([rows_of(state, slice(b, b + 1)) for b in range(5)]), state)
    assert_equal(stack_states([rows_of(state, slice(0, 2)), rows_of(state, slice(2, None))]), state)
    assert_equal(stack_states([state]), state)


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_come_in_the_order_asked_for(layer: type[SkipGRU | SkipLSTM]) -> None:
    state = drawn(layer, 4)
    single = [rows_of(state, slice(b, b + 1)) for b in range(4)]
    assert_equal(rows_of(state, torch.tensor([3, 1])), stack_states([single[3], single[1]]))
    assert_equal(rows_of(state, torch.tensor([True, False, False, True])), stack_states([single[0], single[3]]))


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_by_index_and_stacks_are_copies_rows_by_slice_are_views(layer: type[SkipGRU | SkipLSTM]) -> None:
    state = drawn(layer, 3)
    before = SkipState(*(None if part is None else part.clone() for part in state))
    for copy in (rows_of(state, torch.tensor([0, 2])), stack_states([state])):
        for part in copy:
            if part is not None:
                part.fill_(torch.nan)
    assert_equal(state, before)
    rows_of(state, slice(1, 2)).h.fill_(7)
    assert state.h[:, 1].eq(7).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_batch_can_be_stepped_in_parts(layer: type[SkipGRU | SkipLSTM]) -> None:
    torch.manual_seed(0)
    network = layer(4, 3, 2)
    x = torch.randn(6, 4)
    whole = network.step(x, limit=9)[1]
    state = network.initial_state(6)
    parts = [network.step(x[rows], rows_of(state, rows), limit=9)[1] for rows in torch.arange(6).split([1, 3, 2])]
    for ours, part in zip(stack_states(parts), whole, strict=True):
        if ours is not None and part is not None:
            torch.testing.assert_close(ours, part)


def test_nothing_and_states_of_two_kinds_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="at least 1 state"):
        stack_states([])
    with pytest.raises(ValueError, match="1 of 2 states have a c"):
        stack_states([drawn(SkipLSTM, 1), drawn(SkipGRU, 1)])
