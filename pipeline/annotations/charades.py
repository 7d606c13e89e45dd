"""The Charades annotation files as a manifest.

A CSV row is one video: `id`, `actions` (`c092 11.90 21.20;c147 0.00 12.60`: class, start and end in seconds, or empty),
`length` in seconds, and unused columns. Many actions end after `length`; they are kept unchanged.
"""

from collections.abc import Iterator

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.rows import ClassList, duration, read_classes, read_csv, seconds
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import AnnotationProblem, Label, ManifestBuild, VideoEntry

_COLUMNS = ("id", "actions", "length")


def build_charades(train_csv: str, test_csv: str, classes_file: str, videos_dir: str) -> ManifestBuild:
    """Read Charades with the splits "train" and "test"; videos are `<videos_dir>/<id>.mp4`.

    Problems are bad rows (repeated id, missing video, bad length), left out whole, and bad actions.

    Raises:
        ManifestError: if a file cannot be used as a whole, or the folder has no .mp4 file.
    """
    classes = read_classes(classes_file)
    folder = storage.absolute(videos_dir)
    videos = {name for name in storage.list_tree(folder) if name.endswith(".mp4") and "/" not in name}
    if not videos:
        raise ManifestError(f"no .mp4 file in {videos_dir}; give the folder that holds the Charades videos")
    files = {split: (file, read_csv(file, _COLUMNS)) for split, file in (("train", train_csv), ("test", test_csv))}
    return ManifestBuild(classes.names, _outcomes(files, classes, folder, videos))


def _outcomes(
    files: dict[str, tuple[str, Iterator[tuple[int, dict[str, str]]]]],
    classes: ClassList,
    folder: str,
    videos: set[str],
) -> Iterator[VideoEntry | AnnotationProblem]:
    seen = set()
    for split, (file, rows) in files.items():
        for line, row in rows:
            video_id, length_s = row["id"], duration(row["length"])
            if video_id in seen:
                yield AnnotationProblem(file, line, f"id {video_id!r} is listed already; ids must be unique")
            elif f"{video_id}.mp4" not in videos:
                yield AnnotationProblem(file, line, f"no video {video_id}.mp4 in {folder}")
            elif length_s is None:
                yield AnnotationProblem(file, line, f"length {row['length']!r} is not a positive number of seconds")
            else:
                seen.add(video_id)
                outcomes = list(_labels(row["actions"], classes))
                yield from (AnnotationProblem(file, line, reason) for reason in outcomes if isinstance(reason, str))
                labels = tuple(label for label in outcomes if isinstance(label, Label))
                yield VideoEntry(video_id, storage.join(folder, f"{video_id}.mp4"), split, length_s, labels)


def _labels(actions: str, classes: ClassList) -> Iterator[Label | str]:
    """A label for each good action, a reason for each bad one."""
    for action in filter(None, (part.strip() for part in actions.split(";"))):
        name, *times = action.split()
        start_s, end_s = (seconds(time) for time in times) if len(times) == 2 else (None, None)
        if start_s is None or end_s is None:
            yield f"action {action!r} is not a class, a start and an end in seconds, as in c092 11.90 21.20"
        elif name not in classes.ids:
            yield f"action {action!r} has a class that is not in the classes file"
        elif end_s <= start_s:
            yield f"action {action!r} ends at or before its start"
        else:
            yield Label(classes.ids[name], start_s, end_s)
