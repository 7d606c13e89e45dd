"""The Ray Train adapter: the same workers train one network after another, so a sweep pays their start only once."""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.batches import Task, check_labelled, load_examples
from features.reader import FeatureSet
from jobs.budget import calibration_examples, has_dial, measure_curve
from jobs.cluster import require_gpus
from jobs.points import ModelSettings, Schedule
from jobs.training import Epoch, build_recognizer, fit
from models import save_checkpoint
from pipeline.errors import InputError
from pipeline.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the workers read: every one of them must be able to reach both places.

    Attributes:
        manifest: URI of the manifest.
        features: URI of the feature set.
        task: frames (several labels per frame) or video (one label per video).
        split: the split that is trained on.
        skip_missing: leave out videos without features instead of stopping.
    """

    manifest: str
    features: str
    task: Task
    split: str = "train"
    skip_missing: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """Who trains.

    Attributes:
        num_workers: training processes.
        gpu: one GPU for each of them.
    """

    num_workers: int = 2
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"--num-workers is {self.num_workers}, it must be at least 1")


def train_on_ray(
    points: Sequence[ModelSettings],
    *,
    data: TrainingData,
    schedule: Schedule,
    workers: Workers,
    checkpoints: Path,
    on_epoch: Callable[[Epoch], None],
) -> dict[str, Path]:
    """Train every point on a Ray cluster that is already connected.

    Args:
        checkpoints: the folder that receives a checkpoint directory per point, named after it.
        on_epoch: called in this process, from another thread, as rank 0 finishes epochs.

    Returns:
        the checkpoint directory of each point, by name.

    Raises:
        InputError: when the workers cannot be started or one of them failed.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    if workers.gpu:
        require_gpus(workers.num_workers)
    cpus_each = min(1.0, ray.cluster_resources().get("CPU", 1) / workers.num_workers)
    queue = Queue(actor_options={"num_cpus": 0})
    relay = threading.Thread(target=_relay, args=(queue, on_epoch), daemon=True)
    relay.start()
    checkpoints.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=checkpoints.resolve(), prefix=".ray-") as storage:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"points": list(points), "data": data, "schedule": schedule, "queue": queue},
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers, use_gpu=workers.gpu, resources_per_worker={"CPU": cpus_each}
            ),
            run_config=RunConfig(name="train", storage_path=storage),
        )
        try:
            with _ctrl_c_as_usual():
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise InputError(_first_cause(error)) from error
        finally:
            _stop(queue, relay)
        saved = {metrics["point"]: checkpoint for checkpoint, metrics in result.best_checkpoints}
        directories = {point.name: checkpoints / point.name for point in points}
        for name, directory in directories.items():
            saved[name].to_directory(str(directory))
    return directories


@contextmanager
def _ctrl_c_as_usual() -> Iterator[None]:
    """Ray Train takes over Ctrl-C for good, and leaves the program with exit code 0 on it: undo both."""
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, handler)


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    # Vanished gradients become denormal numbers, which a CPU multiplies many times slower.
    torch.set_flush_denormal(True)
    context = ray.train.get_context()
    data: TrainingData = config["data"]
    feature_set, manifest = FeatureSet(data.features), read_manifest(data.manifest)
    examples = load_examples(feature_set, manifest, split=data.split, task=data.task, skip_missing=data.skip_missing)
    check_labelled(examples, split=data.split)
    rank = context.get_world_rank()
    calibration = calibration_examples(feature_set, manifest, examples, task=data.task) if rank == 0 else []

    for settings in config["points"]:
        recognizer = build_recognizer(settings, examples, task=data.task, num_classes=len(manifest.class_names))
        fit(
            recognizer,
            examples,
            settings=settings,
            schedule=config["schedule"],
            on_epoch=config["queue"].put if rank == 0 else lambda _: None,
            rank=rank,
            num_workers=context.get_world_size(),
            device=str(ray.train.torch.get_device()),
            wrap=ray.train.torch.prepare_model,
        )
        metadata = {
            "settings": settings.to_json(),
            "class_names": list(manifest.class_names),
            "feature_set_id": feature_set.id,
            "recipe": feature_set.recipe.to_json(),
        }
        if rank == 0 and has_dial(recognizer):
            metadata["budget_curve"] = measure_curve(recognizer, calibration)
        _report(recognizer.cpu(), metadata, point=settings.name, rank=rank)


def _report(recognizer: Any, metadata: dict[str, Any], *, point: str, rank: int) -> None:
    import ray.train

    if rank != 0:
        ray.train.report({"point": point}, checkpoint_dir_name=point)
        return
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(Path(directory) / point, recognizer, metadata)
        checkpoint = ray.train.Checkpoint.from_directory(str(Path(directory) / point))
        ray.train.report({"point": point}, checkpoint=checkpoint, checkpoint_dir_name=point)


def _relay(queue: Any, on_epoch: Callable[[Epoch], None]) -> None:
    while (event := queue.get()) is not None:
        on_epoch(event)


def _stop(queue: Any, relay: threading.Thread) -> None:
    queue.put(None)
    relay.join(timeout=10)
    queue.shutdown()


def _first_cause(error: BaseException) -> str:
    causes = getattr(error, "worker_failures", {})
    first = next(iter(causes.values()), error)
    return f"training failed: {str(getattr(first, 'cause', None) or first).strip().splitlines()[-1]}"
