"""A decoder that crashes, hangs or exhausts its process as the video's name says, like a broken codec."""

import os
import time
from pathlib import Path

from skipreel.pipeline.video import VideoDecoder
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder


def open_video(uri: str) -> VideoDecoder:
    """Misbehave as the file's name says, then decode with PyAV."""
    name = Path(uri).stem
    if name.startswith("abort"):
        os.abort()
    if name.startswith("hang"):
        time.sleep(3600)
    if name.startswith("spin"):
        while True:  # hardly ever releases the GIL
            pass
    if name.startswith("allocate"):
        hoard = []
        while True:  # above any limit, so that it fails before a page is touched
            hoard.append(bytearray(64 << 30))
    if name.startswith("slow"):
        time.sleep(0.3)
    if name.startswith("vanish"):
        Path(uri).unlink()
    return PyAVDecoder(uri)
