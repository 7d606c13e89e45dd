"""The compiled library: built on first use by torch's extension loader, cached on disk, loaded with ctypes."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from filelock import FileLock

_logger = logging.getLogger(__name__)

_SOURCES: Final = Path(__file__).parent
_INSTRUCTIONS: Final = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"]}
_OPENMP: Final = ["-fopenmp"] if sys.platform == "linux" else []
"""Torch's own threads; elsewhere the library starts its own."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with one line in the log, where it cannot be built.

    Its file is in `TORCH_EXTENSIONS_DIR`, else ~/.cache/torch_extensions, as torch's own extensions are. There is one
    for each version of the sources and kind of processor.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", *_INSTRUCTIONS.get(capability, []), *_OPENMP]
    try:
        # Inside, because a user without an entry in passwd and without $HOME has no home folder.
        cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions") / "skipreel"
        target = cache / f"skip_rnn-{capability.lower()}-{source_digest(_SOURCES, flags)}.so"
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / "lock"):  # the system releases it when its holder dies
                if not target.exists():
                    _build(target, flags)
        return ctypes.CDLL(str(target))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[0]
        _logger.warning(
            "the C++ Skip RNN layers could not be built (%s): slower ones in torch operators are used; "
            "the fast ones need g++, ninja and a folder to build in: $TORCH_EXTENSIONS_DIR, or one in the home folder",
            reason,
        )
        return None


def source_digest(folder: Path, flags: list[str]) -> str:
    """16 hexadecimal digits that change with any .h or .cpp file in `folder`, the flags, or the version of torch."""
    sources = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".h", ".cpp")}
    return hashlib.sha256(repr((sources, flags, torch.__version__)).encode()).hexdigest()[:16]


def _build(target: Path, flags: list[str]) -> None:
    from torch.utils import cpp_extension  # half a second of imports that only a build needs

    _logger.warning("building the C++ Skip RNN layers, once: about 20 seconds")
    with tempfile.TemporaryDirectory(dir=target.parent) as directory, _ninja_on_path():
        built = cpp_extension.load(
            "skip_rnn",
            str(_SOURCES / "skip_rnn.cpp"),
            extra_cflags=flags,
            extra_ldflags=_OPENMP,
            build_directory=directory,
            is_python_module=False,
        )
        Path(str(built)).replace(target)


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """pip puts ninja in python's folder, which is on the path only where the environment was activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before
