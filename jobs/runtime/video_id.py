"""The id of a video in a manifest, derived from the name of its file."""

from pathlib import PurePosixPath

from skipreel.pipeline.annotations.class_folders import SUFFIXES
from skipreel.pipeline.storage.uris import has_scheme


def video_id_of(key: str) -> str:
    """The likely id of a video in a manifest: for a path or URI of a video file the name without suffix, else `key`.

    A random control draws the mask of a video from this id, and Charades' evaluation identifies videos by it.
    """
    name = PurePosixPath(key.partition("?")[0] if has_scheme(key) else key)
    return name.stem if name.suffix.lower() in SUFFIXES else key
