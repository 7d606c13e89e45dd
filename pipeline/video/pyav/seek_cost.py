"""Which way to the next wanted frame costs less: decoding on, or starting anew at the last key frame before it.

A decoder takes packets in decoding order and hands pictures out later, in presentation order. So what it took in, not
what came out, says which key frames still lie ahead. Both ways meet at the key frame: from there on they take in the
same packets, hand out the same pictures and leave the decoder in the same state. Choosing the cheaper way to each frame
by itself is therefore choosing the cheapest plan, whatever is wanted later.
"""

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Step:
    """How one wanted frame is reached.

    Attributes:
        key: where decoding starts anew; None: it goes on.
        decoded: frames that go through the decoder for it.
        dropped: packets that are passed over.
        seconds: what that is expected to cost.
    """

    frame: int
    key: Key | None
    decoded: int
    dropped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class State:
    """What a decoder has seen.

    Attributes:
        fed: packets that it took in, counted from the first of the file.
        out: the frame that came out last; -1: none since it started.
        inside: frames that it took in and that did not come out yet, as a heap; -1 for those that nobody sees.
        dropped: frames that it took in with leave to drop them.
    """

    fed: int
    out: int = -1
    inside: tuple[int, ...] = ()
    dropped: frozenset[int] = field(default=frozenset())

    def lacks(self, frame: int) -> bool:
        """Whether a frame will not come out any more unless decoding starts anew."""
        return frame <= self.out or frame in self.dropped


def seek_pays(index: FrameIndex, key: Key | None, fed: int, wanted: Wanted, costs: Costs) -> bool:
    """Whether starting at `key` costs less than feeding all packets between the first `fed` ones and it."""
    seconds = 0.0
    for place in range(fed, key.place if key is not None else 0):
        seconds += _feeding_s(index, place, wanted, costs)
        if seconds > costs.seek_s:
            return True
    return False


def advance(
    index: FrameIndex, frame: int, wanted: Wanted, costs: Costs, state: State, *, seek: bool
) -> tuple[Step, State]:
    """The step to a frame by one of the two ways, and what the decoder has seen then.

    ValueError where the frame is not reached so: it came out before, or no key frame stands before it.
    """
    key = index.key_before(frame) if seek else None
    if (seek and key is None) or (not seek and state.lacks(frame)):
        raise ValueError(f"frame {frame} is not reached {'by a seek' if seek else 'by decoding on'}")
    if key is not None:
        state = State(key.place)
    fed, out, inside, dropped = state.fed, state.out, list(state.inside), set(state.dropped)
    num_decoded, num_before, seconds = 0, len(dropped), costs.seek_s if seek else 0.0
    while out != frame:
        if fed < len(index.order):
            shown = index.order[fed]
            seconds += _feeding_s(index, fed, wanted, costs)
            fed += 1
            if shown in index.spare and wanted.spares(shown):
                dropped.add(shown)
                continue
            heapq.heappush(inside, shown)
            num_decoded += 1
            if len(inside) <= index.delay:
                continue
        out = max(out, heapq.heappop(inside))
    step = Step(frame, key, num_decoded, len(dropped) - num_before, seconds)
    return step, State(fed, out, tuple(inside), frozenset(dropped))


def plan(
    index: FrameIndex, frames: Iterable[int], costs: Costs, *, expected: Collection[int] | None = None
) -> list[Step]:
    """The steps to frames that are known ahead, in their order, as `Video.read_many` takes them in a video just opened.

    Args:
        expected: as in `Wanted`.
    """
    every = list(frames)
    wanted = Wanted(frozenset(every), max(every, default=-1), expected)
    steps, state = [], State(fed=0, out=len(index.seconds))  # the file was gone through to list its frames
    for frame in every:
        if frame == state.out:
            steps.append(Step(frame, None, 0, 0, 0.0))
            continue
        seek = state.lacks(frame) or seek_pays(index, index.key_before(frame), state.fed, wanted, costs)
        step, state = advance(index, frame, wanted, costs, state, seek=seek)
        steps.append(step)
    return steps


def _feeding_s(index: FrameIndex, place: int, wanted: Wanted, costs: Costs) -> float:
    frame = index.order[place]
    if frame in index.spare and wanted.spares(frame):
        return costs.dropped_s
    return costs.key_s if place in index.key_places else costs.frame_s
