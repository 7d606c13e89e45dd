"""The Triton kernels: what they have beyond test_conformance, and compiled for a GPU of today.

Letters: B batch, T steps, H hidden.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from skipreel.models.recurrence import triton as implementation
from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.triton import launch, unsupported_reason
from skipreel.models.recurrence.triton.launch import Tiling
from tests.support.recurrence_inputs import CELLS, check, make_inputs, output_grads, reference, uneven
from tests.support.triton_process import needs_triton, triton_process

LENGTHS = torch.tensor([9, 0, 6, 1, 8])
SHAPE = 9, 5, 3
SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on an H100."""

Run = Callable[..., Any]

each_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with triton_process(tmp_path_factory.mktemp("triton"), interpret=True) as run_there:
        yield run_there


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with triton_process(tmp_path_factory.mktemp("triton"), interpret=False) as run_there:
        yield run_there


def check_tiling(cell: CellName, tiling: Tiling, *, scale: float = 1.0, **arguments: Any) -> None:
    with mock.patch.object(launch, "tiling", return_value=tiling):
        check("triton", make_inputs(cell, shape=SHAPE, dtype=torch.float32, **arguments), scale=scale)


@needs_triton
@each_cell
@pytest.mark.parametrize("tiling", [Tiling(1, None), Tiling(2, None), Tiling(16, "float32")], ids=str)
def test_equal_to_stepping_in_every_tiling(interpreted: Run, cell: CellName, tiling: Tiling) -> None:
    interpreted(check_tiling, cell, tiling, lengths=LENGTHS, midway=True)


@needs_triton
@each_cell
def test_small_adjoints_survive_narrow_products(interpreted: Run, cell: CellName) -> None:
    interpreted(check_tiling, cell, Tiling(8, "float32"), scale=1e-12)
    interpreted(check_narrow, cell, scale=1e-12)


def check_narrow(cell: CellName, *, scale: float) -> None:
    """In float16 most of these adjoints would be 0: it ends at 6e-8."""
    inputs = make_inputs(cell, shape=SHAPE, update_bias=30.0, dtype=torch.float32)
    upstream = output_grads(inputs, uneven(reference(inputs), scale=scale))
    trace = implementation.forward(inputs, save=True).trace
    exact = implementation.backward(inputs, trace, upstream, needs_x=True).pre_activation
    with mock.patch.object(launch, "tiling", return_value=Tiling(8, "float16")):
        trace = implementation.forward(inputs, save=True).trace
        narrow = implementation.backward(inputs, trace, upstream, needs_x=True).pre_activation
    assert 0 < (narrow - exact).norm() < 2e-3 * exact.norm()


@needs_triton
def test_it_says_what_it_does_not_do(interpreted: Run) -> None:
    interpreted(check_hindrances)
    assert unsupported_reason(make_inputs("lstm")) == "tensors on cpu"


def check_hindrances() -> None:
    assert unsupported_reason(make_inputs("gru", dtype=torch.float32, size=128)) is None
    assert unsupported_reason(make_inputs("gru", dtype=torch.float32, size=129)) == "more than 128 hidden units"
    assert unsupported_reason(make_inputs("gru", dtype=torch.float32, num_layers=2)) == "2 layers"
    assert unsupported_reason(make_inputs("lstm", dtype=torch.float32, norm=True)) == "layer normalisation"
    assert unsupported_reason(make_inputs("lstm")) == "torch.float64"


def test_without_triton_it_can_be_imported_and_says_so() -> None:
    code = (
        "import sys; from skipreel.models import SkipLSTM; from skipreel.models.recurrence import triton;"
        "import torch;"
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
    [
        ("lstm", Tiling(8, "float16")),
        pytest.param("lstm", Tiling(1, None), marks=pytest.mark.slow),
        pytest.param("gru_reset_after", Tiling(8, "float16"), marks=pytest.mark.slow),
    ],
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

    from skipreel.models.recurrence.triton import kernels

    kernel = getattr(kernels, name)
    constants = {
        "CELL": cell,
        "H": 110,
        "WIDTH": 128,
        "STRIDE": 112,
        "ROWS": tiling.rows,
        "OPERAND": tiling.operand and kernels.OPERANDS[tiling.operand],
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
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", binary.name]
        used = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return compiled.metadata.shared, compiled.asm["ptx"], " ".join(re.findall(r"(?:REG|STACK|LOCAL):\d+", used))
