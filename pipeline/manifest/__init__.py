"""The manifest: one row per video with its split and labels."""

from skipreel.pipeline.manifest.parquet import (
    ROWS_PER_GROUP,
    SCHEMA,
    from_table,
    iterate_manifest,
    manifest_size,
    read_manifest,
    write_manifest,
    write_rows,
)
from skipreel.pipeline.manifest.types import AnnotationProblem, Label, Manifest, ManifestBuild, VideoEntry

__all__ = [
    "ROWS_PER_GROUP",
    "SCHEMA",
    "AnnotationProblem",
    "Label",
    "Manifest",
    "ManifestBuild",
    "VideoEntry",
    "from_table",
    "iterate_manifest",
    "manifest_size",
    "read_manifest",
    "write_manifest",
    "write_rows",
]
