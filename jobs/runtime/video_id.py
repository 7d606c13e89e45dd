"""The id that a video has in a manifest, guessed from the name of its file."""

from pathlib import PurePosixPath

from skipreel.pipeline.annotations.class_folders import SUFFIXES
from skipreel.pipeline.storage.uris import has_scheme


def video_id_of(key: str) -> str:
    """The id that a video most likely has in a manifest: of a path or URI of a video file its name without the suffix.

    Any other key is an id already. By it a random control draws a video's mask, and Charades' evaluation knows a video.
    """
    name = PurePosixPath(key.partition("?")[0] if has_scheme(key) else key)
    return name.stem if name.suffix.lower() in SUFFIXES else key
