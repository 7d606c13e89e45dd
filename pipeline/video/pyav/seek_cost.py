"""Whether decoding on or a seek to the last key frame is the cheaper way to the next wanted frame.

A decoder takes packets in decoding order and returns pictures later, in presentation order. So the packets that were
fed, not the pictures that came out, say which key frames lie ahead. Both ways meet at the key frame. From there they
feed the same packets, return the same pictures and leave the decoder in the same state. The cheaper way to each frame
therefore gives the cheapest plan, whatever is wanted later.
"""

from collections.abc import Collection
from dataclasses import dataclass

from skipreel.pipeline.video.pyav.frame_index import FrameIndex, KeyFrame


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on one thread: of a seek with the restart of the decoder, and of each kind of packet."""

    seek_s: float
    key_s: float
    frame_s: float
    dropped_s: float


# `python -m benchmarks.decode_plan --fit`, H.264 of 320×240 to 1920×1080: AMD EPYC with AVX-512, PyAV 18.1.
FIXED = Costs(seek_s=54e-6, key_s=0.03e-3, frame_s=0.04e-3, dropped_s=3.6e-6)
PER_MEGAPIXEL = Costs(seek_s=55e-6, key_s=8.3e-3, frame_s=1.29e-3, dropped_s=3.2e-6)


def costs_of(pixels: int) -> Costs:
    """The estimated costs for a video with this many pixels per frame."""
    pairs = ((name, getattr(FIXED, name) + getattr(PER_MEGAPIXEL, name) * pixels / 1e6) for name in Costs.__slots__)
    return Costs(**dict(pairs))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The frames that are wanted, by frame number.

    Attributes:
        frames: those wanted now, as far as known.
        last: the last of them. Later frames enter the decoder only because it delays its output.
        candidates: all that may be wanted later; None: any.
    """

    frames: Collection[int]
    last: int
    candidates: Collection[int] | None = None

    def may_drop(self, frame: int) -> bool:
        """Whether a frame is not wanted and, if it comes after the last wanted one, is not a candidate either."""
        if frame in self.frames:
            return False
        return frame < self.last or (self.candidates is not None and frame not in self.candidates)


def seek_pays(index: FrameIndex, key: KeyFrame | None, fed: int, wanted: Wanted, costs: Costs) -> bool:
    """Whether a seek to `key` costs less than to feed all packets from position `fed` up to it."""
    seconds = 0.0
    for place in range(fed, key.place if key is not None else 0):
        seconds += feeding_s(index, place, wanted, costs)
        if seconds > costs.seek_s:
            return True
    return False


def feeding_s(index: FrameIndex, place: int, wanted: Wanted, costs: Costs) -> float:
    """Estimated seconds for the packet at position `place` in decoding order."""
    frame = index.order[place]
    if frame in index.droppable and wanted.may_drop(frame):
        return costs.dropped_s
    return costs.key_s if place in index.key_places else costs.frame_s
