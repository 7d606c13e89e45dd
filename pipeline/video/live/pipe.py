"""`Pipe`: a FIFO or standard input as a file that FFmpeg reads, with a timeout."""

import os
import select
import stat
import time
from pathlib import Path

from skipreel.pipeline.errors import VideoError

# Poll interval of the stop flag, in seconds.
_POLL_S = 0.2


class Pipe:
    """A file object for FFmpeg that returns bytes as soon as they arrive.

    FFmpeg cannot pass on an exception, not even Ctrl-C. It sees an end of the stream, and `stopped` keeps the reason.

    Attributes:
        name: `-` or the path.
        stopped: the exception that ended the reading early.
        is_ending: set it, also from a signal handler, to end the reading as if the stream had ended.

    Raises:
        VideoError: if the source cannot be read as a pipe.
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
        """Wait for bytes and return at most `size` of them; none at the end or after `stopped` is set."""
        if self.stopped is not None:
            return b""
        until = time.monotonic() + self._timeout_s
        try:
            while not self.is_ending:
                if self._poll.poll(1000 * max(0.0, min(_POLL_S, until - time.monotonic()))):
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
            raise VideoError(f"{source} is not a FIFO; give -, a FIFO or an address, or a file without --live")
        return os.open(source, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
    except OSError as error:
        raise VideoError(
            f"{source} cannot be read ({error.strerror}): give -, the path of a FIFO or an address"
        ) from error
