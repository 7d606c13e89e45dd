"""Which decoders there are, and opening a video with one of them."""

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
    """Open the video at `uri` and list its frames.

    `decoder` is a name in `DECODERS`, or `module:function` for one of your own, called with the URI and returning a
    `VideoDecoder`, whose times may also be those of the file's own clock: they are counted from the first frame here.
    pyav reads everything FFmpeg reads, exactly and skipping what is not wanted; decord and torchcodec (an extra) read
    plain local MP4 and MKV files only and do not notice all damaged frames. VideoError, with a reason, where the file
    cannot be opened, has no frames, or `decoder` is unknown or refuses it.
    """
    video = find_decoder(decoder)(uri)
    if len(video.pts_seconds) == 0:
        video.close()
        raise VideoError(f"{uri} has no frames, says decoder {decoder}")
    if video.pts_seconds[0] != 0:  # a decoder of one's own may state the file's clock
        video.start_s += float(video.pts_seconds[0])
        video.pts_seconds = from_first_frame(video.pts_seconds)
    return video


def find_decoder(decoder: str) -> Callable[[str], VideoDecoder]:
    """What opens a video by that name, as `open_video` takes it; VideoError where there is nothing of the name."""
    place = DECODERS.get(decoder, decoder)
    if not is_function_name(place):
        raise VideoError(f"no decoder {decoder!r}; allowed: {', '.join(DECODERS)} or module:function of your own")
    try:
        function: Callable[[str], VideoDecoder] = import_function(place)
    except (ImportError, AttributeError) as error:
        raise VideoError(f"decoder {decoder!r} cannot be imported: {error}; check both names and PYTHONPATH") from error
    if not callable(function):
        raise VideoError(f"decoder {decoder!r} is no function; give one that takes a URI and returns a Video")
    return function
