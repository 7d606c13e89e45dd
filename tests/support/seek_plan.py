"""What a decoder does on the way to wanted frames, told without decoding: the tests compare it with what it did."""

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from skipreel.pipeline.video.pyav.frame_index import FrameIndex, Key
from skipreel.pipeline.video.pyav.seek_cost import Costs, Wanted, feeding_s, seek_pays


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
            seconds += feeding_s(index, fed, wanted, costs)
            fed += 1
            if shown in index.droppable and wanted.spares(shown):
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
    """The steps to frames that are known ahead, in their order, in a video just opened.

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
