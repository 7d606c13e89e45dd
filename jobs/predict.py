"""Label video files: frames that the network skips are neither decoded nor encoded.

One JSON object per video goes to standard output, with its labels in time and its ledger of costs.
Exit code 0: every video was labelled; 3: some could not be decoded (their line has an "error"); 1: the job failed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tyro

from jobs.closed_loop import load_backbone_of, predict, predict_dense
from jobs.evaluation import TrainedModel, load_model
from jobs.prediction import Prediction
from jobs.progress import track
from pipeline.decoding import find_decoder
from pipeline.errors import VideoError

EXIT_SOME_FAILED = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """What is labelled, and by which model.

    Attributes:
        videos: video files.
        model: a checkpoint folder written by train or sweep.
        dense: look at every frame instead of those the network asks for.
        threshold: a class counts as seen in a frame from this probability on (task frames).
        backbone: where the model's backbone is found now, if not where the training found it.
        decoder: pyav reads everything; decord and torchcodec plain MP4 and Matroska; or module:function (your own).
    """

    videos: tyro.conf.Positional[tuple[str, ...]]
    model: str
    dense: bool = False
    threshold: float = 0.5
    backbone: str | None = None
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        find_decoder(self.decoder)
        if not self.videos:
            raise ValueError("no video given: skipreel predict VIDEO… --model FOLDER")
        if not 0 < self.threshold < 1:
            raise ValueError(f"--threshold is {self.threshold}, it must lie between 0 and 1")


def run(settings: Settings) -> int:
    """Print one line of JSON per video."""
    model = load_model(settings.model)
    backbone = load_backbone_of(model, name=settings.backbone)
    look = predict_dense if settings.dense else predict
    failed = 0
    for uri in track(settings.videos, "labelling videos", total=len(settings.videos)):
        try:
            prediction = look(uri, model=model, backbone=backbone, decoder=settings.decoder)
        except VideoError as error:
            failed += 1
            print(json.dumps({"video": uri, "error": str(error)}), flush=True)
            continue
        print(json.dumps(describe(uri, prediction, model, settings.threshold)), flush=True)
    return EXIT_SOME_FAILED if failed else 0


def describe(uri: str, prediction: Prediction, model: TrainedModel, threshold: float) -> dict[str, Any]:
    """A prediction as plain values: labels (with times for task frames), looked-at times, costs and seconds."""
    if model.recognizer.config.task == "frames":
        labels = list(segments(prediction, model.class_names, threshold))
    else:
        best = int(prediction.scores.argmax())
        labels = [{"class": model.class_names[best], "score": round(float(prediction.scores[best]), 4)}]
    return {
        "video": uri,
        "labels": labels,
        "looked_at_s": [round(float(time), 3) for time in prediction.pts_s[prediction.used]],
        "cost": asdict(prediction.cost),
        "seconds": {stage: round(value, 4) for stage, value in asdict(prediction.seconds).items()},
    }


def segments(prediction: Prediction, class_names: tuple[str, ...], threshold: float) -> Iterator[dict[str, Any]]:
    """Maximal runs of frames in which a class is seen: class, start_s, end_s and the mean score."""
    seen = prediction.scores >= threshold
    for class_id, name in enumerate(class_names):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen[:, class_id], [False]]).astype(int)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            yield {
                "class": name,
                "start_s": round(float(prediction.pts_s[start]), 3),
                "end_s": round(float(prediction.pts_s[stop - 1]), 3),
                "score": round(float(prediction.scores[start:stop, class_id].mean()), 4),
            }
