"""Which way to the next wanted frame costs less: decoding on, or starting anew at the last key frame before it.

A decoder takes packets in decoding order and hands pictures out later, in presentation order. So what it took in, not
what came out, says which key frames still lie ahead. Both ways meet at the key frame: from there on they take in the
same packets, hand out the same pictures and leave the decoder in the same state. Choosing the cheaper way to each frame
by itself is therefore choosing the cheapest plan, whatever is wanted later.
"""

from collections.abc import Collection
from dataclasses import dataclass

from skipreel.pipeline.video.pyav.frame_index import FrameIndex, Key


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one thread: for a seek with all that starting anew takes, and by what is done with a packet."""

    seek_s: float
    key_s: float
    frame_s: float
    dropped_s: float


# `python -m benchmarks.decode_plan --fit`, H.264 of 320×240 to 1920×1080: AMD EPYC with AVX-512, PyAV 18.1.
FIXED = Costs(seek_s=54e-6, key_s=0.03e-3, frame_s=0.04e-3, dropped_s=3.6e-6)
PER_MEGAPIXEL = Costs(seek_s=55e-6, key_s=8.3e-3, frame_s=1.29e-3, dropped_s=3.2e-6)


def costs_of(pixels: int) -> Costs:
    """What a video of so many pixels a frame is taken to cost."""
    pairs = ((name, getattr(FIXED, name) + getattr(PER_MEGAPIXEL, name) * pixels / 1e6) for name in Costs.__slots__)
    return Costs(**dict(pairs))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which frames may be dropped, where no other frame needs them.

    Attributes:
        frames: what is wanted, as far as it is known.
        last: the last of them. Later frames enter the decoder only because it delays its output.
        expected: the only ones that may be wanted some day; None: any.
    """

    frames: Collection[int]
    last: int
    expected: Collection[int] | None = None

    def spares(self, frame: int) -> bool:
        """Whether nobody wants a frame, and of later ones, nobody will."""
        if frame in self.frames:
            return False
        return frame < self.last or (self.expected is not None and frame not in self.expected)


def seek_pays(index: FrameIndex, key: Key | None, fed: int, wanted: Wanted, costs: Costs) -> bool:
    """Whether starting at `key` costs less than feeding all packets between the first `fed` ones and it."""
    seconds = 0.0
    for place in range(fed, key.place if key is not None else 0):
        seconds += feeding_s(index, place, wanted, costs)
        if seconds > costs.seek_s:
            return True
    return False


def feeding_s(index: FrameIndex, place: int, wanted: Wanted, costs: Costs) -> float:
    """Seconds that the packet at `place` in decoding order is taken to cost."""
    frame = index.order[place]
    if frame in index.droppable and wanted.spares(frame):
        return costs.dropped_s
    return costs.key_s if place in index.key_places else costs.frame_s
