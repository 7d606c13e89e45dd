"""Labels any number of videos on a Ray cluster, into Parquet shards and a failure ledger.

The guarantees are those of an extraction, by the same code: `jobs.runtime.video_job` and
`features.extraction.ray_executor`.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.feature_set.card import locked
from skipreel.features.feature_set.schema import Failure
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.jobs.closed_loop.scheduler import SchedulerSettings
from skipreel.jobs.predictions import store as prediction_store
from skipreel.jobs.predictions.store import PredictionRows, PredictionSpec
from skipreel.jobs.runtime.command_line import require_positive
from skipreel.jobs.runtime.ray_cluster import num_cpus, num_gpus, require_gpus
from skipreel.jobs.runtime.video_job import run_video_job
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.model import TrainedModel
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError

# Videos that a process has open at a time: enough to fill batches, few enough for an even share of the videos.
IN_FLIGHT = {"cpu": 8, "cuda": 64}
# How many videos are looked up at a time among the finished ones.
_ROWS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """The processes of a job (--output FOLDER).

    Attributes:
        workers: how many; 0 means one per CPU of the cluster or, with --device cuda, as many as GPUs take.
        gpus_per_worker: share of a GPU for each process, with --device cuda.
        decoder_memory_mb: a video fails if decoding it takes more memory.
        retry_failed: try the videos in the failure ledger again, not only those whose file has changed.
    """

    workers: int = 0
    gpus_per_worker: float = 1.0
    decoder_memory_mb: int = 2048
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"--workers is {self.workers}, allowed: 1 or more, or 0 to choose by the cluster")
        for name in ("gpus_per_worker", "decoder_memory_mb"):
            require_positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How videos are labelled, and where the predictions go.

    Attributes:
        output: a folder or URI; made if missing, continued if its predictions are the same model's.
        model: where the model comes from, for the card.
        backbone: where the model's backbone is found now, if not where the training found it.
        device: where the backbone runs.
        shard_mb: size of a shard in MB, roughly.
        looking: of each process; more than 8 videos in flight on a CPU, or 64, are of no use.
    """

    output: str
    model: str
    backbone: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    shard_mb: float = 64.0
    looking: SchedulerSettings = field(default_factory=SchedulerSettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)

    def __post_init__(self) -> None:
        require_positive("shard_mb", self.shard_mb)
        require_positive("time_limit_s", self.looking.time_limit_s)


def run_job(
    settings: JobSettings, *, model: TrainedModel, videos: Iterable[tuple[str, str]], num_videos: int
) -> dict[str, Any]:
    """Label the videos without predictions, with a progress bar, and say what became of all.

    Args:
        model: the network, on the CPU; it is sent to the processes.
        videos: each one's id, under which its row goes, and its path or URI; read as they are needed.
        num_videos: how many these are.

    Returns:
        ``output``; ``videos``, ``finished`` and ``failed`` of those given; ``cost`` and ``seconds`` (by stage) summed
        over all predictions; ``this_run``. All but ``output`` is in the card too.

    Raises:
        InputError: when the backbone, the output, the cluster or a place of videos cannot be used.
    """
    # Loaded once here, so that a wrong backbone is reported before anything is written.
    about = load_backbone_of(model, name=settings.backbone).about
    output = storage.absolute(settings.output)
    spec = PredictionSpec.of(model, dense=settings.looking.dense)
    with locked(output, job="prediction"):
        prediction_store.create(output, spec, model=settings.model, features=model.spec.to_json(), about=about)
        result = run_video_job(
            output,
            _batches(videos),
            partial(_stages, settings, model, output, num_videos),
            num_videos=num_videos,
            retry_failed=settings.processes.retry_failed,
            has_segments=False,
            description="labelling videos",
            line=_line,
        )
        cost, stages = prediction_store.total_cost(output)
        summary = {
            **result.counts,
            "cost": asdict(cost),
            "seconds": {stage: round(value, 2) for stage, value in asdict(stages).items()},
            "this_run": result.progress.summary(seconds=result.seconds),
        }
        prediction_store.write_card(output, {**prediction_store.read_card(output), "summary": summary})
    return {"output": output, **summary}


def _batches(videos: Iterable[tuple[str, str]]) -> Iterator[pa.RecordBatch]:
    source = iter(videos)
    while rows := list(islice(source, _ROWS_AT_ONCE)):
        # Processes may have another working directory.
        uris = [storage.absolute(uri) for _, uri in rows]
        yield pa.record_batch({"video_id": pa.array([row[0] for row in rows], pa.string()), "uri": uris})


def _stages(
    settings: JobSettings,
    model: TrainedModel,
    output: str,
    num_videos: int,
    planned: Iterator[Planned | None],
    on_failure: Callable[[Failure], None],
) -> tuple[Any, Any]:
    from skipreel.features.extraction.ray_executor import RayExecutor

    decoder, pools = _processes(settings, model, num_videos)
    stages = RayExecutor(
        planned,
        writer=ShardWriter(output, shard_bytes=int(settings.shard_mb * 1e6)),
        decoder=decoder,
        pools=pools,
        on_failure=on_failure,
        new_rows=partial(PredictionRows, task=model.recognizer.config.task),
    )
    return stages, pools


def _processes(settings: JobSettings, model: TrainedModel, num_videos: int) -> tuple[Any, Any]:
    """The `Process` that labels videos, and the `PoolConfig` that say how many."""
    from skipreel.features.extraction.ray_executor import PoolConfig, Process
    from skipreel.jobs.predictions.worker import PredictionWorker

    cpus, on_gpu, processes = num_cpus(), settings.device == "cuda", settings.processes
    if on_gpu:
        require_gpus(math.ceil(processes.gpus_per_worker))
        workers = processes.workers or max(1, int(num_gpus() / processes.gpus_per_worker))
    else:
        workers = processes.workers or cpus
    threads = max(1, cpus // workers)
    # The first process to start must not take all videos.
    in_flight = min(settings.looking.in_flight, IN_FLIGHT[settings.device], math.ceil(num_videos / workers))
    arguments = {
        "model": model,
        "settings": replace(settings.looking, in_flight=in_flight),
        "backbone": settings.backbone,
        "device": settings.device,
        "num_workers": threads,
        "memory_bytes": threads * processes.decoder_memory_mb << 20,
        "import_path": sys.path,
    }
    pools = PoolConfig(
        workers,
        0,
        cpus_per_process=1 / math.ceil(workers / cpus),
        gpus_per_encoder=processes.gpus_per_worker if on_gpu else 0,
        time_limit_s=settings.looking.time_limit_s,
        videos_per_decoder=in_flight,
        bytes_per_decoder=sys.maxsize,
        flags="--workers",
    )
    return Process(PredictionWorker, arguments), pools


def _line(progress: Progress) -> str:
    if progress.working_since is None:
        return "starting processes"
    line = f"{progress.video_s / 3600:.2f} hours of video, {progress.frames_per_s:.0f} sampled frames/s"
    return line + f"; {progress.restarts} restarts" * bool(progress.restarts)
