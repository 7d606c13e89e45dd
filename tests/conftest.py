"""What several test files share: one local Ray cluster, and one small corpus taken all the way to a report."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
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

from mlflow_server import mlflow_server
from skipreel.jobs.cli import main
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.pipeline.synthetic import CorpusConfig, plan_corpus, write_annotations, write_video

pytest_plugins = ["ray_stub"]  # its fixture of that name

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
    with ray_cluster():
        yield


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory) -> Iterator[str]:
    """A real MLflow server for the whole session."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@dataclass(frozen=True)
class Corpus:
    """Where a small corpus and what was made of it lie."""

    folder: Path

    @property
    def manifest(self) -> str:
        return str(self.folder / "manifest.parquet")

    @property
    def features(self) -> str:
        return str(self.folder / "features")

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep"

    def checkpoint(self, prefix: str) -> str:
        """The checkpoint whose name starts so."""
        (found,) = (self.sweep / "checkpoints").glob(prefix + "*")
        return str(found)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, cluster) -> Corpus:
    """Six generated videos: annotations, manifest and features, by the commands a user would run."""
    folder = tmp_path_factory.mktemp("corpus")
    scenes = plan_corpus(CorpusConfig(num_train=4, num_test=2))
    for scene in scenes:
        write_video(scene, folder / f"{scene.video_id}.mp4")
    write_annotations(scenes, folder)
    made = Corpus(folder)
    charades = {name: str(folder / f"Charades_v1_{name}") for name in ("train.csv", "test.csv", "classes.txt")}
    words = ["--train", charades["train.csv"], "--test", charades["test.csv"], "--classes", charades["classes.txt"]]
    assert main(["manifest", "charades", *words, "--videos", str(folder), "--output", made.manifest]) == 0
    assert main(["extract", "--manifest", made.manifest, "--output", made.features, "--backbone", "random:0"]) == 0
    return made


@pytest.fixture(scope="session")
def swept(corpus) -> Corpus:
    """The corpus with a trained trade-off curve: real Ray Train with two workers, real MLflow."""
    words = ["--manifest", corpus.manifest, "--features", corpus.features, "--output", str(corpus.sweep)]
    small = ["--epochs", "2", "--batch-size", "4", "--hidden-size", "8", "--budget-weights", "0", "0.05"]
    assert main(["sweep", *words, *small, "--learning-rate", "0.05"]) == 0
    return corpus
