"""A decoder that does to its process what the name of the video says, as a broken codec would."""

import os
import time
from pathlib import Path

from skipreel.pipeline.video import VideoDecoder
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder


def open_video(uri: str) -> VideoDecoder:
    """Decode with PyAV, after what the file's name asks for."""
    name = Path(uri).stem
    if name.startswith("abort"):
        os.abort()
    if name.startswith("hang"):
        time.sleep(3600)
    if name.startswith("spin"):
        while True:  # never lets go of the interpreter for long
            pass
    if name.startswith("allocate"):
        hoard = []
        while True:  # more than any limit at once, so that it fails before a page of it is touched
            hoard.append(bytearray(64 << 30))
    if name.startswith("slow"):
        time.sleep(0.3)
    if name.startswith("vanish"):
        Path(uri).unlink()
    return PyAVDecoder(uri)
