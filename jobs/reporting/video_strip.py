"""Film strips from predictions: decodes the thumbnails of a predicted video, and writes strips as PNG files.

T sampled frames, k frames per cell of the strip, n = ceil(T / k) cells, thumbnails of h x w pixels.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipreel.features.batching.collate import Task
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.reporting.filmstrip import Strip, film_strip, png
from skipreel.pipeline import storage
from skipreel.pipeline.video import Frame, open_video

MAX_CELLS = 96
THUMBNAIL_WIDTH, MAX_THUMBNAIL_HEIGHT = 112, 224


def strip_of(
    video_id: str,
    prediction: Prediction,
    *,
    class_names: Sequence[str],
    task: Task,
    threshold: float = 0.5,
    true_spans: Sequence[tuple[int, float, float]] = (),
    true_label: str | None = None,
    caption: str = "",
    decoder: str = "pyav",
) -> Strip:
    """Make the strip of a predicted video: decode one thumbnail per cell, at most 96.

    A cell shows its first frame that was looked at, otherwise its first frame. Memory: one frame and the thumbnails.

    Args:
        video_id: the title.
        threshold: lowest score at which a class counts as predicted in a frame (task frames).
        true_spans: (class id, start, end) in seconds (task frames).
        true_label: the true label (task video).
        caption: text below the title.
        decoder: name of the decoder.

    Raises:
        VideoError: a frame cannot be decoded; it may be one that the prediction skipped.
    """
    frames_per_cell = -(-len(prediction.used) // MAX_CELLS)
    frames_task = task == "frames"
    return Strip(
        video_id=video_id,
        times_s=prediction.pts_s,
        thumbnails=_thumbnails(prediction, _shown(prediction.used, frames_per_cell), decoder),
        used=prediction.used,
        class_names=class_names,
        true_spans=true_spans,
        predicted=prediction.scores >= threshold if frames_task else None,
        true_label=true_label,
        predicted_label=None if frames_task else class_names[int(prediction.scores.argmax())],
        caption=caption,
        frames_per_cell=frames_per_cell,
    )


@dataclass(frozen=True, slots=True)
class StripFolder:
    """A folder (or URI) of film strips, one PNG file for each predicted video.

    Attributes:
        threshold: lowest score at which a class counts as predicted in a frame (task frames).
    """

    uri: str
    class_names: Sequence[str]
    task: Task
    threshold: float = 0.5
    decoder: str = "pyav"

    def add(self, key: str, prediction: Prediction) -> str:
        """Write the strip of a video atomically, under `strip_name`, and return its URI.

        Raises:
            VideoError: a frame cannot be decoded.
            StorageError: the file cannot be written.
        """
        strip = strip_of(
            key,
            prediction,
            class_names=self.class_names,
            task=self.task,
            threshold=self.threshold,
            decoder=self.decoder,
        )
        uri = storage.join(self.uri, strip_name(key))
        storage.write_atomic(uri, png(film_strip(strip)))
        return uri


def strip_name(key: str) -> str:
    """A safe file name for the strip of a video, different for every key (in case too).

    A key that is a plain name is kept. Of any other key the last part is kept, with a digest of the whole.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", key) and not re.search(r"-[0-9a-f]{12}$", key):
        return f"{key}.png"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(key.partition("?")[0]).stem).strip("-_")[:60]
    return f"{stem or 'video'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.png"


def _shown(used: NDArray[np.bool_], frames_per_cell: int) -> list[int]:
    """The step (index of a sampled frame) that each of the n cells shows."""
    cells = (range(start, min(start + frames_per_cell, len(used))) for start in range(0, len(used), frames_per_cell))
    return [next((step for step in cell if used[step]), cell.start) for cell in cells]


def _thumbnails(prediction: Prediction, steps: Sequence[int], decoder: str) -> NDArray[np.uint8]:
    """(n, h, w, 3) uint8 RGB."""
    with open_video(prediction.uri, decoder) as video:
        return np.stack([_thumbnail(frame) for frame in video.iter_frames_at(prediction.frame_index[steps].tolist())])


def _thumbnail(frame: Frame) -> Frame:
    """A frame, resized to `THUMBNAIL_WIDTH` or, if it is very high, to `MAX_THUMBNAIL_HEIGHT`."""
    height, width = frame.shape[:2]
    scale = min(THUMBNAIL_WIDTH / width, MAX_THUMBNAIL_HEIGHT / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return np.asarray(Image.fromarray(frame).resize(size))
