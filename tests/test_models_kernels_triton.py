"""The Triton kernels: in Triton's interpreter against autograd through the reference, and compiled for a GPU of today.

Whether Triton interprets is settled when it is first imported. So checks run in two processes of their own, which start
with TRITON_INTERPRET set and not set, whatever this one has imported.

Letters: B batch, T steps, H hidden.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels import triton_ops
from models.kernels.problem import Adjoints, Answer, CellName, Incoming, Problem
from models.kernels.triton_ops import Tiling
from models.reference import LayerWeights, SkipWeights, accumulate
from test_models_kernels_torch_ops import autograd, gradients, make_problem, reference, uneven
from tolerances import assert_close

CELLS: tuple[CellName, ...] = ("lstm", "gru", "gru_reset_after")
GATING = {"open": 30.0, "mixed": -1.5, "shut after the first": -30.0}
LENGTHS = torch.tensor([9, 0, 6, 1, 8])
SHAPE = 9, 5, 3
FLOAT32_ROWS_OF_EACH = (1, 2, 16)
SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on an H100."""

Run = Callable[..., Any]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
each_cell = pytest.mark.parametrize("cell", CELLS)


@contextmanager
def process(tmp_path: Path, *, interpret: bool) -> Iterator[Executor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", str(int(interpret)))
            patch.setenv("TRITON_CACHE_DIR", str(tmp_path))
            pool.submit(os.getpid).result()  # it starts now, and keeps these
        yield pool


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a function of this module where Triton's kernels are interpreted."""
    with process(tmp_path_factory.mktemp("triton"), interpret=True) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=120)


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a function of this module where Triton compiles."""
    with process(tmp_path_factory.mktemp("triton"), interpret=False) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=300)


def answers(problem: Problem, upstream: list[Tensor | None]) -> tuple[Answer, Answer, Adjoints]:
    """Forward without a trace and with one, and the backward of the latter."""
    assert triton_ops.supports(problem) is None
    answer = triton_ops.forward(problem, save=True)
    assert answer.trace is not None
    incoming = Incoming(*upstream)._replace(**({} if problem.gates is None else {"gates": None}))
    adjoints = triton_ops.backward(problem, answer.trace, incoming, needs_x=True)
    return triton_ops.forward(problem, save=False), answer, adjoints


def check(problem: Problem, *, tiling: Tiling | None = None, scale: float = 1.0) -> None:
    """Both kinds of forward, and every gradient of a loss that depends on everything; scale: of that loss."""
    if tiling is not None:
        triton_ops.tiling, kept = lambda _: tiling, triton_ops.tiling
    parts = reference(problem)
    upstream = [None if part is None else scale * part for part in uneven(parts)]
    try:
        without, answer, adjoints = answers(problem, upstream)
    finally:
        if tiling is not None:
            triton_ops.tiling = kept
    for one in (without, answer):
        *values, gates = [one.output, *one.state, one.gates]
        assert parts[-1] is not None
        assert torch.equal(gates, parts[-1])
        for value, expected in zip(values, parts, strict=False):
            assert (value is None) == (expected is None)
            if value is not None and expected is not None:
                assert_close(value, expected.detach())
    assert answer.trace is not None
    actual = gradients(problem, answer.trace, adjoints)
    for name, gradient in autograd(problem, parts, upstream).items():
        largest = gradient.abs().max().clamp_min(scale)
        try:
            assert_close(actual[name] / largest, gradient / largest)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def problem_of(cell: CellName, shape: tuple[int, int, int] = SHAPE, **arguments: Any) -> Problem:
    return make_problem(cell, shape=shape, dtype=torch.float32, **arguments)


def check_problem(cell: CellName, tiling: Tiling | None = None, scale: float = 1.0, **arguments: Any) -> None:
    check(problem_of(cell, **arguments), tiling=tiling, scale=scale)


@needs_triton
@each_cell
@pytest.mark.parametrize("gating", GATING)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("midway", [False, True])
def test_equal_to_stepping(
    interpreted: Run, cell: CellName, gating: str, lengths: Tensor | None, midway: bool
) -> None:
    interpreted(check_problem, cell, update_bias=GATING[gating], lengths=lengths, midway=midway)


@needs_triton
@each_cell
@pytest.mark.parametrize("share", [0.4, 1.0, 0.0])
def test_equal_to_stepping_under_given_gates(interpreted: Run, cell: CellName, share: float) -> None:
    gates = torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(2)) < share
    interpreted(check_problem, cell, midway=True, lengths=LENGTHS, gates=gates)
    interpreted(check_problem, cell, gates=gates)


@needs_triton
@each_cell
@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1, 1), 1), ((1, 3, 2), 5), ((7, 1, 9), 4), ((6, 17, 2), 23)], ids=str
)
def test_odd_sizes(interpreted: Run, cell: CellName, shape: tuple[int, int, int], size: int) -> None:
    interpreted(check_problem, cell, shape=shape, size=size, update_bias=-1.0)


@needs_triton
@each_cell
@pytest.mark.parametrize("tiling", [Tiling(1, None), Tiling(2, None), Tiling(16, "float32")], ids=str)
def test_equal_to_stepping_in_every_tiling(interpreted: Run, cell: CellName, tiling: Tiling) -> None:
    interpreted(check_problem, cell, tiling=tiling, lengths=LENGTHS, midway=True)


@needs_triton
@each_cell
def test_small_adjoints_survive_products_of_narrow_operands(interpreted: Run, cell: CellName) -> None:
    """In float16 most of these would be 0: it ends at 6e-8."""
    interpreted(check_problem, cell, tiling=Tiling(8, "float32"), scale=1e-12)
    interpreted(check_narrow, cell, scale=1e-12)


def check_narrow(cell: CellName, *, scale: float) -> None:
    problem = problem_of(cell, update_bias=30.0)
    upstream = [None if part is None else scale * part for part in uneven(reference(problem))]
    exact = answers(problem, upstream)[2].pre_activation
    triton_ops.tiling = lambda _: Tiling(8, "float16")  # type: ignore[assignment]
    narrow = answers(problem, upstream)[2].pre_activation
    assert exact is not None
    assert narrow is not None
    assert 0 < (narrow - exact).norm() < 2e-3 * exact.norm()
