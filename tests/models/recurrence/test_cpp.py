"""The C++ implementation: what it has beyond test_conformance, sanitizers, and machines without a compiler."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from skipreel.models import SkipLSTM
from skipreel.models.recurrence import cpp
from skipreel.models.recurrence.cpp import build
from tests.support.layers import drawn, each_cell, make_layer
from tests.support.tolerances import assert_close

DRIVER = Path(__file__).with_name("sanitize_skip_rnn.cpp")


def build_driver(sanitizer: str, cache: Path) -> Path:
    """The driver's program, which is built once for each version of its sources, its flags and the compiler.

    Unoptimised: that is built in a quarter of the time, and no access that a sanitizer would see is optimised away.
    """
    flags = ["-std=c++17", "-O0", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread"]
    compiler = subprocess.run(["g++", "--version"], check=True, capture_output=True).stdout
    sources = [DRIVER, *sorted(path for path in Path(cpp.__file__).parent.rglob("*") if path.suffix in (".cpp", ".h"))]
    digest = hashlib.sha256(repr((flags, compiler, [path.read_bytes() for path in sources])).encode()).hexdigest()
    program = cache / f"{sanitizer}-{digest[:16]}"
    if not program.exists():
        unfinished = cache / f"{program.name}.{os.getpid()}"
        subprocess.run(["g++", *flags, str(DRIVER), "-o", str(unfinished)], check=True)
        unfinished.replace(program)
    return program


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_clean_under_sanitizers(sanitizer: str, pytestconfig: pytest.Config) -> None:
    """On std::thread: the thread sanitizer does not understand OpenMP's library."""
    program = build_driver(sanitizer, pytestconfig.cache.mkdir("sanitizers"))
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "clean\n"


@each_cell
def test_a_row_does_not_depend_on_its_neighbours_chunks_or_threads(cell: str) -> None:
    layer = make_layer(cell, 5, 20, 2, backend="cpp", update_bias=-2.0, dtype=torch.float32)
    x = drawn(40, 9, 5, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            whole = layer(x)
            torch.set_num_threads(3)
            threaded = layer(x)
            first, state, _ = layer(x[:13])
            second, _, _ = layer(x[13:], state)
            alone, _, _ = layer(x[:, 4:5])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(threaded[0], whole[0])
    assert torch.equal(threaded[2], whole[2])
    assert torch.equal(torch.cat([first, second]), whole[0])
    assert torch.equal(alone, whole[0][:, 4:5])


def test_a_change_of_any_source_or_flag_builds_again(tmp_path: Path) -> None:
    folder = shutil.copytree(Path(cpp.__file__).parent, tmp_path / "cpp")
    seen = {build.source_digest(folder, ["-O3"]), build.source_digest(folder, ["-O2"])}
    sources = [*folder.glob("*.h"), *folder.glob("*.cpp")]
    for source in sources:
        source.write_text(source.read_text() + "\n")
        seen.add(build.source_digest(folder, ["-O3"]))
    assert len(seen) == 2 + len(sources) > 4
    (folder / "new.h").write_text("")
    assert build.source_digest(folder, ["-O3"]) not in seen
    (folder / "new.h").unlink()
    assert build.source_digest(folder, ["-O3"]) in seen


def test_without_a_compiler_the_torch_operators_serve_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions\nand more that nobody reads")

    layer = SkipLSTM(3, 5)
    x = torch.randn(7, 2, 3)
    expected, _, _ = layer(x)
    monkeypatch.setattr(cpp_extension, "load", refuse)
    # MLflow's migrations silence the loggers that they meet.
    monkeypatch.setattr(logging.getLogger(build.__name__), "disabled", False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert_close(layer(x)[0], expected)
        layer.backend = "cpp"
        with pytest.raises(ValueError, match="it could not be built, the log says why"):
            layer(x)
    finally:
        build.library.cache_clear()
    assert [record.getMessage() for record in caplog.records if "building" not in record.getMessage()] == [
        "the C++ Skip RNN layers could not be built (Ninja is required to load C++ extensions): slower ones in torch "
        "operators are used; the fast ones need g++, ninja and a folder to build in: $TORCH_EXTENSIONS_DIR, or one "
        "in the home folder"
    ]


def test_without_a_home_folder_the_torch_operators_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(logging.getLogger(build.__name__), "disabled", False)
    build.library.cache_clear()
    try:
        output, _, _ = SkipLSTM(3, 5)(torch.randn(7, 2, 3))
    finally:
        build.library.cache_clear()
    assert output.shape == (7, 2, 5)
    assert "Could not determine home directory" in caplog.text


SHORT_OF_MEMORY = """
import ctypes, resource, torch
from skipreel.models import SkipGRU
ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: freed memory is given back, not kept for the next call
torch.set_num_threads(2)
layer = SkipGRU(512, 512, 2, backend="cpp")
x = torch.randn(2, 4, 512)
layer(x)[0].sum().backward()
loss = layer(x)[0].sum()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20),) * 2)
for call in (lambda: layer(x), loss.backward):
    try:
        call()
    except MemoryError as error:
        print(error)
"""


def test_too_little_memory_is_an_error_and_not_the_end_of_the_process() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines() == [
        f"not enough memory for the {direction} pass of a Skip RNN: 2 layers of 512 hidden units, 4 rows of 2 steps; "
        "use fewer rows or shorter sequences, or raise the memory limit"
        for direction in ("forward", "backward")
    ]
