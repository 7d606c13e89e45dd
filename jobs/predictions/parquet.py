"""Predictions as Parquet, one row per video, readable without our code. The columns are defined here alone.

Letters: T sampled frames, C classes.
"""

import json
from typing import Any

import pyarrow as pa

from skipreel.features.batching.collate import Task
from skipreel.jobs.closed_loop.labels import Labelling, video_scores
from skipreel.jobs.closed_loop.prediction import Prediction


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


# All but the first two and num_classes are null where a video failed, and error is null where it did not.
SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_classes", pa.int32(), nullable=False),  # C; their names are in the file's metadata
        pa.field("duration_s", pa.float64()),
        pa.field("frame_index", _list(pa.int32())),  # (T,) place of each sampled frame in presentation order
        pa.field("pts_s", _list(pa.float64())),  # (T,) seconds from the first frame on
        pa.field("start_s", pa.float64()),  # that frame's time by the file's own clock, in seconds
        pa.field("used", _list(pa.bool_())),  # (T,) whether the network looked
        pa.field("scores", _list(pa.float32())),  # (T·C,) frame by frame; null for task video
        pa.field("video_scores", _list(pa.float32())),  # (C,) of the whole video; for task frames the mean
        pa.field("frames_total", pa.int32()),
        pa.field("frames_wanted", pa.int32()),
        pa.field("frames_decoded", pa.int32()),
        pa.field("frames_converted", pa.int32()),
        pa.field("frames_encoded", pa.int32()),
        pa.field("state_updates", pa.int32()),
        pa.field("decode_s", pa.float64()),
        pa.field("encode_s", pa.float64()),
        pa.field("recognise_s", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


def file_schema(labelling: Labelling) -> pa.Schema:
    """`SCHEMA` with the class names and the task in the metadata."""
    names = json.dumps(labelling.class_names, ensure_ascii=False)
    return SCHEMA.with_metadata({"skipreel.class_names": names, "skipreel.task": labelling.task})


def table_of(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """One row as a table of this schema; columns that the row does not name are null."""
    return pa.Table.from_arrays([_column(row.get(field.name), field.type) for field in schema], schema=schema)


def row_of(key: str, prediction: Prediction, task: Task) -> dict[str, Any]:
    """A prediction as a row of `SCHEMA`."""
    cost, seconds = prediction.cost, prediction.seconds
    return {
        "video_id": key,
        "uri": prediction.uri,
        "num_classes": prediction.scores.shape[-1],
        "duration_s": prediction.duration_s,
        "frame_index": prediction.frame_index,
        "pts_s": prediction.pts_s,
        "start_s": prediction.start_s,
        "used": prediction.used,
        "scores": prediction.scores.reshape(-1) if task == "frames" else None,
        "video_scores": video_scores(prediction, task),
        "frames_total": cost.frames_total,
        "frames_wanted": cost.frames_wanted,
        "frames_decoded": cost.frames_decoded,
        "frames_converted": cost.frames_converted,
        "frames_encoded": cost.frames_encoded,
        "state_updates": cost.state_updates,
        "decode_s": seconds.decode,
        "encode_s": seconds.encode,
        "recognise_s": seconds.recognise,
    }


def _column(value: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and value is not None:  # pa.array would go through Python numbers
        offsets = pa.array([0, len(value)], pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(value, kind.value_type), type=kind)
    return pa.array([value], kind)
