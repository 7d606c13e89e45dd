"""Paired timing, peak memory, the machine in words, and the rows that a benchmark writes."""

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """One line of `--json`: ratio says how many times better than the peer we are, met when ratio ≥ target."""

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    target: float | None
    machine: str


def paired(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, wait: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each function in each round, all of them in turn, after one round that is not counted.

    `rounds` of them, and up to three times as many if they take less than 20 seconds together. What is much shorter
    than a clock tick of the machine's other work is repeated within its turn. `wait` returns when a device is done.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        repeats[name] = max(1, round(0.05 / max(_seconds(function, wait), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    for number in range(3 * rounds):
        if number >= rounds and time.perf_counter() - started > 20:
            break
        for name, function in functions.items():
            times[name].append(_seconds(function, wait, repeats[name]))
    return times


def _seconds(function: Callable[[], object], wait: Callable[[], object], repeats: int = 1) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    wait()
    return (time.perf_counter() - start) / repeats


def ratio(peer: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of peer / ours, round by round: above 1 we are faster."""
    each = [a / b for a, b in zip(peer, ours, strict=True)]
    return statistics.median(each), min(each), max(each)


def peak_bytes(function: Callable[[], object]) -> int:
    """By how much the resident memory of this process rises, at most, while `function` runs. Linux alone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at 0
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def machine() -> str:
    """Processor, cores, torch and memory allocator, for a table's caption."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    allocator = os.environ.get("GLIBC_TUNABLES") or os.environ.get("LD_PRELOAD") or "default"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, allocator {platform.libc_ver()[0]} {allocator}"
    )


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
