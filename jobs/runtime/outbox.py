"""Calls that one thread makes in order, each again until it succeeds: nobody waits for the service they go to."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Message:
    """One call.

    Attributes:
        deliver: the call; it may be made again after an error, so a second call must change nothing.
        record: the same as plain values, for a file, in case it is never delivered.
    """

    deliver: Callable[[], None]
    record: dict[str, Any]


class Outbox:
    """Delivers messages in order. An error is followed by a pause and another try, however often."""

    def __init__(self, *, is_refusal: Callable[[Exception], bool], pause_s: float = 0.5) -> None:
        """Start the thread.

        Args:
            is_refusal: whether an error would come again at every try; such a message is set aside.
            pause_s: after the first error, doubled after each further one up to 5 s.
        """
        self._is_refusal = is_refusal
        self._pause_s = pause_s
        self._waiting: deque[Message] = deque()
        self._refused: list[Message] = []
        self._changed = threading.Condition()
        self._num_left = 0
        self._closing = False
        self._given_up = False
        self.last_error: Exception | None = None
        threading.Thread(target=self._run, name="outbox", daemon=True).start()

    def put(self, deliver: Callable[[], None], record: dict[str, Any]) -> None:
        """Add a message; returns at once."""
        with self._changed:
            self._waiting.append(Message(deliver, record))
            self._changed.notify_all()

    def flush(self, *, patience_s: float) -> bool:
        """Wait for all messages to leave, as long as one leaves every `patience_s`; whether none is left."""
        with self._changed:
            while self._waiting:
                if not self._one_leaves(patience_s):
                    return False
        return True

    def close(self, *, patience_s: float) -> list[dict[str, Any]]:
        """End the thread after a last `flush`; the records of the messages that were not delivered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            self.flush(patience_s=patience_s)
        finally:  # Ctrl-C as well: a call that hangs is left to its thread
            self._given_up = True
        with self._changed:
            self._changed.notify_all()
            return [message.record for message in (*self._refused, *self._waiting)]

    def _one_leaves(self, patience_s: float) -> bool:
        left = self._num_left
        return self._changed.wait_for(lambda: self._num_left != left, patience_s)

    def _run(self) -> None:
        pause_s = self._pause_s
        while (message := self._next()) is not None:
            try:
                message.deliver()
            except Exception as error:  # whatever the service's client raises: it is kept, and told on closing
                self.last_error = error
                if not self._is_refusal(error):
                    with self._changed:
                        self._changed.wait_for(lambda: self._given_up, pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                self._refused.append(message)
            pause_s = self._pause_s
            with self._changed:
                self._waiting.popleft()
                self._num_left += 1
                self._changed.notify_all()

    def _next(self) -> Message | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            return self._waiting[0] if self._waiting and not self._given_up else None
