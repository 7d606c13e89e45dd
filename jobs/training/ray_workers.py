"""The Ray Train adapter: the same workers train one network after another, so a sweep pays their start only once.

Each network comes to the driver as soon as it is trained. Only a network that fails costs a new start of the workers.
"""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from skipreel.features.batching.collate import Task, check_labelled, load_examples
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.runtime.ray_cluster import require_gpus, waiting_is_told
from skipreel.jobs.trained.budget import calibration_examples, has_dial, measure_curve
from skipreel.jobs.training.loop import Epoch, build_recognizer, fit
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import pack_checkpoint
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import read_manifest

_LOST = "what the workers sent did not arrive"


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


class Listener(Protocol):
    """What hears of the training, in another thread of this process, in this order for each network."""

    def started(self, name: str) -> None:
        """The workers have begun with a network."""

    def epoch(self, epoch: Epoch) -> None:
        """Rank 0 has finished an epoch."""

    def trained(self, name: str, files: Mapping[str, bytes]) -> None:
        """A network is trained; the files of its checkpoint. An exception makes it one that failed."""

    def failed(self, name: str, error: Exception) -> None:
        """A network could not be trained, or `trained` raised."""


@dataclass(frozen=True, slots=True)
class _Started:
    name: str


@dataclass(frozen=True, slots=True)
class _Trained:
    name: str
    files: dict[str, bytes]


def train_on_ray(
    points: Sequence[ModelSettings], *, data: TrainingData, schedule: Schedule, workers: Workers, listener: Listener
) -> None:
    """Train every point on a Ray cluster that is already connected; one that fails does not stop those after it.

    On Ctrl-C the listener still gets every network that is trained before KeyboardInterrupt is raised.

    Raises:
        InputError: when the workers cannot be started, or fail before they begin with a network.
    """
    if workers.gpu:
        require_gpus(workers.num_workers)
    remaining = list(points)
    while remaining:
        relay = _Relay(listener)
        error = _run_workers({"points": remaining, "data": data, "schedule": schedule}, workers, relay)
        if not relay.begun:
            raise InputError(f"training failed: {error or _LOST}") from error
        if relay.current is not None:
            listener.failed(relay.current, error or InputError(_LOST))
        remaining = [point for point in remaining if point.name not in relay.begun]


def _run_workers(config: dict[str, Any], workers: Workers, relay: "_Relay") -> InputError | None:
    """One group of workers until it has trained all points or one of them fails; why it failed."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    cpus_each = min(1.0, ray.cluster_resources().get("CPU", 1) / workers.num_workers)
    queue = Queue(actor_options={"num_cpus": 0})
    thread = threading.Thread(target=relay.run, args=(queue,), daemon=True)
    thread.start()
    # Ray Train wants a folder for checkpoints. Ours come through the queue, so no worker needs to see it.
    with tempfile.TemporaryDirectory(prefix="skipreel-train-", ignore_cleanup_errors=True) as storage:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={**config, "queue": queue},
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers, use_gpu=workers.gpu, resources_per_worker={"CPU": cpus_each}
            ),
            run_config=RunConfig(name="train", storage_path=storage),
        )
        needed = {"cpus": cpus_each * workers.num_workers, "gpus": float(workers.num_workers if workers.gpu else 0)}
        try:
            with _ctrl_c_as_usual(), waiting_is_told(**needed) as relay.has_begun:
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = InputError(_first_cause(error))
            failure.__cause__ = error
            return failure
        finally:
            with suppress(ray.exceptions.RayError):
                queue.put(None)
            thread.join()  # it may be measuring the last network
            queue.shutdown()
    return None


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

    queue = config["queue"]
    for settings in config["points"]:
        if rank == 0:
            queue.put(_Started(settings.name))
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
            if has_dial(recognizer):
                metadata["budget_curve"] = measure_curve(recognizer, calibration)
            queue.put(_Trained(settings.name, pack_checkpoint(recognizer.cpu(), metadata)))


@dataclass(slots=True)
class _Relay:
    """Hands what the workers send to the listener.

    Attributes:
        begun: the networks that the workers have begun with.
        current: the one they are at.
        has_begun: called as they begin with one.
    """

    listener: Listener
    has_begun: Callable[[], None] = lambda: None
    begun: set[str] = field(default_factory=set)
    current: str | None = None

    def run(self, queue: Any) -> None:
        """Until None comes."""
        while (event := queue.get()) is not None:
            self.hear(event)

    def hear(self, event: "_Started | Epoch | _Trained") -> None:
        """Take one event; an error of the listener fails that network and does not end the relay."""
        name = event.point if isinstance(event, Epoch) else event.name
        try:
            match event:
                case _Started():
                    self.begun.add(name)
                    self.current = name
                    self.has_begun()
                    self.listener.started(name)
                case Epoch():
                    self.listener.epoch(event)
                case _Trained():
                    self.current = None
                    self.listener.trained(name, event.files)
        except Exception as error:
            self.listener.failed(name, error)


def _first_cause(error: BaseException) -> str:
    causes = getattr(error, "worker_failures", {})
    first = next(iter(causes.values()), error)
    return str(getattr(first, "cause", None) or first).strip().splitlines()[-1]
