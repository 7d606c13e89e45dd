"""Training on Ray Train: one worker group trains network after network, so a sweep pays its start only once.

The driver gets each network as soon as it is trained. Only a network that fails costs a new start of the workers.
"""

import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from skipreel.features.batching.collate import Task, check_labelled, load_examples
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.runtime.ray_cluster import require_gpus, tell_when_waiting
from skipreel.jobs.trained.budget import calibration_examples, has_budget, measure_curve
from skipreel.jobs.training.events import Listener, Relay, Started, Trained
from skipreel.jobs.training.loop import build_recognizer, fit
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import pack_checkpoint
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import read_manifest

_NO_EVENTS = "the workers' messages did not arrive"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data that the workers read. Every worker must be able to reach both URIs.

    Attributes:
        manifest: URI of the manifest.
        features: URI of the feature set.
        task: frames (several labels per frame) or video (one label per video).
        split: the split to train on.
        skip_missing: leave out videos without features instead of stopping.
    """

    manifest: str
    features: str
    task: Task
    split: str = "train"
    skip_missing: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """The training processes.

    Attributes:
        num_workers: number of training processes.
        gpu: give each of them one GPU.
    """

    num_workers: int = 2
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"--num-workers is {self.num_workers}, it must be at least 1")


def train_on_ray(
    points: Sequence[ModelSettings], *, data: TrainingData, schedule: Schedule, workers: Workers, listener: Listener
) -> None:
    """Train networks one after another on the connected Ray cluster. A network that fails does not stop the others.

    On Ctrl-C the listener gets every network that is already trained, then KeyboardInterrupt is raised.

    Raises:
        InputError: the workers cannot be started, or they fail before they begin with a network.
    """
    if workers.gpu:
        require_gpus(workers.num_workers)
    remaining = list(points)
    while remaining:
        relay = Relay(listener)
        error = run_workers({"points": remaining, "data": data, "schedule": schedule}, workers, relay)
        if not relay.begun:
            raise InputError(f"training failed: {error or _NO_EVENTS}") from error
        if relay.current is not None:
            listener.failed(relay.current, error or InputError(_NO_EVENTS))
        remaining = [point for point in remaining if point.name not in relay.begun]


def run_workers(config: dict[str, Any], workers: Workers, relay: Relay) -> InputError | None:
    """Start one group of workers and wait until it has trained all networks or one has failed.

    Args:
        config: the arguments of `train_worker`, without the queue.

    Returns:
        Why a network failed; None when all are trained.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    cpus_each = min(1.0, ray.cluster_resources().get("CPU", 1) / workers.num_workers)
    queue = Queue(actor_options={"num_cpus": 0})
    thread = threading.Thread(target=relay.run, args=(queue,), daemon=True)
    thread.start()
    # Ray Train requires a folder for checkpoints. Ours come through the queue, so the workers need not reach it.
    with tempfile.TemporaryDirectory(prefix="skipreel-train-", ignore_cleanup_errors=True) as storage:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={**config, "queue": queue},
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers, use_gpu=workers.gpu, resources_per_worker={"CPU": cpus_each}
            ),
            run_config=RunConfig(name="train", storage_path=storage),
        )
        needed = {"cpus": cpus_each * workers.num_workers, "gpus": float(workers.num_workers if workers.gpu else 0)}
        try:
            with _ctrl_c_as_usual(), tell_when_waiting(**needed) as relay.has_begun:
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = InputError(_first_cause(error))
            failure.__cause__ = error
            return failure
        finally:
            with suppress(ray.exceptions.RayError):
                queue.put(None)
            thread.join()  # it may still be evaluating the last network
            queue.shutdown()
    return None


@contextmanager
def _ctrl_c_as_usual() -> Iterator[None]:
    """Undo what Ray Train does to Ctrl-C: it keeps the handler for good, and ends the program with exit code 0."""
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, handler)


def train_worker(config: dict[str, Any]) -> None:
    """Train networks in one of Ray Train's workers; rank 0 sends the events.

    Args:
        config: "points": the `ModelSettings` of each network; "data": `TrainingData`; "schedule": `Schedule`;
            "queue": the Ray queue for the events.

    Raises:
        InputError: the training split cannot be used.
    """
    import ray.train
    import ray.train.torch
    import torch

    # Vanishing gradients become denormal numbers, and a CPU multiplies those many times slower.
    torch.set_flush_denormal(True)
    context = ray.train.get_context()
    data: TrainingData = config["data"]
    feature_set, manifest = FeatureSet(data.features), read_manifest(data.manifest)
    examples = load_examples(feature_set, manifest, split=data.split, task=data.task, skip_missing=data.skip_missing)
    check_labelled(examples, split=data.split)
    rank = context.get_world_rank()
    calibration = calibration_examples(feature_set, manifest, examples, task=data.task) if rank == 0 else []

    queue = config["queue"]
    for settings in config["points"]:
        if rank == 0:
            queue.put(Started(settings.name))
        recognizer = build_recognizer(settings, examples, task=data.task, num_classes=len(manifest.class_names))
        fit(
            recognizer,
            examples,
            settings=settings,
            schedule=config["schedule"],
            on_epoch=queue.put if rank == 0 else lambda _: None,
            rank=rank,
            num_workers=context.get_world_size(),
            device=str(ray.train.torch.get_device()),
            wrap=ray.train.torch.prepare_model,
        )
        if rank == 0:
            metadata = {
                "settings": settings.to_json(),
                "schedule": asdict(config["schedule"]),
                "class_names": list(manifest.class_names),
                "feature_set_id": feature_set.id,
                "recipe": feature_set.spec.to_json(),
            }
            if has_budget(recognizer):
                metadata["budget_curve"] = measure_curve(recognizer, calibration)
            queue.put(Trained(settings.name, pack_checkpoint(recognizer.cpu(), metadata)))


def _first_cause(error: BaseException) -> str:
    causes = getattr(error, "worker_failures", {})
    first = next(iter(causes.values()), error)
    return str(getattr(first, "cause", None) or first).strip().splitlines()[-1]
