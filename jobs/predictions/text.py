"""Predictions as lines of text: JSON, CSV, and the two files that Charades' official evaluation reads.

Scores have the fewest digits that read back as the same float32.
Letters: T sampled frames, C classes.
"""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from skipreel.jobs.closed_loop.labels import Labelling, labels_of, mean_scores, video_scores
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.runtime.video_id import video_id_of
from skipreel.pipeline.errors import InputError

CHARADES_TIMES = 25
# Absorbs the float rounding of presentation times, as in pipeline.video.sampling.
_EPSILON_S = 1e-6


class TextFormat(ABC):
    """How one prediction becomes text, in pieces small enough for a video of any length."""

    def header(self) -> str:
        """The start of the file."""
        return ""

    @abstractmethod
    def pieces(self, key: str, prediction: Prediction) -> Iterator[str]:
        """The lines of one video, with their line breaks."""

    def failure(self, key: str, uri: str, reason: str) -> str:  # noqa: ARG002 - only some formats have room for it
        """What the file has for a video that failed."""
        return ""


class JsonLines(TextFormat):
    """One object per video, see `describe`; a failed video has `video`, `uri` and `error`.

    With `frame_scores` (task frames) there are also `frame_index` (T), `pts_s` (T) and `frame_scores` (T x C).
    """

    def __init__(self, labelling: Labelling, *, frame_scores: bool = False) -> None:
        if frame_scores and labelling.task == "video":
            raise InputError(
                "scores of single frames are asked for, but this network scores whole videos; leave it out"
            )
        self._labelling, self._frame_scores = labelling, frame_scores

    def pieces(self, key: str, prediction: Prediction) -> Iterator[str]:
        line = describe(key, prediction, self._labelling)
        if self._frame_scores:
            line["frame_index"] = prediction.frame_index.tolist()
            line["pts_s"] = prediction.pts_s.tolist()
            yield json.dumps(line)[:-1] + ', "frame_scores": ['
            for number, row in enumerate(prediction.scores):
                yield (", [" if number else "[") + ", ".join(_digits(row)) + "]"
            yield "]}\n"
        else:
            yield json.dumps(line) + "\n"

    def failure(self, key: str, uri: str, reason: str) -> str:
        return json.dumps({"video": key, "uri": uri, "error": reason}) + "\n"


class Csv(TextFormat):
    """A row per sampled frame (task frames) or per video, ending in a column with the score of each class."""

    FRAME_COLUMNS = ("video", "frame_index", "pts_s", "looked_at", "labels")
    VIDEO_COLUMNS = ("video", "duration_s", "frames_looked_at", "label")

    def __init__(self, labelling: Labelling) -> None:
        self._labelling = labelling
        self._columns = self.FRAME_COLUMNS if labelling.task == "frames" else self.VIDEO_COLUMNS
        taken = sorted(set(self._columns) & set(labelling.class_names))
        if taken:
            raise InputError(f"a class is named {taken[0]!r}, like a column of its own; write jsonl or parquet instead")

    def header(self) -> str:
        return _csv_line([*self._columns, *self._labelling.class_names])

    def pieces(self, key: str, prediction: Prediction) -> Iterator[str]:
        names, scores = self._labelling.class_names, prediction.scores
        if self._labelling.task == "video":
            best, looked_at = names[int(scores.argmax())], int(prediction.used.sum())
            yield _csv_line([key, prediction.duration_s, looked_at, best, *_digits(scores)])
            return
        frames = zip(prediction.frame_index.tolist(), prediction.pts_s.tolist(), prediction.used.tolist(), strict=True)
        for (index, pts_s, used), row in zip(frames, scores, strict=True):
            seen = ";".join(names[class_id] for class_id in np.flatnonzero(row >= self._labelling.threshold))
            yield _csv_line([key, index, pts_s, int(used), seen, *_digits(row)])


class CharadesLocalisation(TextFormat):
    """Lines `id framenr s0 … sC`: 25 times evenly over each video, framenr 1 to 25.

    An id is `video_id_of` the video's key: a manifest's id, or a file's name without the suffix, as in Charades. White
    space becomes percent codes.
    """

    def __init__(self, labelling: Labelling) -> None:
        if labelling.task != "frames":
            raise InputError("Charades' files need scores in time, but this network scores whole videos; write csv")

    def pieces(self, key: str, prediction: Prediction) -> Iterator[str]:
        for number, scores in enumerate(charades_scores(prediction), 1):
            yield " ".join([_charades_id(key), str(number), *_digits(scores)]) + "\n"


class CharadesClassification(CharadesLocalisation):
    """Lines `id s0 … sC`: the mean of a video's scores at the same 25 times."""

    def pieces(self, key: str, prediction: Prediction) -> Iterator[str]:
        yield " ".join([_charades_id(key), *_digits(mean_scores(charades_scores(prediction)))]) + "\n"


def describe(key: str, prediction: Prediction, labelling: Labelling) -> dict[str, Any]:
    """A prediction as plain values.

    `labels` are those of `labels_of`; `scores` has each class's score for the whole video, for
    task frames the mean over the sampled frames. Then come the times of the looks, the costs and the seconds of each
    stage. Times count from the first frame; `start_s` is the first frame's time by the file's clock.
    """
    overall = video_scores(prediction, labelling.task)
    return {
        "video": key,
        "uri": prediction.uri,
        "duration_s": prediction.duration_s,
        "start_s": prediction.start_s,
        "labels": labels_of(prediction, labelling),
        "scores": dict(zip(labelling.class_names, map(float, _digits(overall)), strict=True)),
        "looked_at_s": [round(float(time), 3) for time in prediction.pts_s[prediction.used]],
        "cost": asdict(prediction.cost),
        "seconds": {stage: round(value, 4) for stage, value in asdict(prediction.seconds).items()},
    }


def charades_scores(prediction: Prediction) -> NDArray[np.float32]:
    """(25, C) scores of the sampled frames on screen at (j - 1) / 25 of the video's duration, j = 1 … 25.

    As in `pipeline.video.sampling`, times count from the first frame, and the frame on screen is the last one presented
    at or before a time.
    """
    times_s = prediction.pts_s[0] + np.arange(CHARADES_TIMES) / CHARADES_TIMES * prediction.duration_s
    shown = np.searchsorted(prediction.pts_s, times_s + _EPSILON_S, side="right") - 1
    scores: NDArray[np.float32] = prediction.scores[shown]
    return scores


def _charades_id(key: str) -> str:
    return "".join(quote(letter) if letter.isspace() else letter for letter in video_id_of(key))


def _digits(scores: NDArray[np.float32]) -> list[str]:
    texts: list[str] = scores.astype(str).tolist()
    return texts


def _csv_line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
