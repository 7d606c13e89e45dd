"""Values: videos with their labels, a manifest of them, and the result of reading annotation files."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from ctypes import c_float
from dataclasses import dataclass
from functools import cached_property

from skipreel.pipeline.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Label:
    """One action: its class, start and end in seconds from the video's first frame; (0, inf) is the whole video.

    Times are rounded to float32, as stored, so that writing and reading a manifest does not change it.

    Raises:
        ManifestError: unless 0 <= start_s <= end_s and start_s is finite.
    """

    class_id: int
    start_s: float = 0.0
    end_s: float = math.inf

    def __post_init__(self) -> None:
        start_s, end_s = c_float(self.start_s).value, c_float(self.end_s).value
        if not 0 <= start_s <= end_s or math.isinf(start_s):  # NaN fails the comparison too
            raise ManifestError(f"label times must be 0 <= start <= end in seconds, got {self.start_s} to {self.end_s}")
        object.__setattr__(self, "start_s", start_s)
        object.__setattr__(self, "end_s", end_s)


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """One video: its place, its split, its duration in seconds (None if unknown) and its labels.

    Raises:
        ManifestError: if `video_id`, `uri` or `split` is empty, `video_id` escapes a folder as a path, or the duration
            is not positive.
    """

    video_id: str
    uri: str
    split: str
    duration_s: float | None = None
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        for field in ("video_id", "uri", "split"):
            if not getattr(self, field).strip():
                raise ManifestError(f"{field} is empty for video {self.video_id or self.uri!r}; give every video one")
        # Ids become file names, which must stay inside their folder.
        if self.video_id.startswith("/") or ".." in self.video_id.split("/") or not self.video_id.isprintable():
            raise ManifestError(
                f"video_id {self.video_id!r} is absolute, has '..' or control characters; use a plain name"
            )
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise ManifestError(f"duration_s of {self.video_id} must be a positive number, got {self.duration_s}")


@dataclass(frozen=True)
class Manifest:
    """All videos and the names of their classes; `class_id` counts from 0 in the order of `class_names`.

    Raises:
        ManifestError: if a video id or class name is repeated or empty, or a label's class is out of range.
    """

    entries: tuple[VideoEntry, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_names("class name", self.class_names)
        check_names("video_id", [entry.video_id for entry in self.entries])
        for entry in self.entries:
            check_classes(entry, len(self.class_names))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({entry.split for entry in self.entries}))

    def only(self, split: str) -> "Manifest":
        """The videos of one split, with the same classes; ManifestError if there is no such split."""
        if split not in self.splits:
            raise ManifestError(f"no split {split!r} in the manifest; allowed: {', '.join(self.splits) or 'none'}")
        return Manifest(tuple(entry for entry in self.entries if entry.split == split), self.class_names)


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """An annotation that was left out: its file, its line (from 1; 0 if the file has no lines) and the reason."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class ManifestBuild:
    """The result of reading annotation files; the caller decides whether problems are fatal.

    Attributes:
        class_names: in the order of their ids.
        rows: entries and problems, in the order of the annotations. To be read once: by `write_rows` in bounded memory,
            or by `manifest` and `problems`, which hold all rows.
    """

    class_names: tuple[str, ...]
    rows: Iterable[VideoEntry | AnnotationProblem]

    @property
    def manifest(self) -> Manifest:
        """All entries as a manifest."""
        return Manifest(tuple(row for row in self._all if isinstance(row, VideoEntry)), self.class_names)

    @property
    def problems(self) -> tuple[AnnotationProblem, ...]:
        """All annotations that were left out."""
        return tuple(row for row in self._all if isinstance(row, AnnotationProblem))

    @cached_property
    def _all(self) -> list[VideoEntry | AnnotationProblem]:
        return list(self.rows)


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise ManifestError if a name is repeated or empty; `what` names them in the message."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise repetition(what, repeated[0])
    if not all(names):
        raise ManifestError(f"a {what} is empty; give every one a name")


def repetition(what: str, name: str) -> ManifestError:
    """The error for a repeated name."""
    return ManifestError(f"{what} {name!r} appears more than once; each must be unique")


def check_classes(entry: VideoEntry, num_classes: int) -> None:
    """Raise ManifestError if the class of a label is out of range."""
    for label in entry.labels:
        if not 0 <= label.class_id < num_classes:
            allowed = f"0 to {num_classes - 1}" if num_classes else "none, as there are no classes"
            raise ManifestError(f"class_id {label.class_id} of video {entry.video_id} is not allowed: {allowed}")
