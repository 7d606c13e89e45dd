"""A model of the PyAV decoder's seeks and drops, computed without decoding; the tests compare the decoder with it."""

import heapq
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from skipreel.pipeline.video.pyav.container import open_container
from skipreel.pipeline.video.pyav.frame_index import FrameIndex, KeyFrame, index_by_demuxing
from skipreel.pipeline.video.pyav.seek_cost import Costs, Wanted, feeding_s, seek_pays


@dataclass(frozen=True, slots=True)
class Step:
    """How one wanted frame is reached.

    Attributes:
        key: the key frame that the decoder seeks to; None: it decodes on.
        decoded: number of frames decoded for it.
        dropped: number of packets dropped.
        seconds: the estimated cost.
    """

    frame: int
    key: KeyFrame | None
    decoded: int
    dropped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class State:
    """The state of a decoder.

    Attributes:
        fed: position in decoding order of the next packet.
        out: the frame that came out last; -1: none since the decoder started.
        inside: frames that were fed and did not come out yet, as a heap; -1 for those that an edit list hides.
        dropped: frames that were dropped.
    """

    fed: int
    out: int = -1
    inside: tuple[int, ...] = ()
    dropped: frozenset[int] = field(default=frozenset())

    def lacks(self, frame: int) -> bool:
        """Whether a frame will not come out unless the decoder seeks."""
        return frame <= self.out or frame in self.dropped


def advance(
    index: FrameIndex, frame: int, wanted: Wanted, costs: Costs, state: State, *, seek: bool
) -> tuple[Step, State]:
    """The step to a frame by one of the two ways, and the decoder's state after it.

    Raises:
        ValueError: if the frame cannot be reached that way: it came out already, or no key frame lies before it.
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
            if shown in index.droppable and wanted.may_drop(shown):
                dropped.add(shown)
                continue
            heapq.heappush(inside, shown)
            num_decoded += 1
            if len(inside) <= index.delay:
                continue
        out = max(out, heapq.heappop(inside))
    step = Step(frame, key, num_decoded, len(dropped) - num_before, seconds)
    return step, State(fed, out, tuple(inside), frozenset(dropped))


def follow(index: FrameIndex, frame: int, wanted: Wanted, costs: Costs, state: State) -> tuple[Step, State]:
    """The step that the decoder takes to a frame, and its state after it."""
    if frame == state.out:
        return Step(frame, None, 0, 0, 0.0), state
    seek = state.lacks(frame) or seek_pays(index, index.key_before(frame), state.fed, wanted, costs)
    return advance(index, frame, wanted, costs, state, seek=seek)


def opened(index: FrameIndex) -> State:
    """The state after opening, which reads all packets to list the frames."""
    return State(fed=0, out=len(index.pts_seconds))


def plan(
    index: FrameIndex, frames: Iterable[int], costs: Costs, *, candidates: Collection[int] | None = None
) -> list[Step]:
    """The steps of `iter_frames_at(frames)` in a video just opened; `candidates` as in `Wanted`."""
    every = list(frames)
    wanted = Wanted(frozenset(every), max(every, default=-1), candidates)
    steps, state = [], opened(index)
    for frame in every:
        step, state = follow(index, frame, wanted, costs, state)
        steps.append(step)
    return steps


def frame_index(path: Path) -> FrameIndex:
    """The index of a video whose packets state their frames' times."""
    with closing(open_container(str(path), skip_probing=True)) as container:
        index = index_by_demuxing(str(path), container)
    assert index is not None
    return index
