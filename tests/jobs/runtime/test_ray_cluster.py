"""Finding the Ray cluster, without one: what answers on the address, and what the user is told."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray
from ray._private import services
from ray._private.authentication import authentication_token_setup

from skipreel.jobs import cli
from skipreel.jobs.cli import main
from skipreel.jobs.runtime import ray_cluster as cluster
from skipreel.jobs.runtime.ray_cluster import cluster_address, ray_cluster, tell_when_waiting
from skipreel.pipeline.errors import InputError
from tests.support.feature_sets import two_class_corpus

pytest_plugins = ("tests.support.ray_stub",)


@pytest.fixture
def head():
    """A head node's control service as far as it is asked; it demands ``head.token`` once that is set."""

    class Head(grpc.GenericRpcHandler):
        token = ""

        def service(self, details):
            assert details.method == "/ray.rpc.NodeInfoGcsService/CheckAlive"
            return grpc.unary_unary_rpc_method_handler(self.answer)

        def answer(self, _request, context):
            if self.token and ("authorization", f"Bearer {self.token}") not in context.invocation_metadata():
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

    made = Head()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[made])
    made.address = f"127.0.0.1:{server.add_insecure_port('0.0.0.0:0')}"
    server.start()
    yield made
    server.stop(None)


@pytest.mark.parametrize("given", [None, "", "local"])
def test_without_an_address_a_local_cluster_is_started(monkeypatch, given):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster_address() is None


def test_a_cluster_that_answers_is_used(monkeypatch, head):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    assert cluster_address().endswith(head.address.partition(":")[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ray://head.example:10001", "ray://head.example:10001, allowed: HOST:PORT"),
        ("http://head.example:8265", "http://head.example:8265, allowed: HOST:PORT"),
        ("nonsense", "RAY_ADDRESS is nonsense, allowed: HOST:PORT"),
        ("head.example:x", "RAY_ADDRESS is head.example:x, allowed: HOST:PORT"),
        ("auto", "no Ray cluster runs on this machine"),
    ],
)
def test_an_address_that_names_no_cluster_is_one_line(monkeypatch, given, message):
    monkeypatch.setenv("RAY_ADDRESS", given)
    for found in ("find_gcs_addresses", "find_bootstrap_address"):
        monkeypatch.setattr(services, found, lambda *_: None if _ else set())
    with pytest.raises(InputError, match=message):
        cluster_address()


def test_an_address_where_nobody_answers_is_one_line_soon(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_S", 0.2)
    with socket.socket() as silent:  # takes connections and says nothing, as some other server might
        silent.bind(("0.0.0.0", 0))
        silent.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match=r"no Ray cluster answers at .* unset RAY_ADDRESS"):
            cluster_address()
    with pytest.raises(InputError, match="no Ray cluster answers at"):
        cluster_address()


def test_a_demanded_token_that_is_not_here_is_asked_for(monkeypatch, head):
    head.token = "s" * 32
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    none_there = lambda **_: False  # noqa: E731
    monkeypatch.setattr(authentication_token_setup, "maybe_enable_token_auth_if_token_available", none_there)
    with pytest.raises(InputError, match="demands its token: set RAY_AUTH_MODE=token"):
        cluster_address()


def test_a_demanded_token_that_is_here_is_used_without_being_asked_for(head, tmp_path):
    head.token = "s" * 32
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(head.token)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_ADDRESS": head.address}
    told = "cluster_address(); print(os.environ['RAY_AUTH_MODE'])"
    code = f"import os; from skipreel.jobs.runtime.ray_cluster import cluster_address; {told}"
    # A process of its own: Ray keeps mode and token for as long as one lives.
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "token"), done.stderr


@pytest.fixture
def started(monkeypatch):
    """The arguments of every `ray.init`, which does nothing but take over SIGTERM, as Ray's does."""
    calls = []

    def init(**arguments):
        calls.append(arguments)
        signal.signal(signal.SIGTERM, lambda *_: None)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(logging.getLogger("ray"), "level", logging.getLogger("ray").level)
    return calls


def test_a_running_cluster_that_nobody_named_is_left_alone(monkeypatch, started):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_cluster():
        assert started[0]["address"] == "local"
    assert started[1:] == ["shutdown"]


def test_a_named_cluster_is_connected_to_and_sigterm_stays_the_commands(monkeypatch, started, head):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    before = signal.getsignal(signal.SIGTERM)
    with ray_cluster():
        assert started[0]["address"].endswith(head.address.partition(":")[2])
        assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_waits_until_ray_has_started(monkeypatch, started):
    """In the middle of its start Ray's own threads now and then end the process by SIGSEGV."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    init = ray.init

    def interrupted(**arguments):
        signal.raise_signal(signal.SIGINT)
        init(**arguments)

    monkeypatch.setattr(ray, "init", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process had
    try:
        with pytest.raises(KeyboardInterrupt), ray_cluster():
            raise AssertionError("the block must not begin")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0]["address"] == "local"
    assert started[1:] == ["shutdown"]


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_training_that_finds_no_cluster_leaves_no_run(monkeypatch, started, tmp_path, capsys, command):
    manifest, features = two_class_corpus(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head.example:10001")
    words = ["--manifest", manifest, "--features", features, "--output", str(tmp_path / "out")]
    assert main([command, *words]) == cli.EXIT_ERROR
    assert "RAY_ADDRESS is ray://head.example:10001" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.db"))


def test_work_that_waits_for_a_full_cluster_says_so(monkeypatch, ray_stub, capsys):
    monkeypatch.setattr(cluster, "WAITING_S", 0.01)
    monkeypatch.setattr(ray_stub, "available_resources", dict)  # Ray leaves out what there is none of
    with tell_when_waiting(cpus=2):
        error, end = "", time.monotonic() + 15
        while not error and time.monotonic() < end:
            time.sleep(0.01)
            error = capsys.readouterr().err
    assert error == "waiting for the Ray cluster: 2 CPU(s) are needed and 0 of 1 are free\n"


@pytest.mark.parametrize("cpus", [1, 2])
def test_work_that_has_begun_or_has_room_says_nothing(monkeypatch, ray_stub, capsys, cpus):
    monkeypatch.setattr(cluster, "WAITING_S", 0.05)
    with tell_when_waiting(cpus=cpus) as has_begun:
        if cpus == 2:
            has_begun()
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
