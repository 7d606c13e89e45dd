"""Labels from scores: which classes a network saw, and when.

Letters: T sampled frames, C classes, n rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipreel.features.batching.collate import Task
from skipreel.jobs.closed_loop.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Labelling:
    """What scores mean: the classes in order, the network's task, and from which score on a class counts as seen."""

    class_names: tuple[str, ...]
    task: Task
    threshold: float = 0.5


def labels_of(prediction: Prediction, labelling: Labelling) -> list[dict[str, Any]]:
    """What was recognised, as plain values: `segments` for task frames; for task video the best class and its score."""
    if labelling.task == "frames":
        return list(segments(prediction, labelling.class_names, labelling.threshold))
    best = int(prediction.scores.argmax())
    return [{"class": labelling.class_names[best], "score": round(float(prediction.scores[best]), 4)}]


def segments(prediction: Prediction, class_names: Sequence[str], threshold: float) -> Iterator[dict[str, Any]]:
    """Maximal runs of frames in which a class is seen: class, start_s, end_s and the mean score."""
    seen = prediction.scores >= threshold
    for class_id, name in enumerate(class_names):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen[:, class_id], [False]]).astype(int)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            yield {
                "class": name,
                "start_s": round(float(prediction.pts_s[start]), 3),
                "end_s": round(float(prediction.pts_s[stop - 1]), 3),
                "score": round(float(prediction.scores[start:stop, class_id].mean()), 4),
            }


def video_scores(prediction: Prediction, task: Task) -> NDArray[np.float32]:
    """(C,) scores of the whole video: for task frames the mean over the sampled frames."""
    if task == "video":
        return prediction.scores
    return mean_scores(prediction.scores)


def mean_scores(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, C) -> (C,), added up in float64."""
    mean: NDArray[np.float32] = scores.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
