"""Compares the decoders with each other and with a limit: `python -m benchmarks.decoding`.

First all decoders must return the same frames of each clip. Then each opens a clip and reads the wanted frames, in
turn. Resolution, codec and key-frame distance vary one at a time around a default clip, and so does the number of
wanted frames. Times are CPU times of all threads, which other work on the machine disturbs little. torchcodec and
decord are timed without the checks of our adapters. The limit is PyAV's simplest loop without an index: it decodes
every frame, converts the wanted ones to RGB and discards them. If few frames are wanted, a decoder can be faster.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import tyro
from av.video.reformatter import VideoReformatter

from benchmarks.clips import write_clip
from benchmarks.timing import Row, machine, ratio, write_json
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import DECODERS, open_video

SIZES = ((320, 240), (854, 480), (1280, 720), (1920, 1080))
KEY_DISTANCES = (12, 48, 250)
FPS = 30
LIMIT = "limit"
# Closed groups of pictures, which decord and torchcodec need.
ENCODERS = {
    "hevc": ("libx265", {"preset": "veryfast", "x265-params": "log-level=none:open-gop=0:scenecut=0"}),
    "mpeg4": ("mpeg4", {"qscale": "4", "flags": "+qscale"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "7", "crf": "32", "b": "0", "row-mt": "1"}),
    "av1": ("libsvtav1", {"preset": "10", "crf": "35", "svtav1-params": "lp=2"}),
}
# The default decoder is never slower than another, within what two runs differ by. If every frame is wanted, it costs
# at most a sixth more than the limit.
TARGETS = {"torchcodec": 0.95, "decord": 0.95}
TARGET_OF_LIMIT = 0.85


@dataclass(frozen=True)
class Settings:
    """rounds: repetitions of each decoder. quick: two short small clips, under a minute."""

    rounds: int = 3
    quick: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Clip:
    """A generated video of (width, height) `size` with a key frame every `key_distance` frames."""

    size: tuple[int, int] = (854, 480)
    codec: str = "h264"
    key_distance: int = 48
    seconds: int = 10

    def __str__(self) -> str:
        return f"{self.codec}/{self.size[0]}x{self.size[1]}/{self.key_distance}"

    def write(self, folder: Path) -> Path:
        """The file of the clip, written on the first call."""
        path = folder / f"{str(self).replace('/', '-')}.{'mkv' if self.codec == 'vp9' else 'mp4'}"
        if not path.exists() and self.codec == "h264":
            write_clip(path, size=self.size, seconds=self.seconds, fps=FPS, key_distance=self.key_distance)
        elif not path.exists():
            source = Clip(self.size, key_distance=self.key_distance, seconds=self.seconds).write(folder)
            _transcode(source, path, self)
        return path


def _transcode(source: Path, target: Path, clip: Clip) -> None:
    encoder, options = ENCODERS[clip.codec]
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream(encoder, rate=FPS, options=options)
        stream.width, stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = clip.key_distance
        stream.codec_context.max_b_frames = 0 if clip.codec == "mpeg4" else 2
        for number, frame in enumerate(before.decode(video=0)):
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, FPS), 0
            after.mux(stream.encode(frame))
        after.mux(stream.encode(None))


def clips(*, quick: bool) -> list[Clip]:
    """The clips to time: the default clip with one property varied at a time."""
    if quick:
        return [Clip((320, 240), seconds=4), Clip((320, 240), "hevc", seconds=4)]
    varied = [Clip(size) for size in SIZES]
    varied += [Clip(codec=codec) for codec, (encoder, _) in ENCODERS.items() if encoder in av.codecs_available]
    return varied + [Clip(key_distance=distance) for distance in KEY_DISTANCES if distance != 48]


def samplings(count: int) -> dict[str, list[int]]:
    """The wanted frames out of `count`, by the name of the sampling."""
    sparse = sorted(random.Random(0).sample(range(count), 8))
    return {
        "every": list(range(count)),
        "6 fps": list(range(0, count, FPS // 6)),
        "1 fps": list(range(0, count, FPS)),
        "8 sparse": sparse,
    }


def read(path: Path, wanted: Sequence[int], decoder: str) -> None:
    """Open a video and read the wanted frames, keeping none; peers are called without our adapters."""
    if decoder == "torchcodec":
        video = import_module("torchcodec.decoders").VideoDecoder(str(path), dimension_order="NHWC")
        for index in wanted:
            video[index].numpy()
    elif decoder == "decord":
        decord = import_module("decord")
        video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        for index in wanted:
            video[index].asnumpy()
    else:
        with open_video(str(path), decoder) as ours:
            for _ in ours.iter_frames_at(wanted):
                pass


def plain_loop(path: Path, wanted: Collection[int]) -> Iterator[av.VideoFrame]:
    """Decode all frames on one thread and yield the wanted ones in RGB."""
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield reformatter.reformat(frame, format="rgb24", threads=1)


def decode_all(path: Path, wanted: Collection[int]) -> None:
    """The limit: the plain loop, with its pictures discarded."""
    for _ in plain_loop(path, wanted):
        pass


def usable(clip: Clip, path: Path) -> tuple[list[str], list[str]]:
    """The decoders that read this clip, and why others refuse it; SystemExit if one returns other frames."""
    chosen = sorted({*range(24), *samplings(clip.seconds * FPS)["8 sparse"]})
    expected = [picture.to_ndarray() for picture in plain_loop(path, set(chosen))]
    found, refusals = [], []
    for decoder in DECODERS:
        try:
            with open_video(str(path), decoder) as video:
                frames = list(video.iter_frames_at(chosen))
        except VideoError as error:
            refusals.append(str(error).replace(f"{path.parent}/", ""))
            continue
        if not all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True)):
            raise SystemExit(f"{decoder} returns other frames of {path.name} than a plain loop: nothing is timed")
        found.append(decoder)
    return found, refusals


def cpu_seconds(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each function in each round, all in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if number:
                times[name].append(time.process_time() - start)
    return times


def compare(clip: Clip, path: Path, decoders: Sequence[str], rounds: int) -> list[Row]:
    """Print and return the rows of one clip."""
    rows = []
    for sampling, wanted in samplings(clip.seconds * FPS).items():
        contenders: dict[str, Callable[[], None]] = {name: partial(read, path, wanted, name) for name in decoders}
        contenders[LIMIT] = partial(decode_all, path, frozenset(wanted))
        if sampling == "every":
            contenders["decode only"] = partial(decode_all, path, ())
        times = cpu_seconds(contenders, rounds)
        ours = statistics.median(times["pyav"])
        shown = f"| {clip} | {sampling} | {1e3 * ours:.1f} | {1e3 * ours / len(wanted):.2f} "
        for peer in ("torchcodec", "decord", LIMIT, "decode only"):
            if peer not in times:
                shown += "| – "
                continue
            middle, low, high = ratio(times[peer], times["pyav"])
            target = TARGET_OF_LIMIT if (sampling, peer) == ("every", LIMIT) else TARGETS.get(peer)
            shown += f"| {middle:.2f} ({low:.2f}–{high:.2f}){' missed' if target and middle < target else ''} "
            name = f"decoding/{clip}/{sampling.replace(' ', '-')}/{peer.replace(' ', '-')}"
            rows.append(Row(name, "s", ours, statistics.median(times[peer]), middle, target, machine()))
        print(shown + "|", flush=True)
    return rows


def main(settings: Settings) -> None:
    print(f"{machine()}, PyAV {av.__version__}\n")
    print("| codec, size, key distance | frames | pyav, ms | ms a frame | torchcodec | decord | limit | decode only |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips(quick=settings.quick):
            path = clip.write(Path(folder))
            decoders, refusals = usable(clip, path)
            notes += refusals
            rows += compare(clip, path, decoders, 1 if settings.quick else settings.rounds)
    print("", *notes, sep="\n")
    if settings.json:
        write_json(settings.json, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
