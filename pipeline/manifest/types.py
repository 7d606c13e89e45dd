"""Videos with their labels, and what a builder makes of annotation files; see `pipeline.manifest` for the file."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from ctypes import c_float
from dataclasses import dataclass
from functools import cached_property

from skipreel.pipeline.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Label:
    """One action: `class_id` and the time it spans in seconds from the video's start; a whole-video label is (0, inf).

    Times are rounded to float32, as stored, so that a manifest means the same before and after it was written.
    ManifestError where the times are not 0 <= start_s <= end_s.
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
    """One video: where it is, which split it belongs to, how long it is (None where unknown) and its labels.

    ManifestError for an empty or path-escaping `video_id`, an empty `uri` or `split`, or a duration that is not
    positive.
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
        # Others build file names from ids: none may point out of their folder.
        if self.video_id.startswith("/") or ".." in self.video_id.split("/") or not self.video_id.isprintable():
            raise ManifestError(
                f"video_id {self.video_id!r} is absolute, has '..' or control characters; use a plain name"
            )
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise ManifestError(f"duration_s of {self.video_id} must be a positive number, got {self.duration_s}")


@dataclass(frozen=True)
class Manifest:
    """All videos and the names of their classes; `class_id` counts from 0 in the order of `class_names`.

    ManifestError where two videos share an id, two classes share a name, or a label's class is out of range.
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
        """The videos of one split, with the same classes; ManifestError for a split that is not there."""
        if split not in self.splits:
            raise ManifestError(f"no split {split!r} in the manifest; allowed: {', '.join(self.splits) or 'none'}")
        return Manifest(tuple(entry for entry in self.entries if entry.split == split), self.class_names)


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """Something left out while a manifest was built: `file`, `line` (from 1; 0 where the file has no lines) and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class ManifestBuild:
    """What a builder found: the classes, and video by video an entry, or what is wrong in the annotations.

    `rows` is read once, by `write_rows` in bounded memory or by `manifest` and `problems`, which hold everything. The
    caller decides whether problems are fatal.
    """

    class_names: tuple[str, ...]
    rows: Iterable[VideoEntry | AnnotationProblem]

    @property
    def manifest(self) -> Manifest:
        """All entries."""
        return Manifest(tuple(row for row in self._all if isinstance(row, VideoEntry)), self.class_names)

    @property
    def problems(self) -> tuple[AnnotationProblem, ...]:
        """What was left out."""
        return tuple(row for row in self._all if isinstance(row, AnnotationProblem))

    @cached_property
    def _all(self) -> list[VideoEntry | AnnotationProblem]:
        return list(self.rows)


def check_names(what: str, names: Sequence[str]) -> None:
    """ManifestError where one is repeated or empty."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise repetition(what, repeated[0])
    if not all(names):
        raise ManifestError(f"a {what} is empty; give every one a name")


def repetition(what: str, name: str) -> ManifestError:
    """The error for a name that is there twice."""
    return ManifestError(f"{what} {name!r} appears more than once; each must be unique")


def check_classes(entry: VideoEntry, num_classes: int) -> None:
    """ManifestError where a label's class is not one of `num_classes`."""
    for label in entry.labels:
        if not 0 <= label.class_id < num_classes:
            allowed = f"0 to {num_classes - 1}" if num_classes else "none, as there are no classes"
            raise ManifestError(f"class_id {label.class_id} of video {entry.video_id} is not allowed: {allowed}")
