"""Labels of a video's frames, from the labels in a manifest and the frames' times."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.manifest.types import Label


def frame_targets(labels: Sequence[Label], pts_s: NDArray[np.float64], *, num_classes: int) -> NDArray[np.float32]:
    """(T, C) of {0, 1}: a class is positive at time t if start <= t <= end of one of its labels (Charades' rule).

    ``pts_s`` (T,) ascends and counts from the video's first frame, as labels do.
    """
    targets = np.zeros((len(pts_s), num_classes), np.float32)
    firsts = np.searchsorted(pts_s, [label.start_s for label in labels], side="left")
    ends = np.searchsorted(pts_s, [label.end_s for label in labels], side="right")
    for label, first, end in zip(labels, firsts, ends, strict=True):
        targets[first:end, label.class_id] = 1
    return targets
