"""Everything once, on generated videos, in minutes: corpus, manifest, backbone, features, trade-off curve, report.

Nothing is downloaded. The corpus consists of real H.264 files in Charades' layout. Every later step but the backbone is
a command, which is printed as it can be given by hand.
"""

import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from skipreel.jobs.runtime.command_line import run_command
from skipreel.jobs.runtime.mlflow_runs import runs_page
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.jobs.runtime.terminal import console, progress_bar, track
from skipreel.jobs.training.record import load_record
from skipreel.jobs.training.small_cnn import train_small_cnn
from skipreel.pipeline.manifest import read_manifest
from skipreel.pipeline.synthetic import CorpusConfig, plan_corpus, write_annotations, write_video

BUDGET_WEIGHTS = (2e-4, 5e-4, 1e-3)
BACKBONE_EPOCHS = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """The place and the size of the demo.

    Attributes:
        output: folder; its corpus, features and networks are replaced, new MLflow runs are added to the old ones.
        num_train: number of generated training videos.
        num_test: number of generated test videos.
        epochs: passes over the training videos, for every network.
        seed: seed of the corpus.
    """

    output: str = "skipreel-demo"
    num_train: int = 96
    num_test: int = 48
    epochs: int = 60
    seed: int = 0


def run(settings: Settings) -> int:
    """Run every step on one local Ray cluster.

    Returns:
        The exit code: 3 when a network failed or MLflow did not get everything.
    """
    started = time.perf_counter()
    output = Path(settings.output)
    corpus, features, backbone = (output / name for name in ("corpus", "features", "backbone"))
    listing = output / "manifest.parquet"
    for old in (corpus, features, backbone, output / "checkpoints"):
        shutil.rmtree(old, ignore_errors=True)
    with ray_cluster():
        _step(1, f"corpus: {settings.num_train} training and {settings.num_test} test videos in {corpus}")
        _write_corpus(corpus, CorpusConfig(settings.num_train, settings.num_test, settings.seed))
        _step(2, "manifest")
        give_command("manifest", *_manifest_words(corpus, listing))
        _step(3, "backbone: no weights can be downloaded, so a small CNN is trained on the training videos' frames")
        _train_backbone(listing, backbone)
        _step(4, "features")
        words = ["--manifest", listing, "--output", features, "--backbone", f"small:{backbone.resolve()}"]
        give_command("extract", *words)
        _step(5, "training and evaluation")
        code = give_command("sweep", *sweep_words(settings, listing, features))
        _step(6, "report")
        give_command("report", output)
    record = load_record(output)
    if record.mlflow_uri.startswith("sqlite"):
        command = f"mlflow server --backend-store-uri '{record.mlflow_uri}' --port 5000 --workers 1"
        console.print(f"\n[bold]MLflow:[/bold] MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {command}")
    console.print(f"[bold]runs:[/bold] {runs_page(record.mlflow_uri, record.run_id)}")
    console.print(f"took {(time.perf_counter() - started) / 60:.1f} minutes")
    return code


def _step(number: int, text: str) -> None:
    console.print(f"[bold]{number}/6[/bold] {text}")


def give_command(name: str, *words: object) -> int:
    """Print a command as it can be given by hand, run it, and return its exit code."""
    texts = [str(word) for word in words]
    console.print(f"    skipreel {name} {shlex.join(texts)}", markup=False, highlight=False, soft_wrap=True)
    return run_command(name, texts)


def _write_corpus(folder: Path, config: CorpusConfig) -> None:
    """Render and encode the videos as Ray tasks, one per video."""
    import ray

    folder.mkdir(parents=True, exist_ok=True)
    scenes = plan_corpus(config)
    write = ray.remote(num_cpus=1, max_retries=2)(write_video)
    pending = [write.remote(scene, folder.resolve() / f"{scene.video_id}.mp4") for scene in scenes]
    for _ in track(range(len(scenes)), "rendering videos", total=len(scenes)):
        (finished, *_), pending = ray.wait(pending)
        ray.get(finished)
    write_annotations(scenes, folder)


def _train_backbone(listing: Path, backbone: Path) -> None:
    with progress_bar() as progress:
        task = progress.add_task("training the backbone", total=BACKBONE_EPOCHS, note="decoding")
        train_small_cnn(
            read_manifest(str(listing)),
            str(backbone),
            epochs=BACKBONE_EPOCHS,
            on_epoch=lambda epoch, loss: progress.update(task, completed=epoch, note=f"loss {loss:.3f}"),
        )


def _manifest_words(corpus: Path, listing: Path) -> list[object]:
    files = {"train": "train.csv", "test": "test.csv", "classes": "classes.txt"}
    given = [word for flag, name in files.items() for word in (f"--{flag}", corpus / f"Charades_v1_{name}")]
    return ["charades", *given, "--videos", corpus, "--output", listing]


def sweep_words(settings: Settings, listing: Path, features: Path) -> list[object]:
    """The words of the demo's sweep."""
    network = ["--budget-weights", *BUDGET_WEIGHTS, "--hidden-size", 96, "--dropout", 0.2]
    schedule = ["--epochs", settings.epochs, "--batch-size", 16, "--learning-rate", 0.006]
    places = ["--manifest", listing, "--features", features, "--output", settings.output]
    return [*places, *network, *schedule, "--num-workers", 2]
