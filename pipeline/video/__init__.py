"""Frames out of video files and live streams, by a decoder that is chosen by name."""

from skipreel.pipeline.video.decoder import Frame, VideoDecoder, from_first_frame
from skipreel.pipeline.video.registry import DECODERS, find_decoder, open_video

__all__ = [
    "DECODERS",
    "Frame",
    "VideoDecoder",
    "find_decoder",
    "from_first_frame",
    "open_video",
]
