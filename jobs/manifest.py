"""List the videos of a corpus with their splits and labels, as one Parquet file."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.progress import console
from pipeline.charades import build_charades
from pipeline.errors import ManifestError
from pipeline.folders import build_folder
from pipeline.manifest import Built, write_manifest
from pipeline.tables import build_table


@dataclass(frozen=True, slots=True)
class Folder:
    """One subfolder per class, video files inside.

    Attributes:
        root: the folder that holds the class folders.
        output: where the manifest is written (Parquet).
        splits: a CSV with the columns file and split; without it a seeded share of each class is the test split.
        test_fraction: that share.
        seed: of the split.
        skip_bad: leave bad rows out instead of stopping at them.
    """

    root: tyro.conf.Positional[str]
    output: str = "manifest.parquet"
    splits: str | None = None
    test_fraction: float = 0.3
    seed: int = 0
    skip_bad: bool = False

    def build(self) -> Built:
        """Read the folder."""
        return build_folder(self.root, splits=self.splits, test_fraction=self.test_fraction, seed=self.seed)


@dataclass(frozen=True, slots=True)
class Charades:
    """The Charades annotations: two CSVs, the classes file, and a folder of <id>.mp4.

    Attributes:
        train: Charades_v1_train.csv.
        test: Charades_v1_test.csv.
        classes: Charades_v1_classes.txt.
        videos: the folder of the videos.
        output: where the manifest is written (Parquet).
        skip_bad: leave bad rows and actions out instead of stopping at them.
    """

    train: str
    test: str
    classes: str
    videos: str
    output: str = "manifest.parquet"
    skip_bad: bool = False

    def build(self) -> Built:
        """Read the annotations."""
        return build_charades(self.train, self.test, self.classes, self.videos)


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV or JSONL file with the columns uri and labels, and optionally video_id, split and duration_s.

    Attributes:
        path: the file.
        output: where the manifest is written (Parquet).
        classes: a file with one class name per line; without it the names seen, sorted.
        skip_bad: leave bad rows out instead of stopping at them.
    """

    path: tyro.conf.Positional[str]
    output: str = "manifest.parquet"
    classes: str | None = None
    skip_bad: bool = False

    def build(self) -> Built:
        """Read the file."""
        return build_table(self.path, classes_file=self.classes)


@dataclass(frozen=True, slots=True)
class Settings:
    """Which corpus to list.

    Attributes:
        source: its layout.
    """

    source: (
        Annotated[Folder, tyro.conf.subcommand("folder")]
        | Annotated[Charades, tyro.conf.subcommand("charades")]
        | Annotated[Table, tyro.conf.subcommand("table")]
    )


def run(settings: Settings) -> int:
    """Build and write the manifest; problems are listed by file and line, and are fatal unless skip_bad is set."""
    source = settings.source
    built = source.build()
    for problem in built.problems:
        console.print(f"{problem.file}:{problem.line}: {problem.reason}", markup=False)
    if built.problems and not source.skip_bad:
        raise ManifestError(
            f"{len(built.problems)} bad rows (listed above), nothing written: mend them or give --skip-bad"
        )
    manifest = built.manifest
    if not manifest.entries:
        raise ManifestError("no usable video is left, nothing written")
    write_manifest(manifest, source.output)
    sizes = ", ".join(f"{len(manifest.only(split).entries)} {split}" for split in sorted(manifest.splits))
    console.print(f"{source.output}: {len(manifest.entries)} videos ({sizes}), {len(manifest.class_names)} classes")
    return 0
