"""Delivery of calls to an unreliable service: one thread makes them in order and retries each until it succeeds."""

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
        deliver: the call; it may be retried after an error, so it must be idempotent.
        record: the call as plain values, for a file, in case it is never delivered.
    """

    deliver: Callable[[], None]
    record: dict[str, Any]


class Outbox:
    """Delivers messages in order. After an error it pauses and retries, without limit."""

    def __init__(self, *, is_permanent: Callable[[Exception], bool], pause_s: float = 0.5) -> None:
        """Start the thread.

        Args:
            is_permanent: whether every retry would give an error again; such a message is not retried.
            pause_s: pause after the first error, doubled after each further one up to 5 s.
        """
        self._is_permanent = is_permanent
        self._pause_s = pause_s
        self._waiting: deque[Message] = deque()
        self._failed: list[Message] = []
        self._changed = threading.Condition()
        self._num_left = 0
        self._closing = False
        self._given_up = False
        self.last_error: Exception | None = None
        threading.Thread(target=self._run, name="outbox", daemon=True).start()

    def put(self, deliver: Callable[[], None], record: dict[str, Any]) -> None:
        """Add a message and return at once."""
        with self._changed:
            self._waiting.append(Message(deliver, record))
            self._changed.notify_all()

    def flush(self, *, patience_s: float) -> bool:
        """Wait until no message is left, or none has left for `patience_s` seconds. True if none is left."""
        with self._changed:
            while self._waiting:
                if not self._one_leaves(patience_s):
                    return False
        return True

    def close(self, *, patience_s: float) -> list[dict[str, Any]]:
        """End the thread after a last `flush`.

        Returns:
            The records of the messages that were not delivered.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            self.flush(patience_s=patience_s)
        finally:  # on Ctrl-C as well; the thread is not joined, a call may hang
            self._given_up = True
        with self._changed:
            self._changed.notify_all()
            return [message.record for message in (*self._failed, *self._waiting)]

    def _one_leaves(self, patience_s: float) -> bool:
        left = self._num_left
        return self._changed.wait_for(lambda: self._num_left != left, patience_s)

    def _run(self) -> None:
        pause_s = self._pause_s
        while (message := self._next()) is not None:
            try:
                message.deliver()
            except Exception as error:  # the service's client may raise anything; the owner reports `last_error`
                self.last_error = error
                if not self._is_permanent(error):
                    with self._changed:
                        self._changed.wait_for(lambda: self._given_up, pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                self._failed.append(message)
            pause_s = self._pause_s
            with self._changed:
                self._waiting.popleft()
                self._num_left += 1
                self._changed.notify_all()

    def _next(self) -> Message | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            return self._waiting[0] if self._waiting and not self._given_up else None
