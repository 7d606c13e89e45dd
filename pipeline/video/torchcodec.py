"""The torchcodec decoder in its exact mode, for plain local MP4, MKV and WebM files; installed as an extra.

torchcodec fails or silently returns wrong frames on edit lists, periodic intra refresh, AVI and MPEG-TS, and it ignores
full-range colours.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.constrained import ConstrainedDecoder
from skipreel.pipeline.video.decoder import Frame


class TorchcodecDecoder(ConstrainedDecoder):
    """A video read with torchcodec on one thread.

    Raises:
        VideoError: if torchcodec is not installed, or the file cannot be opened or decoded exactly.
    """

    _decoder = "torchcodec"
    _codecs = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9", "libdav1d"})
    _rotates = True

    def __init__(self, uri: str) -> None:
        try:
            self._decoders: Any = import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:  # without FFmpeg's libraries it is a RuntimeError
            raise VideoError(
                "decoder torchcodec is not installed: install skipreel[torchcodec] and FFmpeg with its shared "
                "libraries, or use decoder pyav"
            ) from error
        super().__init__(uri)

    def _open(self, path: Path) -> Any:
        try:
            return self._decoders.VideoDecoder(str(path), dimension_order="NHWC", device="cpu")
        except (RuntimeError, ValueError) as error:
            raise self._refused("torchcodec cannot open it") from error

    def _decode(self, index: int) -> Frame | None:
        try:
            image: Frame = self._reader[index].numpy()
        except RuntimeError:
            return None
        return np.ascontiguousarray(image)
