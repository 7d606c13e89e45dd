"""The decoders by name, and `open_video`, which opens a video with one of them."""

from collections.abc import Callable

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.user_code import import_function, is_function_name
from skipreel.pipeline.video.decoder import VideoDecoder, from_first_frame

DECODERS = {
    "pyav": "skipreel.pipeline.video.pyav.decoder:PyAVDecoder",
    "decord": "skipreel.pipeline.video.decord:DecordDecoder",
    "torchcodec": "skipreel.pipeline.video.torchcodec:TorchcodecDecoder",
}
"""Each decoder's name and the class or function that opens a video by its URI."""


def open_video(uri: str, decoder: str = "pyav") -> VideoDecoder:
    """Open a video and list its frames.

    Args:
        uri: the video file; local, or remote with pyav.
        decoder: a name in `DECODERS`, or `module:function` for your own: it takes the URI and returns a `VideoDecoder`,
            whose times may count from the first frame or be the file's own. pyav reads everything that FFmpeg reads,
            exactly, and skips unwanted frames. decord and torchcodec (an extra) read only plain local MP4 and MKV
            files and do not notice all damaged frames.

    Raises:
        VideoError: if the file cannot be opened or has no frames, or `decoder` is unknown or refuses the file.
    """
    video = find_decoder(decoder)(uri)
    if len(video.pts_seconds) == 0:
        video.close()
        raise VideoError(f"{uri} has no frames, says decoder {decoder}")
    if video.pts_seconds[0] != 0:  # a user's decoder may state the file's own times
        video.start_s += float(video.pts_seconds[0])
        video.pts_seconds = from_first_frame(video.pts_seconds)
    return video


def find_decoder(decoder: str) -> Callable[[str], VideoDecoder]:
    """The class or function that opens a video, by its name for `open_video`; VideoError if there is none."""
    place = DECODERS.get(decoder, decoder)
    if not is_function_name(place):
        raise VideoError(f"no decoder {decoder!r}; allowed: {', '.join(DECODERS)} or module:function of your own")
    try:
        function: Callable[[str], VideoDecoder] = import_function(place)
    except (ImportError, AttributeError) as error:
        raise VideoError(f"decoder {decoder!r} cannot be imported: {error}; check both names and PYTHONPATH") from error
    if not callable(function):
        raise VideoError(f"decoder {decoder!r} is not a function; it must take a URI and return a VideoDecoder")
    return function
