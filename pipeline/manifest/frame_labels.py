"""Labels per frame, from a video's labels in the manifest and the times of its frames."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.manifest.types import Label


def frame_targets(labels: Sequence[Label], pts_s: NDArray[np.float64], *, num_classes: int) -> NDArray[np.float32]:
    """Targets by Charades' rule: a class is positive at time t if start <= t <= end for one of its labels.

    Args:
        pts_s: (T,) float64, ascending seconds from the video's first frame.

    Returns:
        (T, C) float32 of 0 and 1.
    """
    targets = np.zeros((len(pts_s), num_classes), np.float32)
    firsts = np.searchsorted(pts_s, [label.start_s for label in labels], side="left")
    ends = np.searchsorted(pts_s, [label.end_s for label in labels], side="right")
    for label, first, end in zip(labels, firsts, ends, strict=True):
        targets[first:end, label.class_id] = 1
    return targets
