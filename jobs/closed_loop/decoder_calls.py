"""Calls of decoders in progress: which workers need a substitute, and which calls take too long."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from skipreel.jobs.closed_loop.queue import QueuedVideo

# A worker whose decoder takes longer (a slow disk, a slow network) gets a substitute: it delays its video alone.
SLOW_S = 1.0


@dataclass(slots=True, eq=False)
class Call:
    """A worker's call of a decoder, to open a video or to decode frames of it."""

    video: QueuedVideo
    since: float
    has_substitute: bool = False
    is_given_up: bool = False


class DecoderCalls:
    """The calls in progress, at most one for each thread. The caller holds a lock.

    Args:
        max_substitutes: how many slow workers may have a substitute at a time. A worker whose call was given up does
            not count: it may never return.
        time_limit_s: a call that takes longer is given up.
    """

    def __init__(self, *, max_substitutes: int, time_limit_s: float) -> None:
        self._max_substitutes, self._time_limit_s = max_substitutes, time_limit_s
        self._calls: dict[int, Call] = {}
        self._substituted: set[int] = set()

    @property
    def threads(self) -> set[int]:
        """The threads that are in a call, by their `get_ident`."""
        return set(self._calls)

    def begin(self, video: QueuedVideo) -> None:
        """Note that this thread is about to call a decoder."""
        self._calls[threading.get_ident()] = Call(video, time.monotonic())

    def end(self) -> None:
        """Note that this thread's call has returned."""
        if self._calls.pop(threading.get_ident()).has_substitute:
            self._substituted.add(threading.get_ident())

    def take_leave(self) -> bool:
        """Whether this thread must end because a substitute works in its place; true once."""
        is_substituted = threading.get_ident() in self._substituted
        self._substituted.discard(threading.get_ident())
        return is_substituted

    def give_up(self) -> Iterator[Call]:
        """The calls that have become too long since the last time."""
        for call in self._calls.values():
            if not call.is_given_up and time.monotonic() - call.since > self._time_limit_s:
                call.is_given_up = True
                yield call

    def substitute(self) -> int:
        """How many substitutes to start now."""
        calls = self._calls.values()
        room = self._max_substitutes - sum(call.has_substitute and not call.is_given_up for call in calls)
        alone = [call for call in calls if not call.has_substitute]
        slow = [call for call in alone if not call.is_given_up and time.monotonic() - call.since > SLOW_S]
        due = [call for call in alone if call.is_given_up] + slow[: max(room, 0)]
        for call in due:
            call.has_substitute = True
        return len(due)
