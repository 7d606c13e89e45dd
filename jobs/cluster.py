"""Connecting to Ray: the cluster that RAY_ADDRESS names, or a local one that ends with the command."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import InputError


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect, quietly, unless this process is connected already; a cluster started here is stopped here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    debug = bool(os.environ.get("SKIPREEL_DEBUG"))
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        include_dashboard=False if "RAY_ADDRESS" not in os.environ else None,
        log_to_driver=debug,
        logging_level=logging.INFO if debug else logging.ERROR,
    )
    _quiet(debug)
    try:
        yield
    finally:
        ray.shutdown()


def num_cpus() -> int:
    """Whole CPUs of the connected cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def require_gpus(count: int) -> None:
    """Refuse work that would wait for GPUs forever.

    Raises:
        InputError: when the connected cluster has fewer.
    """
    there = num_gpus()
    if there < count:
        raise InputError(f"{count} GPU(s) are needed and the Ray cluster has {there}: use a CPU, or another cluster")


def _quiet(debug: bool) -> None:
    import ray.data

    if debug:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command draws its own, by videos
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
