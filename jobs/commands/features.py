"""Look into a feature set, check it, merge its small shards, or build one from arrays."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from skipreel.features.feature_set.from_arrays import build_from_arrays
from skipreel.features.maintenance.compact import compact
from skipreel.features.maintenance.summary import Summary, summarise
from skipreel.features.maintenance.verify import changed_sources, missing_videos, verify
from skipreel.jobs.runtime.terminal import console, track
from skipreel.pipeline import storage
from skipreel.pipeline.annotations.rows import read_classes
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import write_manifest

EXIT_PROBLEMS = 1


@dataclass(frozen=True, slots=True)
class Show:
    """Print the data card, counts, sizes and failures.

    Attributes:
        uri: the feature set.
        json: print one JSON object.
    """

    uri: tyro.conf.Positional[str]
    json: bool = False

    def run(self) -> int:
        """Read the small columns of the shards and print."""
        summary = summarise(self.uri)
        print(json.dumps(asdict(summary), indent=2) if self.json else _as_text(self.uri, summary))
        return 0


@dataclass(frozen=True, slots=True)
class Verify:
    """Read every byte and check it; exit code 1 if anything is wrong.

    Attributes:
        uri: the feature set.
        manifest: also find videos of this manifest that are neither in the set nor in its failure ledger.
        sources: also find videos that have changed: hash the manifest's files again.
        json: print one JSON object.
    """

    uri: tyro.conf.Positional[str]
    manifest: str | None = None
    sources: bool = False
    json: bool = False

    def run(self) -> int:
        """Print a line for each problem."""
        if self.sources and self.manifest is None:
            raise InputError("--sources needs to know where the files are: give --manifest too")
        problems = list(verify(self.uri, watch=_watch))
        if self.manifest is not None:
            problems += missing_videos(self.uri, self.manifest)
            if self.sources:
                problems += changed_sources(self.uri, self.manifest, watch=_watch)
        if self.json:
            print(json.dumps({"uri": self.uri, "problems": problems}, indent=2))
        else:
            print("\n".join([*problems, f"{self.uri}: {len(problems) or 'no'} problems"]))
        return EXIT_PROBLEMS if problems else 0


@dataclass(frozen=True, slots=True)
class Compact:
    """Merge shards smaller than half the target size. Safe while others read the set, and when killed.

    Attributes:
        uri: the feature set; no extraction may write to it meanwhile.
        shard_mb: target size of a shard in MB.
    """

    uri: tyro.conf.Positional[str]
    shard_mb: int = 64

    def __post_init__(self) -> None:
        if self.shard_mb < 1:
            raise ValueError(f"--shard-mb is {self.shard_mb}, it must be at least 1")

    def run(self) -> int:
        """Merge, and print the number of shards."""
        done = compact(self.uri, shard_bytes=self.shard_mb << 20, watch=_watch)
        console.print(f"{self.uri}: {done.before} shards, now {done.after}", markup=False)
        return 0


@dataclass(frozen=True, slots=True)
class Build:
    """Build a feature set from arrays: npz (features, lengths, labels, split) or Parquet (sequence_id, features, …).

    Attributes:
        files: .npz or .parquet files; docs/features.md describes their content.
        output: the new feature set.
        rate_hz: steps per second.
        manifest_output: where to write the manifest with the labels.
        classes: file with one class name per line; without it the label numbers are the names.
        test_splits: sequences of these splits become the test split, all others the training split.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    output: str
    rate_hz: float
    manifest_output: str = "manifest.parquet"
    classes: str | None = None
    test_splits: tuple[str, ...] = ()

    def run(self) -> int:
        """Write the feature set, then the manifest."""
        manifest = build_from_arrays(
            self.files,
            output=storage.absolute(self.output),
            rate_hz=self.rate_hz,
            class_names=None if self.classes is None else read_classes(self.classes).names,
            test_splits=self.test_splits,
            watch=_watch,
        )
        write_manifest(manifest, self.manifest_output)
        sizes = ", ".join(f"{len(manifest.only(split).entries)} {split}" for split in manifest.splits)
        console.print(
            f"{self.output}: {len(manifest.entries)} sequences ({sizes}), {len(manifest.class_names)} classes; "
            f"manifest: {self.manifest_output}",
            markup=False,
        )
        return 0


@dataclass(frozen=True, slots=True)
class Settings:
    """The action on a feature set.

    Attributes:
        action: the action.
    """

    action: (
        Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Compact, tyro.conf.subcommand("compact")]
        | Annotated[Build, tyro.conf.subcommand("build")]
    )


def run(settings: Settings) -> int:
    """Run the action and return the exit code."""
    return settings.action.run()


def _watch(items: Sequence[Any], description: str) -> Iterator[Any]:
    return track(items, description, total=len(items))


def _as_text(uri: str, summary: Summary) -> str:
    spec = summary.card["recipe"]
    lines = [
        f"{uri}: feature set {summary.card['id']}",
        f"  backbone   {spec['backbone']}, layer {spec['layer']}, {spec['dtype']}, {spec['dim']} features each",
        f"  weights    {spec['weights_digest']}",
        f"  sampling   {spec['sampling']['rate_hz']:g} frames per second",
        *(f"  {key:<10} {value}" for key, value in summary.card["about"].items()),
        f"  videos     {summary.num_videos:,}, {summary.num_frames:,} frames, {summary.video_hours:.2f} hours",
        f"  shards     {summary.num_shards:,}, {summary.num_bytes / 1e6:,.1f} MB",
        f"  failed     {summary.num_failed:,}",
    ]
    for group in summary.failures:
        more = ", …" if group.num_videos > len(group.video_ids) else ""
        lines.append(f"    {group.num_videos:,} × {group.reason} ({', '.join(group.video_ids)}{more})")
    return "\n".join(lines)
