"""Calls of decoders that are under way: whose worker needs a substitute, and which take too long."""

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
    """At most one call for each thread; its user holds a lock.

    Args:
        max_substitutes: workers that may be added at a time for slow ones. One whose call was given up does not count:
            it may never come back.
        time_limit_s: a call is given up if it takes longer.
    """

    def __init__(self, *, max_substitutes: int, time_limit_s: float) -> None:
        self._max_substitutes, self._time_limit_s = max_substitutes, time_limit_s
        self._calls: dict[int, Call] = {}
        self._substituted: set[int] = set()

    @property
    def threads(self) -> set[int]:
        """Those that are in a call, by their `get_ident`."""
        return set(self._calls)

    def begin(self, video: QueuedVideo) -> None:
        """This thread is about to call a decoder."""
        self._calls[threading.get_ident()] = Call(video, time.monotonic())

    def end(self) -> None:
        """This thread's call has returned."""
        if self._calls.pop(threading.get_ident()).has_substitute:
            self._substituted.add(threading.get_ident())

    def take_leave(self) -> bool:
        """Whether this thread is to end, because another works in its place; says so once."""
        is_substituted = threading.get_ident() in self._substituted
        self._substituted.discard(threading.get_ident())
        return is_substituted

    def give_up(self) -> Iterator[Call]:
        """Those that took too long since the last time."""
        for call in self._calls.values():
            if not call.is_given_up and time.monotonic() - call.since > self._time_limit_s:
                call.is_given_up = True
                yield call

    def substitute(self) -> int:
        """How many workers must be added to those there are."""
        calls = self._calls.values()
        room = self._max_substitutes - sum(call.has_substitute and not call.is_given_up for call in calls)
        alone = [call for call in calls if not call.has_substitute]
        slow = [call for call in alone if not call.is_given_up and time.monotonic() - call.since > SLOW_S]
        due = [call for call in alone if call.is_given_up] + slow[: max(room, 0)]
        for call in due:
            call.has_substitute = True
        return len(due)
