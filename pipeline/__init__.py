"""Video files and annotation files become frames and manifests.

The public names are imported at first use, so that importing this package loads neither PyAV nor Arrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipreel.pipeline.errors import InputError, ManifestError, StorageError, VideoError

if TYPE_CHECKING:
    from skipreel.pipeline.annotations.charades import build_charades
    from skipreel.pipeline.annotations.class_folders import build_folder
    from skipreel.pipeline.annotations.table import build_table
    from skipreel.pipeline.annotations.ucf101 import build_ucf101
    from skipreel.pipeline.manifest.parquet import iterate_manifest, read_manifest, write_manifest
    from skipreel.pipeline.manifest.types import AnnotationProblem, Label, Manifest, ManifestBuild, VideoEntry
    from skipreel.pipeline.video.decoder import Frame, VideoDecoder
    from skipreel.pipeline.video.live.stream import open_live
    from skipreel.pipeline.video.registry import open_video
    from skipreel.pipeline.video.sampling import Sampling

_MODULES = {
    "AnnotationProblem": "manifest.types",
    "Frame": "video.decoder",
    "Label": "manifest.types",
    "Manifest": "manifest.types",
    "ManifestBuild": "manifest.types",
    "Sampling": "video.sampling",
    "VideoDecoder": "video.decoder",
    "VideoEntry": "manifest.types",
    "build_charades": "annotations.charades",
    "build_folder": "annotations.class_folders",
    "build_table": "annotations.table",
    "build_ucf101": "annotations.ucf101",
    "iterate_manifest": "manifest.parquet",
    "open_live": "video.live.stream",
    "open_video": "video.registry",
    "read_manifest": "manifest.parquet",
    "write_manifest": "manifest.parquet",
}

__all__ = [
    "AnnotationProblem",
    "Frame",
    "InputError",
    "Label",
    "Manifest",
    "ManifestBuild",
    "ManifestError",
    "Sampling",
    "StorageError",
    "VideoDecoder",
    "VideoEntry",
    "VideoError",
    "build_charades",
    "build_folder",
    "build_table",
    "build_ucf101",
    "iterate_manifest",
    "open_live",
    "open_video",
    "read_manifest",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
