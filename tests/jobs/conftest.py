"""What tests of several commands share: an MLflow server, and one small corpus taken all the way to a report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skipreel.jobs.cli import main
from skipreel.pipeline.synthetic import CorpusConfig, plan_corpus, write_annotations, write_video
from tests.support.mlflow_server import mlflow_server


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
