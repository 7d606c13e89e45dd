"""A process for checks of the Triton kernels: whether Triton interprets is settled when it is first imported."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@contextlib.contextmanager
def triton_process(cache: Path, *, interpret: bool) -> Iterator[Callable[..., Any]]:
    """Runs functions of test modules where Triton interprets its kernels, or compiles them, whatever is imported here.

    cache: a folder for compiled kernels.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", str(int(interpret)))
            patch.setenv("TRITON_CACHE_DIR", str(cache))
            pool.submit(torch.set_num_threads, 1).result()  # it starts now, and keeps these variables
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=300)
