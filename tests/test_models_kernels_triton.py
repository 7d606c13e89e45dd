"""The Triton kernels: in Triton's interpreter against autograd through the reference, and compiled for a GPU of today.

Whether Triton interprets is settled when it is first imported. So checks run in two processes of their own, which start
with TRITON_INTERPRET set and not set, whatever this one has imported.

Letters: B batch, T steps, H hidden.
"""

import contextlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from models import SkipGRU, SkipLSTM
from models.kernels import triton_ops
from models.kernels.problem import Adjoints, Answer, CellName, Incoming, Problem
from models.kernels.triton_ops import Tiling
from models.reference import accumulate
from test_models_kernels_event import autograd, gradients, make_problem, reference, uneven
from tolerances import assert_close

CELLS: tuple[CellName, ...] = ("lstm", "gru", "gru_reset_after")
GATING = {"open": 30.0, "mixed": -1.5, "shut after the first": -30.0}
LENGTHS = torch.tensor([9, 0, 6, 1, 8])
SHAPE = 9, 5, 3
SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on an H100."""

Run = Callable[..., Any]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
each_cell = pytest.mark.parametrize("cell", CELLS)


@contextlib.contextmanager
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
    assert triton_ops.hindrance(problem) is None
    answer = triton_ops.forward(problem, save=True)
    assert answer.trace is not None
    incoming = Incoming(*upstream)._replace(**({} if problem.gates is None else {"gates": None}))
    adjoints = triton_ops.backward(problem, answer.trace, incoming, needs_x=True)
    return triton_ops.forward(problem, save=False), answer, adjoints


def check(problem: Problem, *, scale: float = 1.0) -> None:
    """Both kinds of forward, and every gradient of a loss that depends on everything; scale: of that loss."""
    parts = reference(problem)
    upstream = [None if part is None else scale * part for part in uneven(parts)]
    without, answer, adjoints = answers(problem, upstream)
    for one in (without, answer):
        *values, gates = [one.output, *one.state, one.gates]
        assert torch.equal(gates, parts[-1])
        for value, expected in zip(values, parts, strict=False):
            assert (value is None) == (expected is None)
            if value is not None:
                assert_close(value, expected.detach())
    actual = gradients(problem, answer.trace, adjoints)
    for name, gradient in autograd(problem, parts, upstream).items():
        largest = gradient.abs().max().clamp_min(scale)
        try:
            assert_close(actual[name] / largest, gradient / largest)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def small(cell: CellName, shape: tuple[int, int, int] = SHAPE, **arguments: Any) -> Problem:
    return make_problem(cell, shape=shape, dtype=torch.float32, **arguments)


def check_small(cell: CellName, *, tiling: Tiling | None = None, scale: float = 1.0, **arguments: Any) -> None:
    with contextlib.ExitStack() as stack:
        if tiling is not None:
            stack.enter_context(mock.patch.object(triton_ops, "tiling", return_value=tiling))
        check(small(cell, **arguments), scale=scale)


@needs_triton
@each_cell
@pytest.mark.parametrize("gating", GATING)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("midway", [False, True])
def test_equal_to_stepping(interpreted: Run, cell: CellName, gating: str, lengths: Tensor | None, midway: bool) -> None:
    interpreted(check_small, cell, update_bias=GATING[gating], lengths=lengths, midway=midway)


@needs_triton
@each_cell
@pytest.mark.parametrize("share", [0.4, 1.0, 0.0])
def test_equal_to_stepping_under_given_gates(interpreted: Run, cell: CellName, share: float) -> None:
    gates = torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(2)) < share
    interpreted(check_small, cell, midway=True, lengths=LENGTHS, gates=gates)
    interpreted(check_small, cell, gates=gates)


@needs_triton
@each_cell
@pytest.mark.parametrize(("shape", "size"), [((1, 1, 1), 1), ((1, 3, 2), 5), ((7, 1, 9), 4), ((6, 17, 2), 23)], ids=str)
def test_odd_sizes(interpreted: Run, cell: CellName, shape: tuple[int, int, int], size: int) -> None:
    interpreted(check_small, cell, shape=shape, size=size, update_bias=-1.0)


@needs_triton
@each_cell
@pytest.mark.parametrize("tiling", [Tiling(1, None), Tiling(2, None), Tiling(16, "float32")], ids=str)
def test_equal_to_stepping_in_every_tiling(interpreted: Run, cell: CellName, tiling: Tiling) -> None:
    interpreted(check_small, cell, tiling=tiling, lengths=LENGTHS, midway=True)


@needs_triton
@each_cell
def test_small_adjoints_survive_narrow_products(interpreted: Run, cell: CellName) -> None:
    interpreted(check_small, cell, tiling=Tiling(8, "float32"), scale=1e-12)
    interpreted(check_narrow, cell, scale=1e-12)


def check_narrow(cell: CellName, *, scale: float) -> None:
    """In float16 most of these adjoints would be 0: it ends at 6e-8."""
    problem = small(cell, update_bias=30.0)
    upstream = [None if part is None else scale * part for part in uneven(reference(problem))]
    exact = answers(problem, upstream)[2].pre_activation
    with mock.patch.object(triton_ops, "tiling", return_value=Tiling(8, "float16")):
        narrow = answers(problem, upstream)[2].pre_activation
    assert 0 < (narrow - exact).norm() < 2e-3 * exact.norm()


@needs_triton
def test_sums_over_long_segments(interpreted: Run) -> None:
    interpreted(check_small, "gru", shape=(37, 3, 1), size=3, update_bias=-3.0, lengths=torch.tensor([37, 20, 0]))


@needs_triton
def test_gradients_of_any_strides_and_of_one_part_alone(interpreted: Run) -> None:
    interpreted(check_parts)


def check_parts() -> None:
    problem = small("lstm", lengths=LENGTHS)
    whole = uneven(reference(problem))
    upstreams = [
        [grad if place == kept else None for place, grad in enumerate(whole)] for kept in range(len(Incoming._fields))
    ]
    by_output = whole[0]
    assert by_output is not None
    upstreams.append([torch.ones(()).expand_as(by_output), *[None] * 5])
    upstreams.append([by_output.permute(1, 2, 0).contiguous().permute(2, 0, 1), *[None] * 5])
    for upstream in upstreams:
        _, answer, adjoints = answers(problem, upstream)
        actual = gradients(problem, answer.trace, adjoints)
        for name, gradient in autograd(problem, reference(problem), upstream).items():
            largest = gradient.abs().max().clamp_min(1)
            assert_close(actual[name] / largest, gradient / largest)


@needs_triton
def test_steps_or_rows_first_in_memory(interpreted: Run) -> None:
    interpreted(check_strides)


def check_strides() -> None:
    problem = small("gru_reset_after")
    x = problem.x.detach()
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([x, x], -1)[..., 0]):
        assert not other.is_contiguous()
        check(problem._replace(x=other.requires_grad_()))


@needs_triton
@each_cell
def test_the_last_accumulation_is_that_of_stepping_bit_for_bit(interpreted: Run, cell: CellName) -> None:
    interpreted(check_accumulation, cell)


def check_accumulation(cell: CellName) -> None:
    problem = small(cell, shape=(40, 5, 2), update_bias=-3.5, midway=True)
    answer = triton_ops.forward(problem, save=False)
    waited = 39 - torch.where(answer.gates > 0, torch.arange(40)[:, None], -1).amax(0)
    assert waited.max() > 8
    for row, steps in enumerate(waited.tolist()):
        a = problem.state.accumulated[row] * (steps == 40)
        for _ in range(steps):
            a = accumulate(answer.state.update_prob[row], a)
        assert answer.state.accumulated[row] == a


@needs_triton
@pytest.mark.parametrize("p", [0.5, 0.25, 0.125, 1.0])
def test_ties_are_those_of_stepping_bit_for_bit(interpreted: Run, p: float) -> None:
    """p that adds up to ½ exactly, in the state and after each update; σ(40) is 1."""
    interpreted(check_ties, p)


def check_ties(p: float) -> None:
    problem = small("lstm", update_bias=40.0 if p == 1 else math.log(p / (1 - p)), sharpness=0)
    state = problem.state._replace(update_prob=torch.full_like(problem.state.update_prob, p))
    parts = reference(problem._replace(state=state))
    answer = triton_ops.forward(problem._replace(state=state), save=False)
    assert torch.equal(answer.gates, parts[-1])
    assert torch.equal(answer.state.accumulated, parts[-2])


@needs_triton
@each_cell
def test_two_runs_are_equal_to_the_bit(interpreted: Run, cell: CellName) -> None:
    interpreted(check_two_runs, cell)


def check_two_runs(cell: CellName) -> None:
    problem = small(cell, midway=True)
    upstream = uneven(reference(problem))
    (_, one, first), (_, other, second) = answers(problem, upstream), answers(problem, upstream)
    assert torch.equal(one.output, other.output)
    for ours, again in zip(first, second, strict=True):
        assert ours is again is None or torch.equal(ours, again)


@needs_triton
@each_cell
def test_a_row_that_is_not_a_number_updates_no_more_and_says_so(interpreted: Run, cell: CellName) -> None:
    interpreted(check_nan, cell)


def check_nan(cell: CellName) -> None:
    problem = small(cell, update_bias=30.0)
    p = problem.state.update_prob.detach().clone()
    x = problem.x.detach().clone()
    p[1], x[4, 2] = torch.nan, torch.nan
    damaged = problem._replace(x=x, state=problem.state._replace(update_prob=p))
    expected = triton_ops.forward(problem, save=False)
    without, answer, adjoints = answers(damaged, uneven(reference(problem)))
    for one in (without, answer):
        assert one.state.update_prob.isnan().tolist() == [False, True, True, False, False]
        assert one.gates.sum(0).tolist() == [9, 0, 5, 9, 9]
        assert_close(one.output[:, [0, 3, 4]], expected.output[:, [0, 3, 4]])
    assert adjoints.update_prob.isnan().tolist() == [False, True, True, False, False]


@needs_triton
@each_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_takes_it_by_name(interpreted: Run, cell: CellName, batch_first: bool) -> None:
    interpreted(check_layer, cell, batch_first=batch_first)


def check_layer(cell: CellName, *, batch_first: bool) -> None:
    torch.manual_seed(0)
    arguments = {"update_bias": -1.0, "batch_first": batch_first}
    layer = SkipLSTM(3, 7, **arguments) if cell == "lstm" else SkipGRU(3, 7, reset_after=cell != "gru", **arguments)
    x = torch.randn(5, 9, 3) if batch_first else torch.randn(9, 5, 3)
    found = {}
    for backend in ("reference", "triton"):
        layer.backend = backend
        layer.zero_grad()
        output, state, gates = layer(x, lengths=LENGTHS)
        (output.pow(2).sum() + state.h.sum() + gates.sum()).backward()
        found[backend] = [output, state.h, gates, *(parameter.grad for parameter in layer.parameters())]
    for ours, expected in zip(found["triton"], found["reference"], strict=True):
        assert_close(ours, expected)


@needs_triton
def test_it_says_what_it_does_not_do(interpreted: Run) -> None:
    interpreted(check_hindrances)
    assert triton_ops.hindrance(small("lstm")) == "tensors on cpu"


def check_hindrances() -> None:
    assert triton_ops.hindrance(small("gru", size=128)) is None
    assert triton_ops.hindrance(small("gru", size=129)) == "more than 128 hidden units"
    assert triton_ops.hindrance(small("gru", num_layers=2)) == "2 layers"
    assert triton_ops.hindrance(small("lstm", norm=True)) == "layer normalisation"
    assert triton_ops.hindrance(make_problem("lstm")) == "torch.float64"


def test_without_triton_it_can_be_imported_and_says_so() -> None:
    code = (
        "import sys; from models import SkipLSTM; from models.kernels import triton_ops; import torch;"
        "assert 'triton' not in sys.modules; sys.modules['triton'] = None;"
        "SkipLSTM(2, 3, backend='triton')(torch.zeros(4, 1, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.stderr.endswith(
        "ValueError: backend 'triton' cannot do this (Triton is not installed): use backend='auto' or 'event'\n"
    )


@needs_triton
@pytest.mark.parametrize(
    ("cell", "tiling"),
    [("lstm", Tiling(1, None)), ("lstm", Tiling(8, "float16")), ("gru_reset_after", Tiling(8, "float16"))],
    ids=str,
)
def test_compiles_for_sm_90(compiling: Run, cell: CellName, tiling: Tiling) -> None:
    """At H = 110; says what it takes on the chip, bytes on the stack being spilled registers."""
    for kernel in ("forward_kernel", "backward_kernel", "segment_sums_kernel"):
        shared, ptx, used = compiling(compile_kernel, kernel, cell, tiling)
        print(f"{kernel} {cell} {tiling}: {used}, {shared} bytes of shared memory")
        assert ".target sm_90" in ptx
        assert ("mma.sync" in ptx) == (tiling.operand is not None and kernel != "segment_sums_kernel")
        assert shared <= SHARED_MEMORY


def compile_kernel(name: str, cell: CellName, tiling: Tiling) -> tuple[int, str, str]:
    """Shared memory in bytes, the PTX, and what cuobjdump says of the binary."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.kernels import triton_kernels

    kernel = getattr(triton_kernels, name)
    constants = {
        "CELL": cell,
        "H": 110,
        "WIDTH": 128,
        "STRIDE": 112,
        "ROWS": tiling.rows,
        "OPERAND": tiling.operand and triton_kernels.OPERANDS[tiling.operand],
        "GIVEN": False,
        "SAVE": True,
        "WAITED": True,
        "OUTPUTS": True,
        "STEPS": 16,
        "following": None,
    }
    types = {"ends": "*i32", "index": "*i64", "last": "*i64", "number": "*i64"}
    signature = {}
    for argument in kernel.arg_names:
        is_number = argument.startswith(("num_", "batch_")) or argument.endswith("_stride")
        default = "constexpr" if argument in constants else "i32" if is_number else "*fp32"
        signature[argument] = types.get(argument, default)
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"}
    own = {argument: value for argument, value in constants.items() if argument in signature}
    source = ASTSource(kernel, signature, constexprs=own, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=triton_ops.OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", binary.name]
        used = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return compiled.metadata.shared, compiled.asm["ptx"], " ".join(re.findall(r"(?:REG|STACK|LOCAL):\d+", used))
