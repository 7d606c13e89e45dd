"""The interface of every decoder; `pipeline/video/registry.py` says which there are.

Letters: N frames in the video, H and W in pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.closeable import Closeable

Frame = NDArray[np.uint8]


class VideoDecoder(Closeable):
    """An opened video; use it as a context manager or call `close`.

    Attributes:
        pts_seconds: (N,) float64, each frame's presentation time in seconds from the first frame on, which has 0.0;
            strictly increasing.
        start_s: the first frame's time by the file's own clock, in seconds; 0.0 where the file does not state one.
        duration_s: seconds from the start of the first frame to the end of the last.
    """

    pts_seconds: NDArray[np.float64]
    start_s: float = 0.0
    duration_s: float

    @property
    @abstractmethod
    def num_decoded(self) -> int:
        """How many frames went through the decoder so far, wanted or not, each pass over a frame counted."""

    @property
    def num_converted(self) -> int:
        """How many decoded frames were turned into RGB; all of them, where a decoder does not say otherwise."""
        return self.num_decoded

    @abstractmethod
    def get_frame_at(self, index: int) -> Frame:
        """Frame `index`, counted from 0 in presentation order, as (H, W, 3) uint8 RGB, contiguous and upright.

        Any order works; ascending is cheap. VideoError where the frame cannot be decoded, IndexError outside
        0 to N - 1.
        """

    def iter_frames_at(self, indices: Iterable[int]) -> Iterator[Frame]:
        """The frames `indices` one by one, in their order, each as `read` returns it; cheaper than single reads."""
        return map(self.get_frame_at, indices)

    def set_candidates(self, indices: Iterable[int]) -> None:
        """Say that from now on no other frames will be read, in whatever order: a decoder may drop all others for good.

        Any frame can still be read, exactly; a dropped one costs a start at the key frame before it.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file; calling it again does nothing."""

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.pts_seconds):
            raise IndexError(f"frame {index} asked for, allowed: 0 to {len(self.pts_seconds) - 1}")
        return int(index)


def from_first_frame(pts_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Presentation times (T,) of one video, T >= 1, counted from its first; such times are returned as they are.

    Labels count from there too, while the clock of a file may start anywhere: at 1.4 s in most MPEG-TS files.
    """
    if pts_s[0] == 0:
        return pts_s
    counted: NDArray[np.float64] = np.round(pts_s - pts_s[0], 9)  # there is no clock finer than nanoseconds
    return counted
