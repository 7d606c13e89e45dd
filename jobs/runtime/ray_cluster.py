"""Connects to Ray: to the cluster that RAY_ADDRESS names, or to a local one that ends with the command."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from skipreel.jobs.runtime.terminal import console
from skipreel.pipeline.errors import InputError

# Timeout for a cluster's first answer. Ray itself would wait for ever.
ANSWER_S = 10.0
# How long work waits for free CPUs before a message is printed.
WAITING_S = 10.0


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect for a block, unless this process is connected already. A local cluster ends with the block.

    Raises:
        InputError: no cluster answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    debug = bool(os.environ.get("SKIPREEL_DEBUG"))
    level = logging.INFO if debug else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    address = cluster_address()
    try:
        with _own_signals():
            ray.init(
                address=address or "local",  # with None Ray would look for a running cluster
                include_dashboard=None if address else False,
                log_to_driver=debug,
                logging_level=level,
            )
        _quiet(debug)
        yield
    finally:
        ray.shutdown()


def cluster_address() -> str | None:
    """HOST:PORT of the cluster that RAY_ADDRESS names, after it has answered; None if a local one must be started.

    If the cluster demands a token and RAY_AUTH_MODE is not set, this process uses the token in ~/.ray/auth_token.

    Raises:
        InputError: RAY_ADDRESS is not an address, no cluster answers there, or the token it demands is missing.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given in ("", "local"):
        return None
    address = _host_and_port(given)
    from grpc import StatusCode
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    answer = _ask(address)
    if answer is StatusCode.UNAUTHENTICATED and "RAY_AUTH_MODE" not in os.environ:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        answer = _ask(address)
    if answer is StatusCode.UNAUTHENTICATED:
        raise InputError(
            f"the Ray cluster at {address} demands its token: set RAY_AUTH_MODE=token and copy ~/.ray/auth_token of "
            "its head node to the same place here"
        )
    if answer is not StatusCode.OK:
        raise InputError(
            f"no Ray cluster answers at {address}, which RAY_ADDRESS names: start it, or unset RAY_ADDRESS to use a "
            "local one"
        )
    return address


def _host_and_port(given: str) -> str:
    from ray._private.services import canonicalize_bootstrap_address

    allowed = "allowed: HOST:PORT of the cluster's head (the port is 6379 as a rule), auto on its machines, or local"
    if "://" in given:
        raise InputError(f"RAY_ADDRESS is {given}, {allowed}; from elsewhere, ray job submit runs the command there")
    try:
        address = str(canonicalize_bootstrap_address(given))
    except (ConnectionError, ValueError) as error:
        if given == "auto":
            raise InputError(
                "RAY_ADDRESS is auto, and no Ray cluster runs on this machine: ray start begins one"
            ) from error
        raise InputError(f"RAY_ADDRESS is {given}, {allowed}") from error
    if not address.rpartition(":")[2].isdecimal():
        raise InputError(f"RAY_ADDRESS is {given}, {allowed}")
    return address


def _ask(address: str) -> Any:
    """The gRPC status code that the head of a cluster answers to this process."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@contextmanager
def _own_signals() -> Iterator[None]:
    """While Ray starts: SIGTERM keeps its handler, which Ray replaces for good, and Ctrl-C waits for the end.

    An interrupted start of Ray can end the process by SIGSEGV in Ray's own threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def tell_when_waiting(*, cpus: float, gpus: float = 0.0) -> Iterator[Callable[[], None]]:
    """For a block that starts processes: print a line after `WAITING_S` seconds if the cluster lacks free CPUs or GPUs.

    Args:
        cpus: CPUs that the work needs.
        gpus: GPUs that the work needs.

    Yields:
        A function to call when the work has begun; nothing is printed from then on.
    """
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    needed = {"CPU": cpus, "GPU": gpus}
    lacking = [
        f"{needed[kind]:g} {kind}(s) are needed and {free.get(kind, 0):g} of {there.get(kind, 0):g} are free"
        for kind in needed
        if free.get(kind, 0) < needed[kind]
    ]
    line = f"waiting for the Ray cluster: {', '.join(lacking)}"
    timer = threading.Timer(WAITING_S, console.print, [line], {"markup": False})
    timer.daemon = True
    if lacking:
        timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


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
        InputError: the connected cluster has fewer than `count`.
    """
    there = num_gpus()
    if there < count:
        raise InputError(f"{count} GPU(s) are needed and the Ray cluster has {there}: use a CPU, or another cluster")


def _quiet(debug: bool) -> None:
    import ray.data

    if debug:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command shows its own, which counts videos
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
