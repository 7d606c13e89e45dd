"""All that runs on a GPU, checked and then timed: `python -m benchmarks.gpu [rows.json]`.

A backbone from frames in host memory to features; many videos in the closed loop; the layers against the reference, and
then against cuDNN, in float32 and then with TF32 allowed, which cuDNN uses too. Needs torch, transformers and pyarrow,
with Triton for its kernels.

Letters: B batch, T steps, D features, H hidden.
"""

import functools
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import backbone, closed_loop_gpu
from benchmarks.timing import Row, paired, ratio, write_json
from benchmarks.workloads import SHARES, TRAINING, Cell, Layer, Mode, Size, make_dense, make_skip, step, with_backend
from skipreel.models.recurrence.operator import Backend

CELLS: Final[tuple[Cell, ...]] = ("lstm", "gru")
BACKENDS: Final[tuple[Backend, ...]] = ("triton", "event")
TRAINING_TARGETS: Final = {1.0: 0.8, 0.25: 2.0, 0.1: 3.0, 0.03: 3.0}
INFERENCE_TARGET: Final = 0.75
"""With all gates open; otherwise 0.7 times T over the largest number of updates of a row."""
TOLERANCE: Final = {False: 1e-4, True: 2e-2}
"""Of outputs and gradients, relative to the largest of their tensor, without and with TF32."""


class Workload(NamedTuple):
    """x (T, B, D), torch's layer, and by share the Skip RNN with its weights."""

    x: Tensor
    dense: nn.Module
    layers: dict[float, Layer]


@functools.cache
def workload(size: Size, cell: Cell, device: str) -> Workload:
    torch.manual_seed(2)
    x = torch.randn(size.steps, size.batch, size.features).to(device)
    dense = make_dense(size, cell).to(device)
    return Workload(x, dense, {share: make_skip(dense, x, share) for share in SHARES})


def unsupported_reason(layer: Layer, x: Tensor) -> str | None:
    """What keeps an implementation from this layer, as its error says; None if it runs. Other errors are raised."""
    try:
        with torch.inference_mode():
            layer(x[:1, :1])
    except ValueError as error:
        if "cannot do this" not in str(error):
            raise
        return str(error)
    return None


class Outcome(NamedTuple):
    gates: Tensor
    values: dict[str, Tensor]


def outcome(layer: Layer, x: Tensor, rows: Tensor | slice = slice(None), gates: Tensor | None = None) -> Outcome:
    """Gates of all rows; outputs, and gradients of a loss on outputs, last state and gates, of `rows` alone."""
    layer.zero_grad()
    output, state, used = layer(x, gates=gates)
    output = output[:, rows]
    (output.pow(2).sum() + state.h[:, rows].sum() + (used[:, rows].sum() if gates is None else 0)).backward()
    gradients = {name: tensor.grad for name, tensor in layer.named_parameters() if tensor.grad is not None}
    return Outcome(used.detach(), {"output": output.detach(), **gradients})


def difference(ours: Outcome, expected: Outcome) -> tuple[float, str]:
    """The largest difference of any tensor, relative to its largest entry, and whose it is; infinite for a NaN."""
    found = []
    for name, value in expected.values.items():
        largest = value.abs().max().clamp_min(1e-30)
        relative = ((ours.values[name] - value).abs().max() / largest).nan_to_num(nan=torch.inf)
        found.append((relative.item(), name))
    return max(found)


def check(size: Size, cell: Cell, backend: Backend, device: str, *, tf32: bool) -> None:
    """SystemExit unless equal to the reference: under its gates, and in the rows whose free gates are the same.

    Without TF32 there must be such rows.
    """
    x, _, layers = workload(size, cell, device)
    reference, layer = (with_backend(layers[0.25], name) for name in ("reference", backend))
    if (why := unsupported_reason(layer, x)) is not None:
        print(f"{size!s:32}{cell:5}{backend:10}{why}")
        return
    gates = outcome(reference, x).gates
    alike = (outcome(layer, x).gates == gates).all(0)
    found = [difference(outcome(layer, x, gates=gates), outcome(reference, x, gates=gates))]
    if alike.any():
        found.append(difference(outcome(layer, x, alike), outcome(reference, x, alike)))
    share = alike.float().mean().item()
    print(f"{size!s:32}{cell:5}{backend:10}gates alike in {share:.3f} of the rows; largest difference {max(found)}")
    if max(found)[0] > TOLERANCE[tf32] or not (tf32 or alike.any()):
        raise SystemExit(f"{backend} differs from the reference at {size}, {cell}: nothing is timed")


class Case(NamedTuple):
    backend: Backend
    share: float
    found: float
    events: int
    """The largest number of updates of a row: what runs in sequence."""


def compare(size: Size, cell: Cell, mode: Mode, device: str, *, rounds: int, label: str) -> list[Row]:
    """Prints and returns how many times faster than torch's layer each implementation is, by share."""
    x, dense, layers = workload(size, cell, device)
    weights = torch.randn(size.steps, size.batch, size.hidden).to(device)
    functions: dict[str, Callable[[], object]] = {"dense": step(dense, x, weights, mode)}
    cases: dict[str, Case] = {}
    for share, layer in layers.items():
        with torch.inference_mode():
            gates = layer(x)[2]
        for backend in BACKENDS:
            ours = with_backend(layer, backend)
            if unsupported_reason(ours, x) is None:
                name = f"{backend}/{share}"
                functions[name] = step(ours, x, weights, mode)
                cases[name] = Case(backend, share, gates.mean().item(), int(gates.sum(0).max()))
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    times = paired(functions, rounds=rounds, wait=wait)
    rows = []
    for name, (backend, share, found, events) in cases.items():
        seconds, peer = statistics.median(times[name]), statistics.median(times["dense"])
        middle, low, high = ratio(times["dense"], times[name])
        target = TRAINING_TARGETS.get(share)
        if mode == "infer":
            target = INFERENCE_TARGET if share == 1 else 0.7 * size.steps / max(events, 1)
        verdict = "" if target is None else f"{target:6.2f} {'met' if middle >= target else 'MISSED'}"
        print(
            f"{mode:6}{size!s:32}{cell:5}{backend:10}{found:7.3f}{1e3 * seconds:9.2f}{1e3 * peer:9.2f}{middle:7.2f}"
            f"  {low:.2f}–{high:.2f}{1e6 * seconds / max(events, 1):9.1f}  {verdict}",
            flush=True,
        )
        rows.append(Row(f"gpu/{label}/{mode}/{size.name}/{cell}/{name}", "s", seconds, peer, middle, target, label))
    return rows


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device and a torch built for CUDA; there is none here", file=sys.stderr)
        return 1
    rows: list[Row] = []
    name = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    with tempfile.TemporaryDirectory() as place:
        resnet = backbone.write_resnet50(Path(place) / "resnet50")
        rows += backbone.compare(f"hf:{resnet}", "cuda", rounds=5, label=name)
        rows += closed_loop_gpu.compare(f"hf:{resnet}", "cuda", rounds=3, label=name)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        label = f"{name}, {'TF32' if tf32 else 'float32'}"
        print(f"\n{label}")
        for size in TRAINING:
            for cell in CELLS:
                for backend in BACKENDS:
                    check(size, cell, backend, "cuda", tf32=tf32)
        columns = f"{'size':32}{'cell':5}{'backend':10}{'share':>7}{'ms':>9}{'cuDNN':>9}{'ratio':>7}"
        print(f"{'':6}{columns}  range      us/event  target")
        for mode in ("train", "infer"):
            for size in TRAINING:
                for cell in CELLS:
                    rows += compare(size, cell, mode, "cuda", rounds=3, label=label)
    for path in sys.argv[1:]:
        write_json(Path(path), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
