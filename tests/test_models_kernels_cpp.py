"""The C++ implementation: clean under the sanitizers, and missed gracefully where there is no compiler."""

import hashlib
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from models import SkipLSTM
from models.kernels import cpp
from tolerances import assert_close

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


def test_without_a_compiler_the_torch_operators_serve_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions\nand more that nobody reads")

    layer = SkipLSTM(3, 5)
    x = torch.randn(7, 2, 3)
    expected, _, _ = layer(x)
    monkeypatch.setattr(cpp_extension, "load", refuse)
    monkeypatch.setattr(cpp._logger, "disabled", False)  # MLflow's migrations silence the loggers that they meet
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cpp.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert_close(layer(x)[0], expected)
        layer.backend = "cpp"
        with pytest.raises(ValueError, match="it could not be built, the log says why"):
            layer(x)
    finally:
        cpp.library.cache_clear()
    assert [record.getMessage() for record in caplog.records if "building" not in record.getMessage()] == [
        "the C++ Skip RNN layers could not be built (Ninja is required to load C++ extensions): slower ones in torch "
        "operators are used; install g++ and ninja for the fast ones"
    ]
