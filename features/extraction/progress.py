"""`Progress`: counts and rates of a running extraction, and which of its two stages is the bottleneck."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Counts since the start; seconds are wall-clock.

    Attributes:
        num_decoders, num_encoders: processes of each stage.
        finished: videos that got features.
        unchanged: videos whose file stat changed but not their content.
        failed: videos in the failure ledger.
        restarts: processes that died and were replaced.
        frames: encoded frames.
        video_s: length of the finished videos.
        decode_s, encode_s: working time of each stage, summed over its processes.
        working_since: when the work for the first block began; None until that block is encoded.
        stopped: when everything was written; None before.
    """

    num_decoders: int
    num_encoders: int
    finished: int = 0
    unchanged: int = 0
    failed: int = 0
    restarts: int = 0
    frames: int = 0
    video_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    working_since: float | None = None
    stopped: float | None = None

    def count(self, *, decode_s: float, encode_s: float) -> None:
        """Add the working time of an encoded block."""
        self.decode_s += decode_s
        self.encode_s += encode_s
        if self.working_since is None:
            self.working_since = time.monotonic() - decode_s - encode_s

    @property
    def ended(self) -> int:
        """Number of videos that are done, failures included."""
        return self.finished + self.unchanged + self.failed

    @property
    def working_s(self) -> float:
        """Seconds since the work for the first block began, without start-up."""
        if self.working_since is None:
            return 0.0
        return (self.stopped or time.monotonic()) - self.working_since

    @property
    def frames_per_s(self) -> float:
        """Average number of frames encoded per second."""
        return self.frames / self.working_s if self.working_s else 0.0

    @property
    def busy(self) -> tuple[float, float]:
        """Shares of `working_s` in which decoders and encoders worked."""
        elapsed = max(self.working_s, 1e-9)
        return (
            min(1.0, self.decode_s / elapsed / self.num_decoders),
            min(1.0, self.encode_s / elapsed / self.num_encoders),
        )

    def summary(self, *, seconds: float) -> dict[str, float]:
        """Rounded counts and rates of a run that took ``seconds``, start-up included."""
        return {
            "finished": self.finished,
            "failed": self.failed,
            "frames": self.frames,
            "video_hours": round(self.video_s / 3600, 4),
            "seconds": round(seconds, 2),
            "startup_seconds": round(seconds - self.working_s, 2),
            "frames_per_second": round(self.frames_per_s, 2),
            "restarted_processes": self.restarts,
        }

    def line(self) -> str:
        """Describe rates and shares, and in a second line what to change, in 80 columns."""
        if self.working_since is None:
            return "starting processes"
        decoding, encoding = self.busy
        parts = [
            f"{self.video_s / 3600:.2f} hours of video, {self.frames_per_s:.0f} frames/s",
            f"decoding {decoding:.0%}, encoding {encoding:.0%} of the time",
        ]
        parts += [f"{self.restarts} restarts"] * bool(self.restarts)
        return "\n".join(filter(None, ["; ".join(parts), self.advice()]))

    def advice(self) -> str:
        """Name the bottleneck and what to change; "" while it is not known."""
        decoders, encoders = self.busy
        if self.working_s < 5 or not self.frames:
            return ""
        if decoders + encoders < 0.5:
            return "the processes wait: reading the files is the bottleneck"
        if encoders >= decoders:
            return "encoding is the bottleneck: a GPU, more CPUs, bfloat16 or a lower --rate-hz"
        return "decoding is the bottleneck: more CPUs or a lower --rate-hz"
