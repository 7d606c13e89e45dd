"""The decord decoder, for plain local MP4 and MKV files.

decord silently returns wrong frames on edit lists, open groups of pictures, periodic intra refresh, AVI and MPEG-TS. It
takes another of several video streams, scrambles rows when it rotates pictures of most widths, scales pictures whose
size changes midway (VP9), returns too many colour channels of narrow pictures, and cannot open AV1.
"""

from pathlib import Path
from typing import Any

from skipreel.pipeline.video.constrained import ConstrainedDecoder
from skipreel.pipeline.video.decoder import Frame


class DecordDecoder(ConstrainedDecoder):
    """A video read with decord on one thread.

    Raises:
        VideoError: if the file cannot be opened or decoded exactly.
    """

    _decoder = "decord"
    _codecs = frozenset({"h264", "hevc", "mpeg4"})
    _rotates = False

    def _open(self, path: Path) -> Any:
        import decord

        try:
            return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise self._refused("decord cannot open it") from error

    def _decode(self, index: int) -> Frame | None:
        import decord

        try:
            image: Frame = self._reader[index].asnumpy()
        except (decord.DECORDError, RuntimeError):
            return None
        if image.shape[2] != 3:
            raise self._refused("decord returns too many colour channels for a picture this narrow")
        return image
