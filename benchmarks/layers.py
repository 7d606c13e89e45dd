"""Skip RNN layers against torch.nn.LSTM and torch.nn.GRU of the same size: `python -m benchmarks.layers`.

First the equality of what is timed; then how many times faster than torch's layer each implementation is, by share of
steps that update, and how near to the time that the multiply-accumulates alone would take; then memory.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, cast

import torch
import tyro

from benchmarks.timing import Row, machine, paired, peak_bytes, ratio, write_json
from benchmarks.workloads import (
    INFERENCE,
    SHARES,
    TRAINING,
    Cell,
    Mode,
    Size,
    make_dense,
    make_skip,
    step,
    with_backend,
)
from skipreel.models.recurrence.operator import Backend

COMPARED: Final[tuple[Backend, ...]] = ("reference", "event", "cpp")

TARGETS: Final[dict[tuple[Mode, Backend, str], dict[float, float]]] = {
    ("train", "event", "A"): {1.0: 0.75, 0.25: 1.0, 0.1: 1.3, 0.03: 1.5},
    ("train", "event", "B"): {1.0: 0.75, 0.25: 1.0, 0.1: 1.3, 0.03: 1.5},
    ("train", "event", "C"): {1.0: 0.95, 0.25: 1.5, 0.1: 1.8, 0.03: 2.3},
    ("train", "event", "D"): {1.0: 1.1, 0.25: 1.5, 0.1: 1.8, 0.03: 2.3},
    ("train", "cpp", "A"): {1.0: 1.4, 0.25: 2.0, 0.1: 2.3, 0.03: 2.5},
    ("train", "cpp", "B"): {1.0: 1.4, 0.25: 2.0, 0.1: 2.3, 0.03: 2.5},
    ("train", "cpp", "C"): {1.0: 1.1, 0.25: 2.0, 0.1: 2.3, 0.03: 2.5},
    ("train", "cpp", "D"): {1.0: 1.1, 0.25: 2.0, 0.1: 2.3, 0.03: 2.5},
    ("infer", "event", "C"): {1.0: 0.75, 0.25: 2.4, 0.1: 4.9, 0.03: 14.0},
    ("infer", "event", "D"): {1.0: 0.75, 0.25: 2.4, 0.1: 4.9, 0.03: 14.0},
    **{("infer", "cpp", name): {1.0: 1.2, 0.25: 4.0, 0.1: 9.0, 0.03: 20.0} for name in ("A64", "A1", "B64", "B1")},
}


@dataclass(frozen=True)
class Settings:
    """sizes: letters of the sizes to run. quick: the small sizes, two shares, few rounds; under a minute."""

    sizes: tuple[str, ...] = ("A", "B", "C", "D")
    cells: tuple[Cell, ...] = ("lstm", "gru")
    threads: tuple[int, ...] = (2, 1)
    rounds: int = 5
    quick: bool = False
    json: Path | None = None


def check_equal(size: Size, cell: Cell, share: float) -> None:
    """Every implementation against the reference in float64, gates and gradients, at this size cut short."""
    x = torch.randn(min(size.steps, 24), min(size.batch, 4), size.features, dtype=torch.float64)
    dense = make_dense(size, cell).double()
    outcomes = {}
    skip = make_skip(dense, x, share)
    for backend in COMPARED:
        layer = with_backend(skip, backend)
        output, _, gates = layer(x)
        (output.pow(2).sum() + gates.sum()).backward()
        outcomes[backend] = [output, gates, *(parameter.grad for parameter in layer.parameters())]
    for backend, tensors in outcomes.items():
        for ours, reference in zip(tensors, outcomes["reference"], strict=True):
            if not torch.allclose(ours, reference, rtol=1e-8, atol=1e-8):
                raise SystemExit(f"{backend} differs from the reference at {size}, {cell}: nothing is timed")


class Measured(NamedTuple):
    """Seconds of one implementation and of torch's layer, round by round; share wanted, and the share found."""

    backend: Backend
    share: float
    found: float
    ours: list[float]
    peer: list[float]


def measure(size: Size, cell: Cell, mode: Mode, settings: Settings) -> Iterator[Measured]:
    """All shares and implementations of one size, timed in turn."""
    torch.manual_seed(2)
    x = torch.randn(size.steps, size.batch, size.features)
    weights = torch.randn(size.steps, size.batch, size.hidden)
    dense = make_dense(size, cell)
    functions = {"dense": step(dense, x, weights, mode)}
    shares = (1.0, 0.25) if settings.quick else SHARES
    found: dict[str, tuple[Backend, float, float]] = {}
    backends: tuple[Backend, ...] = (
        ("cpp", "event") if settings.quick or size.batch == 1 else ("cpp", "event", "reference")
    )
    for share in shares:
        layer = make_skip(dense, x, share)
        with torch.inference_mode():
            actual = layer(x)[2].mean().item()
        for backend in backends:
            if backend == "reference" and share not in (1.0, 0.25):
                continue
            name = f"{backend} {share}"
            functions[name] = step(with_backend(layer, backend), x, weights, mode)
            found[name] = backend, share, actual
    times = paired(functions, rounds=settings.rounds)
    for name, (backend, share, actual) in found.items():
        yield Measured(backend, share, actual, times[name], times["dense"])


def rate() -> float:
    """Multiply-accumulates a second of torch's matrix product at its best here: the limit of arithmetic."""
    a, b = torch.randn(2, 2048, 2048)
    times = paired({"product": lambda: a @ b}, rounds=5)["product"]
    return 2048**3 / min(times)


def main(settings: Settings) -> None:
    if settings.quick:
        settings = Settings(sizes=("A",), cells=("lstm",), threads=(2,), rounds=3, quick=True, json=settings.json)
    rows: list[Row] = []
    print(machine())
    for threads in settings.threads:
        torch.set_num_threads(threads)
        best = rate()
        print(f"\n{threads} thread(s); torch.mm reaches {best / 1e9:.0f} billion multiply-accumulates a second")
        columns = f"{'size':32}{'cell':5}{'backend':10}{'share':>7}{'ms':>9}{'torch':>9}{'ratio':>7}"
        print(f"{'':6}{columns}  range      of limit  target")
        for mode, size in [("train", size) for size in TRAINING] + [("infer", size) for size in INFERENCE]:
            if size.name[0] in settings.sizes:
                rows += compare(size, cast(Mode, mode), settings, threads=threads, best=best)
    if not settings.quick:
        rows += memory(settings)
    if settings.json:
        write_json(settings.json, rows)


def compare(size: Size, mode: Mode, settings: Settings, *, threads: int, best: float) -> list[Row]:
    """Prints and returns the rows of one size; best: multiply-accumulates a second."""
    rows = []
    for cell in settings.cells:
        check_equal(size, cell, 0.25)
        for backend, share, found, ours, peer in measure(size, cell, mode, settings):
            middle, low, high = ratio(peer, ours)
            seconds, dense = statistics.median(ours), statistics.median(peer)
            limit = size.multiply_accumulates(found, cell=cell, mode=mode) / best
            target = TARGETS.get((mode, backend, size.name), {}).get(share)
            verdict = "" if target is None else f"{target:5.2f} {'met' if middle >= target else 'MISSED'}"
            print(
                f"{mode:6}{size!s:32}{cell:5}{backend:10}{found:7.3f}{1e3 * seconds:9.2f}{1e3 * dense:9.2f}"
                f"{middle:7.2f}  {low:.2f}–{high:.2f}{limit / seconds:10.2f}  {verdict}",
                flush=True,
            )
            name = f"layers/{mode}/{size.name}/{cell}/{backend}/{share}/threads{threads}"
            rows.append(Row(name, "s", seconds, dense, middle, target, machine()))
    return rows


def memory(settings: Settings) -> list[Row]:
    """Peak resident bytes of a training step above what stands before it."""
    rows = []
    print("\npeak MB of a training step")
    for size in TRAINING:
        if size.name not in settings.sizes:
            continue
        for cell in settings.cells:
            x = torch.randn(size.steps, size.batch, size.features)
            weights = torch.randn(size.steps, size.batch, size.hidden)
            dense = make_dense(size, cell)
            peer = peak_bytes(step(dense, x, weights, "train"))
            backends: tuple[Backend, ...] = ("cpp", "event")
            for share in (1.0, 0.25, 0.1):
                layer = make_skip(dense, x, share)
                for backend in backends:
                    ours = peak_bytes(step(with_backend(layer, backend), x, weights, "train"))
                    megabytes = f"{ours / 1e6:9.0f}{peer / 1e6:9.0f}"
                    print(f"{size!s:32}{cell:5}{backend:10}{share:7.2f}{megabytes}{peer / ours:7.2f}")
                    name = f"layers/memory/{size.name}/{cell}/{backend}/{share}"
                    rows.append(Row(name, "bytes", ours, peer, peer / ours, None, machine()))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Settings))
