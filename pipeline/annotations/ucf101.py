"""The official UCF-101 split files as a manifest.

`classInd.txt` has lines `1 ApplyEyeMakeup`, `trainlist01.txt` has `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1` and
`testlist01.txt` the same without the number. A video is `<root>/<class>/<name>.avi`; its id is `<class>/<name>`.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.class_folders import SUFFIXES
from skipreel.pipeline.annotations.rows import read_lines
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import AnnotationProblem, Label, ManifestBuild, VideoEntry

_CLASSES = "classInd.txt"


def build_ucf101(root: str, splits: str, split_number: int = 1) -> ManifestBuild:
    """Read UCF-101 from the class folders in `root` and the lists numbered `split_number` (1 to 3) in folder `splits`.

    Splits are "train" and "test"; classes keep the order of `classInd.txt`. Problems are malformed lines, unknown
    classes, class numbers that do not match, missing or repeated videos, and videos in neither list.

    Raises:
        ManifestError: if a file cannot be used as a whole, or `root` has no video.
    """
    names = _class_names(storage.join(splits, _CLASSES))
    folder = storage.absolute(root)
    videos = {file for file in storage.list_tree(folder) if PurePosixPath(file).suffix.lower() in SUFFIXES}
    if not videos:
        raise ManifestError(f"no video in {root}; give the folder that holds UCF-101's class folders")
    lists = {split: storage.join(splits, f"{split}list{split_number:02}.txt") for split in ("train", "test")}
    lines = [(split, uri, *line) for split, uri in lists.items() for line in read_lines(uri)]
    return ManifestBuild(tuple(names), _outcomes(lines, names, folder, videos))


def _class_names(uri: str) -> dict[str, int]:
    """Class numbers, from 1, by name."""
    numbers: dict[str, int] = {}
    for line, text in read_lines(uri):
        number, *name = text.split(maxsplit=1)
        if number != str(len(numbers) + 1) or not name or name[0] in numbers:
            raise ManifestError(f"{uri}:{line}: {text!r} is not the next new class, as in '1 ApplyEyeMakeup'")
        numbers[name[0]] = len(numbers) + 1
    return numbers


def _outcomes(
    lines: list[tuple[str, str, int, str]], names: dict[str, int], folder: str, videos: set[str]
) -> Iterator[VideoEntry | AnnotationProblem]:
    listed: dict[str, str] = {}
    for split, uri, line, text in lines:
        file, _ = _parsed(text)
        place = listed.setdefault(file, f"{uri}:{line}")
        reason = _mistake(text, split, names)
        if reason is None and place != f"{uri}:{line}":
            reason = f"{file!r} is listed already ({place}); list every video once"
        elif reason is None and file not in videos:
            reason = f"no video {file!r} in {folder}"
        if reason is not None:
            yield AnnotationProblem(uri, line, reason)
        else:
            label = Label(names[file.partition("/")[0]] - 1)
            yield VideoEntry(
                str(PurePosixPath(file).with_suffix("")), storage.join(folder, file), split, labels=(label,)
            )
    for file in sorted(videos - listed.keys()):
        yield AnnotationProblem(storage.join(folder, file), 0, "this video is in neither list")


def _parsed(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\S+)\s+(\d+)", text)
    return (match[1], int(match[2])) if match else (text, None)


def _mistake(text: str, split: str, names: dict[str, int]) -> str | None:
    file, number = _parsed(text)
    name = file.partition("/")[0]
    if number is None and split == "train":
        return f"{text!r} is not a video and the number of its class, as in 'Archery/v_Archery_g08_c01.avi 3'"
    if name not in names:
        return f"class {name!r} of {file!r} is not in {_CLASSES}"
    if number not in (None, names[name]):
        return f"class number {number} of {file!r} is not that of {name} in {_CLASSES}, {names[name]}"
    return None
