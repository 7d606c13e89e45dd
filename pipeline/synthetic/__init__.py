"""A generated corpus of videos whose actions are known to the frame, for the demo and the tests."""

from skipreel.pipeline.synthetic.corpus import CSV_COLUMNS, write_annotations, write_video
from skipreel.pipeline.synthetic.drawing import render_frame
from skipreel.pipeline.synthetic.scenes import CLASS_NAMES, Action, CorpusConfig, Prop, Scene, plan_corpus

__all__ = [
    "CLASS_NAMES",
    "CSV_COLUMNS",
    "Action",
    "CorpusConfig",
    "Prop",
    "Scene",
    "plan_corpus",
    "render_frame",
    "write_annotations",
    "write_video",
]
