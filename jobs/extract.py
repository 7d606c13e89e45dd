"""Decode sampled frames on a Ray cluster and store their CNN features as Parquet shards.

Videos that have features already are not touched, so an interrupted extraction goes on where it stopped.
Exit code 0: every video has features; 3: some failed and are in the failure ledger; 1: the job itself failed.
"""

from dataclasses import dataclass
from typing import Literal

from features import store
from features.backbones import load_backbone
from features.errors import FeatureSetError
from features.recipe import Recipe
from jobs.cluster import num_cpus, ray_cluster, require_gpus
from jobs.progress import console, progress_bar
from pipeline import storage
from pipeline.manifest import Manifest, VideoEntry, read_manifest
from pipeline.sampling import Sampling

EXIT_SOME_FAILED = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """What is extracted, with what, and where to.

    Attributes:
        manifest: the videos, from skipreel manifest.
        output: the feature set (a folder; made if missing, gone on with if it has the same recipe).
        backbone: hf:<directory or hub id of the transformers library>, random:<seed> (a small untrained CNN), or
            small:<directory> (the demo's small CNN).
        rate_hz: frames per second of video.
        decoder: pyav reads everything; decord plain MP4 and Matroska only.
        num_workers: processes that decode and encode; 0 means one per CPU of the cluster.
        device: where the backbone runs.
    """

    manifest: str
    output: str
    backbone: str
    rate_hz: float = 6.0
    decoder: Literal["pyav", "decord"] = "pyav"
    num_workers: int = 0
    device: Literal["cpu", "cuda"] = "cpu"


def run(settings: Settings) -> int:
    """Extract what is missing and print what became of the videos."""
    manifest = read_manifest(settings.manifest)
    backbone = load_backbone(settings.backbone)
    console.print(f"backbone: {backbone.about}, {backbone.dim} features a frame")
    sampling = Sampling(rate_hz=settings.rate_hz)
    recipe = Recipe(backbone.name, backbone.weights_digest, backbone.preprocessing, sampling, backbone.dim)
    output = storage.absolute(settings.output)
    store.create(output, recipe, about={"backbone": backbone.about, "decoder": settings.decoder})
    missing = _missing(manifest, output)
    if missing:
        with ray_cluster():
            require_gpus(1 if settings.device == "cuda" else 0)
            _extract(missing, settings, output=output, sampling=sampling)
    return _summarise(manifest, output)


def _missing(manifest: Manifest, output: str) -> list[VideoEntry]:
    done = store.finished(output)
    for entry in manifest.entries:
        if entry.video_id in done and storage.exists(entry.uri) and storage.sha256(entry.uri) != done[entry.video_id]:
            raise FeatureSetError(
                f"{entry.uri} has changed since its features were extracted: choose another --output for the new file"
            )
    return [entry for entry in manifest.entries if entry.video_id not in done]


def _extract(entries: list[VideoEntry], settings: Settings, *, output: str, sampling: Sampling) -> None:
    from features.stages import extract_on_ray

    results = extract_on_ray(
        entries,
        output=output,
        backbone=settings.backbone,
        sampling=sampling,
        decoder=settings.decoder,
        num_workers=settings.num_workers or num_cpus(),
        device=settings.device,
    )
    with progress_bar() as progress:
        task = progress.add_task("extracting videos", total=len(entries), note="")
        failed = 0
        for result in results:
            failed += bool(result.reason)
            progress.update(task, advance=1, note=f"{failed} failed" if failed else "")


def _summarise(manifest: Manifest, output: str) -> int:
    ids = {entry.video_id for entry in manifest.entries}
    failures = [row for row in store.failures(output) if row["video_id"] in ids]
    for row in failures:
        console.print(f"failed: {row['video_id']}: {row['reason']}", markup=False)
    console.print(f"{output}: {len(ids) - len(failures)} videos with features, {len(failures)} failed")
    return EXIT_SOME_FAILED if failures else 0
