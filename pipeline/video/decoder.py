"""`VideoDecoder`, the interface of all decoders; `pipeline/video/registry.py` lists them.

Letters: N frames in the video, H and W in pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.closeable import Closeable

Frame = NDArray[np.uint8]


class VideoDecoder(Closeable):
    """An open video; use it as a context manager or call `close`.

    Attributes:
        pts_seconds: (N,) float64, presentation times in seconds; they strictly increase from 0.0, the first frame's.
        start_s: the first frame's time on the file's own clock, in seconds; 0.0 if the file does not state one.
        duration_s: seconds from the start of the first frame to the end of the last.
    """

    pts_seconds: NDArray[np.float64]
    start_s: float = 0.0
    duration_s: float

    @property
    @abstractmethod
    def num_decoded(self) -> int:
        """Number of frames decoded so far, wanted or not; a frame decoded twice counts twice."""

    @property
    def num_converted(self) -> int:
        """Number of decoded frames converted to RGB; all of them unless a decoder says otherwise."""
        return self.num_decoded

    @abstractmethod
    def get_frame_at(self, index: int) -> Frame:
        """Decode one frame. Any order works; ascending order is cheap.

        Args:
            index: the frame's number in presentation order, 0 to N - 1.

        Returns:
            (H, W, 3) uint8 RGB, contiguous and upright.

        Raises:
            VideoError: if the frame cannot be decoded.
            IndexError: if `index` is out of range.
        """

    def iter_frames_at(self, indices: Iterable[int]) -> Iterator[Frame]:
        """Yield the frames `indices` in their order, as `get_frame_at` returns them; cheaper than single reads."""
        return map(self.get_frame_at, indices)

    def set_candidates(self, indices: Iterable[int]) -> None:
        """Announce that only these frames will be read from now on, in any order, so that others may be dropped.

        Any other frame can still be read exactly, but a dropped one costs a seek to the key frame before it.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file; calling it again does nothing."""

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.pts_seconds):
            raise IndexError(f"frame {index} asked for, allowed: 0 to {len(self.pts_seconds) - 1}")
        return int(index)


def from_first_frame(pts_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Presentation times (T,), T >= 1, of one video, shifted so that the first is 0.0, as labels count.

    The clock of a file may start anywhere: at 1.4 s in most MPEG-TS files.
    """
    if pts_s[0] == 0:
        return pts_s
    counted: NDArray[np.float64] = np.round(pts_s - pts_s[0], 9)  # no clock is finer than nanoseconds
    return counted
