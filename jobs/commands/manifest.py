"""List the videos of a corpus with their splits and labels, as one Parquet file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from skipreel.jobs.runtime.terminal import console
from skipreel.pipeline.annotations.charades import build_charades
from skipreel.pipeline.annotations.class_folders import build_folder
from skipreel.pipeline.annotations.table import build_table
from skipreel.pipeline.annotations.ucf101 import build_ucf101
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import AnnotationProblem, ManifestBuild, VideoEntry, write_rows


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with one subfolder of video files per class.

    Attributes:
        root: the folder that holds the class folders.
        output: where to write the manifest (Parquet).
        splits: CSV with the columns file and split; without it a random share of each class is the test split.
        test_fraction: that share.
        seed: seed of the random split.
        skip_bad: leave bad rows out instead of stopping at them.
    """

    root: tyro.conf.Positional[str]
    output: str = "manifest.parquet"
    splits: str | None = None
    test_fraction: float = 0.3
    seed: int = 0
    skip_bad: bool = False

    def build(self) -> ManifestBuild:
        """Read the folder."""
        return build_folder(self.root, splits=self.splits, test_fraction=self.test_fraction, seed=self.seed)


@dataclass(frozen=True, slots=True)
class Charades:
    """The Charades annotations: two CSVs, the classes file, and a folder of <id>.mp4.

    Attributes:
        train: Charades_v1_train.csv.
        test: Charades_v1_test.csv.
        classes: Charades_v1_classes.txt.
        videos: folder of the videos.
        output: where to write the manifest (Parquet).
        skip_bad: leave bad rows and actions out instead of stopping at them.
    """

    train: str
    test: str
    classes: str
    videos: str
    output: str = "manifest.parquet"
    skip_bad: bool = False

    def build(self) -> ManifestBuild:
        """Read the annotations."""
        return build_charades(self.train, self.test, self.classes, self.videos)


@dataclass(frozen=True, slots=True)
class Ucf101:
    """The official UCF-101 lists: classInd.txt, trainlist01.txt and testlist01.txt (or 02, 03), and the videos.

    Attributes:
        root: the folder that holds the class folders with the videos.
        splits: folder of the lists.
        split_number: number of the official split.
        output: where to write the manifest (Parquet).
        skip_bad: leave bad lines and unlisted videos out instead of stopping at them.
    """

    root: str
    splits: str
    split_number: Literal[1, 2, 3] = 1
    output: str = "manifest.parquet"
    skip_bad: bool = False

    def build(self) -> ManifestBuild:
        """Read the lists."""
        return build_ucf101(self.root, self.splits, self.split_number)


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV, JSONL or Parquet file with the columns uri and labels, and optionally video_id, split and duration_s.

    Attributes:
        path: the file.
        output: where to write the manifest (Parquet).
        classes: file with one class name per line; without it the names that occur, sorted.
        skip_bad: leave bad rows out instead of stopping at them.
    """

    path: tyro.conf.Positional[str]
    output: str = "manifest.parquet"
    classes: str | None = None
    skip_bad: bool = False

    def build(self) -> ManifestBuild:
        """Read the file."""
        return build_table(self.path, classes_file=self.classes)


@dataclass(frozen=True, slots=True)
class Settings:
    """The corpus.

    Attributes:
        source: the layout of the corpus.
    """

    source: (
        Annotated[Folder, tyro.conf.subcommand("folder")]
        | Annotated[Charades, tyro.conf.subcommand("charades")]
        | Annotated[Ucf101, tyro.conf.subcommand("ucf101")]
        | Annotated[Table, tyro.conf.subcommand("table")]
    )


def run(settings: Settings) -> int:
    """Build and write the manifest. Problems are printed by file and line, and are fatal without --skip-bad."""
    source = settings.source
    built = source.build()
    sizes: Counter[str] = Counter()
    write_rows(_good(built, source.skip_bad, sizes), built.class_names, source.output)
    shares = ", ".join(f"{size} {split}" for split, size in sorted(sizes.items()))
    console.print(f"{source.output}: {sizes.total()} videos ({shares}), {len(built.class_names)} classes")
    return 0


def _good(built: ManifestBuild, skip_bad: bool, sizes: Counter[str]) -> Iterator[VideoEntry]:
    """Yield the usable videos, count them by split and print the problems.

    Raises:
        ManifestError: after the last row, for problems without `skip_bad`, or when no video is usable.
    """
    num_problems = 0
    for row in built.rows:
        if isinstance(row, AnnotationProblem):
            num_problems += 1
            console.print(str(row), markup=False)
        else:
            sizes[row.split] += 1
            yield row
    if num_problems and not skip_bad:
        raise ManifestError(f"{num_problems} bad rows (listed above), nothing written: correct them or give --skip-bad")
    if not sizes:
        raise ManifestError("no usable video is left, nothing written")
