"""A FIFO or standard input, read with a limit to its silence."""

import os
import select
import stat
import time
from pathlib import Path

from skipreel.pipeline.errors import VideoError

# So often is it looked whether the reading is to end.
_LOOK_S = 0.2


class Pipe:
    """A pipe as FFmpeg reads it: what arrives, as soon as it arrives.

    FFmpeg cannot pass on an exception, an interruption by the user included: it sees an end, and the reason is kept.

    Attributes:
        name: `-` or the path.
        stopped: what ended the reading before the end of the stream.
        is_ending: set it, from a signal handler too, and the reading ends as if the stream did.

    Raises:
        VideoError: when the source is none that can be read as a pipe.
    """

    def __init__(self, source: str, timeout_s: float) -> None:
        self.name = source
        self.stopped: BaseException | None = None
        self.is_ending = False
        self._timeout_s = timeout_s
        self._fd = _open(source)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, waiting for the first; nothing at the end or once `stopped`."""
        if self.stopped is not None:
            return b""
        until = time.monotonic() + self._timeout_s
        try:
            while not self.is_ending:
                if self._poll.poll(1000 * max(0.0, min(_LOOK_S, until - time.monotonic()))):
                    return os.read(self._fd, size)
                if time.monotonic() >= until:
                    raise VideoError(f"{self.name} has sent nothing for {self._timeout_s:g} s: check what writes to it")
            return b""
        except BaseException as error:
            self.stopped = error
            return b""

    def close(self) -> None:
        """Release the pipe; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(source: str) -> int:
    try:
        if source == "-":
            if os.isatty(0):
                raise VideoError("standard input is a terminal: pipe a video stream into it")
            return os.dup(0)
        if not stat.S_ISFIFO(Path(source).stat().st_mode):
            raise VideoError(f"{source} is no FIFO; a live source is -, a FIFO or an address, a file is read without")
        return os.open(source, os.O_RDONLY | os.O_NONBLOCK)  # at once, though nobody writes to it yet
    except OSError as error:
        raise VideoError(
            f"{source} cannot be read ({error.strerror}): give -, the path of a FIFO or an address"
        ) from error
