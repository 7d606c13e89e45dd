"""How the suite runs: its environment, Hypothesis' profile, and which files share a process."""

import os
import re
from functools import cache
from pathlib import Path

# Before torch is imported, here or in a child: two processes of tests share the cores, and a second thread would
# wait for the first over a few numbers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15 its workers starve where other processes are busy
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how often Ray Train asks who has finished

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# The same examples on every machine, and none too slow for a busy one.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With `-n 2`: files that share a cluster or a server go to one process; any other to whoever is free."""
    config.option.loadscopereorder = False  # those with Ray are few tests and take longest, so they begin early
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _shares(self.config.rootpath / file) or file


@cache
def _shares(path: Path) -> str | None:
    """What a file shares with others, told from its words: a Ray cluster, one for each process, or an MLflow server."""
    words = set(re.findall(r"\w+", path.read_text()))
    if "swept" in words or {"cluster", "two_class_corpus"} <= words:
        return "Ray, training"
    if "cluster" in words:
        return "Ray, extraction"
    return "MLflow" if "mlflow_uri" in words else None


@pytest.fixture(scope="module")
def one_thread():
    """For networks so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cluster():
    """A local Ray cluster for the whole session; commands that are run in this process use it."""
    from skipreel.jobs.runtime.ray_cluster import ray_cluster

    with ray_cluster():
        yield
