"""Decode sampled frames on a Ray cluster and store their CNN features as Parquet shards.

Videos that have features are not touched, so an interrupted extraction continues where it stopped. A video whose file
has changed is extracted again. Exit code 0: every video has features; 3: some failed and are in the failure ledger; 1:
the job itself failed.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from skipreel.features.backbones.backbone import batch_size_on
from skipreel.features.extraction.actors import BackboneSettings
from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.work import FrameSettings
from skipreel.features.feature_set.card import create_feature_set, locked, read_card, write_card
from skipreel.features.feature_set.schema import Failure
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.runtime.command_line import require_positive
from skipreel.jobs.runtime.ray_cluster import num_cpus, num_gpus, require_gpus
from skipreel.jobs.runtime.terminal import console
from skipreel.jobs.runtime.video_job import JobResult, run_video_job
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import iterate_manifest, manifest_size
from skipreel.pipeline.video import find_decoder
from skipreel.pipeline.video.sampling import Sampling

EXIT_SOME_FAILED = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """What is extracted, with what, and where to.

    Attributes:
        manifest: the videos, from skipreel manifest.
        output: the feature set (a folder or URI; made if missing, gone on with if it has the same recipe).
        backbone: hf:<directory or hub id of the transformers library>, timm:<name>, module:function (your own),
            random:<seed> (a small untrained CNN), or small:<directory> (the demo's small CNN).
        layer: which of the backbone's outputs.
        dtype: of the backbone's weights and arithmetic; features are stored as float16.
        rate_hz: frames per second of video.
        decoder: pyav reads everything; decord and torchcodec plain MP4 and Matroska; or module:function (your own).
        device: where the backbone runs.
        compile: compile the backbone; worth it on a GPU for many frames.
        decoders: processes that decode; 0 means one per CPU of the cluster that no encoder on a GPU needs.
        encoders: processes that hold the backbone; 0 means as many as the GPUs take and, without GPUs, that every
            decoder encodes too, so that no frame travels.
        gpus_per_encoder: share of a GPU for each encoder, with --device cuda.
        shard_mb: size of a shard in MB, roughly.
        time_limit_s: a video fails if its next frames do not come within this many seconds.
        decoder_memory_mb: a video fails if decoding it takes more memory.
        retry_failed: try the videos in the failure ledger again, not only those whose file has changed.
        json: print the summary as one JSON object on standard output.
    """

    manifest: str
    output: str
    backbone: str
    layer: str = "pooled"
    dtype: Literal["float32", "bfloat16"] = "float32"
    rate_hz: float = 6.0
    decoder: str = "pyav"
    device: Literal["cpu", "cuda"] = "cpu"
    compile: bool = False
    decoders: int = 0
    encoders: int = 0
    gpus_per_encoder: float = 1.0
    shard_mb: float = 64.0
    time_limit_s: float = 300.0
    decoder_memory_mb: int = 2048
    retry_failed: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        find_decoder(self.decoder)
        for name in ("decoders", "encoders"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"--{name} is {getattr(self, name)}, allowed: 1 or more, or 0 to choose by the cluster"
                )
        for name in ("gpus_per_encoder", "shard_mb", "time_limit_s", "decoder_memory_mb"):
            require_positive(name, getattr(self, name))

    @property
    def backbone_settings(self) -> BackboneSettings:
        """How each encoder loads the backbone."""
        return BackboneSettings(self.backbone, self.device, self.layer, self.dtype, self.compile)


def run(settings: Settings) -> int:
    """Extract what is missing and print what became of the videos."""
    num_videos = manifest_size(settings.manifest)
    output = storage.absolute(settings.output)
    spec, about, frames = _describe(settings)
    with locked(output):
        create_feature_set(output, spec, about=about)
        result = run_video_job(
            output,
            iterate_manifest(settings.manifest, batch_rows=65536),
            partial(_stages, settings, frames, output),
            num_videos=num_videos,
            retry_failed=settings.retry_failed,
            has_segments=True,
            description="extracting videos",
            line=Progress.line,
        )
        summary = _summary(result)
        write_card(output, {**read_card(output), "summary": summary})
    _report(settings, output, summary)
    return EXIT_SOME_FAILED if summary["failed"] else 0


def _describe(settings: Settings) -> tuple[FeatureSpec, dict[str, str], FrameSettings]:
    """What the feature set's data card will say; loads the backbone to find it out, and drops it."""
    backbone = BackboneSettings(settings.backbone, layer=settings.layer, dtype=settings.dtype).load()
    console.print(f"backbone: {backbone.about}, {backbone.dim} features a frame")
    sampling = Sampling(rate_hz=settings.rate_hz)
    frames = FrameSettings(sampling, batch_size_on(settings.device), settings.decoder)
    return backbone.spec(sampling), {"backbone": backbone.about, "decoder": settings.decoder}, frames


def _stages(
    settings: Settings,
    frames: FrameSettings,
    output: str,
    planned: Iterator[Planned | None],
    on_failure: Callable[[Failure], None],
) -> tuple[Any, Any]:
    from skipreel.features.extraction.ray_executor import Extraction

    pools = _pools(settings)
    writer = ShardWriter(output, shard_bytes=int(settings.shard_mb * 1e6))
    backbone = settings.backbone_settings
    extraction = Extraction(
        planned, writer=writer, frames=frames, backbone=backbone, pools=pools, on_failure=on_failure
    )
    return extraction, pools


def _pools(settings: Settings) -> Any:
    from skipreel.features.extraction.ray_executor import PoolConfig

    cpus = num_cpus()
    on_gpu = settings.device == "cuda"
    if on_gpu:
        require_gpus(math.ceil(settings.gpus_per_encoder))
        encoders = settings.encoders or int(num_gpus() / settings.gpus_per_encoder)
        decoders = settings.decoders or max(1, cpus - encoders)
    else:
        encoders, decoders = settings.encoders, settings.decoders or cpus
    return PoolConfig(
        decoders,
        encoders,
        # Decoders and encoders that share a CPU take turns by themselves: whoever is ahead waits.
        cpus_per_process=1 / math.ceil((decoders + encoders) / cpus),
        gpus_per_encoder=settings.gpus_per_encoder if on_gpu else 0,
        threads_per_encoder=max(1, cpus // (encoders or decoders)),
        time_limit_s=settings.time_limit_s,
        decoder_memory_bytes=settings.decoder_memory_mb << 20,
    )


def _summary(result: JobResult) -> dict[str, Any]:
    decoders_busy, encoders_busy = result.progress.busy
    return {
        **result.counts,
        "this_run": {
            **result.progress.summary(seconds=result.seconds),
            "decoders_busy": round(decoders_busy, 3),
            "encoders_busy": round(encoders_busy, 3),
            "advice": result.progress.advice(),
        },
    }


def _report(settings: Settings, output: str, summary: dict[str, Any]) -> None:
    run = summary["this_run"]
    if run["frames"]:
        console.print(
            f"{run['finished']} videos ({run['video_hours']:.2f} hours, {run['frames']} frames) in "
            f"{run['seconds']:.0f} s, {run['startup_seconds']:.0f} of them to start; "
            f"{run['frames_per_second']:.0f} frames a second"
        )
    if run["advice"]:
        console.print(run["advice"])
    console.print(f"{output}: {summary['finished']} videos with features, {summary['failed']} failed", markup=False)
    if summary["failed"]:
        console.print(f"skipreel features show {output} names them; --retry-failed tries them again", markup=False)
    if settings.json:
        print(json.dumps({"output": output, **summary}))
