"""A folder with one subfolder per class as a manifest."""

import hashlib
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePosixPath

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.rows import read_csv
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import AnnotationProblem, Label, ManifestBuild, VideoEntry

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg")


def build_folder(root: str, splits: str | None = None, test_fraction: float = 0.3, seed: int = 0) -> ManifestBuild:
    """List the videos below the subfolders of `root`, each labelled as a whole with its subfolder's name.

    Classes are sorted. A video's id is its path relative to `root` without the suffix. Problems are files that the CSV
    does not name, CSV rows without a video, and a second file with the same id.

    Args:
        root: the folder with one subfolder per class.
        splits: a CSV with the columns `file` (relative to `root`) and `split`. Without it each class is split into
            "train" and "test", the same on every machine; a class with two videos or more has both.
        test_fraction: the share of test videos, between 0 and 1.
        seed: chooses the test videos.

    Raises:
        ManifestError: if `root` has no class folder with a video, or `splits` or `test_fraction` cannot be used.
    """
    if not 0 < test_fraction < 1:
        raise ManifestError(f"the test fraction must lie between 0 and 1, got {test_fraction}")
    files, problems = _videos(root)
    if splits is None:
        split_of = _stratified(files, test_fraction, seed)
    else:
        split_of, found = _read_splits(splits, set(files.values()))
        problems += found
    names = sorted({_class_of(file) for file in files.values()})
    return ManifestBuild(
        tuple(names), chain(problems, _entries(storage.absolute(root), files, split_of, names, splits))
    )


def _entries(
    root: str, files: dict[str, str], split_of: dict[str, str], names: list[str], splits: str | None
) -> Iterator[VideoEntry | AnnotationProblem]:
    for video_id, file in files.items():
        uri = storage.join(root, file)
        if file not in split_of:
            yield AnnotationProblem(uri, 0, f"this video is not in {splits}")
            continue
        try:
            yield VideoEntry(video_id, uri, split_of[file], labels=(Label(names.index(_class_of(file))),))
        except ManifestError as error:  # a file name that cannot be an id
            yield AnnotationProblem(uri, 0, str(error))


def _videos(root: str) -> tuple[dict[str, str], list[AnnotationProblem]]:
    """Relative path by video id, sorted, and a problem for each file whose id is taken."""
    files: dict[str, str] = {}
    problems = []
    for file in storage.list_tree(root):
        path = PurePosixPath(file)
        if path.suffix.lower() not in SUFFIXES or len(path.parts) < 2 or path.name.startswith("."):
            continue
        video_id = str(path.with_suffix(""))
        if video_id in files:
            reason = f"its id {video_id!r} is that of {files[video_id]} too; rename one of them"
            problems.append(AnnotationProblem(storage.join(root, file), 0, reason))
        else:
            files[video_id] = file
    if not files:
        raise ManifestError(
            f"{root} has no class folder with a video in it; "
            f"give a folder with one subfolder per class that holds {', '.join(SUFFIXES)} files"
        )
    return files, problems


def _class_of(file: str) -> str:
    return PurePosixPath(file).parts[0]


def _stratified(files: dict[str, str], test_fraction: float, seed: int) -> dict[str, str]:
    by_class: dict[str, list[str]] = {}
    for file in files.values():
        by_class.setdefault(_class_of(file), []).append(file)
    split_of = {}
    for members in by_class.values():
        # To sort by a hash is a shuffle that depends only on the seed and the names.
        shuffled = sorted(members, key=lambda file: hashlib.sha256(f"{seed}/{file}".encode()).digest())
        num_test = max(1, min(len(members) - 1, math.floor(test_fraction * len(members) + 0.5)))
        for place, file in enumerate(shuffled):
            split_of[file] = "test" if place < num_test and len(members) > 1 else "train"
    return split_of


def _read_splits(splits: str, files: set[str]) -> tuple[dict[str, str], list[AnnotationProblem]]:
    split_of: dict[str, str] = {}
    problems = []
    for line, row in read_csv(splits, ("file", "split")):
        file = str(PurePosixPath(row["file"]))
        if file not in files:
            problems.append(AnnotationProblem(splits, line, f"no video {row['file']!r} in a class folder"))
        elif file in split_of:
            problems.append(AnnotationProblem(splits, line, f"file {row['file']!r} is listed already"))
        elif not row["split"]:
            problems.append(AnnotationProblem(splits, line, f"file {row['file']!r} has no split"))
        else:
            split_of[file] = row["split"]
    return split_of, problems
