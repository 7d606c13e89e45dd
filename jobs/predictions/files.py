"""Writes predictions to one file as they come: JSON lines, CSV, Parquet, or files for Charades' official evaluation."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skipreel.features.batching.collate import Task
from skipreel.jobs.closed_loop.labels import Labelling
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.predictions import parquet as prediction_parquet
from skipreel.jobs.predictions.text import (
    CharadesClassification,
    CharadesLocalisation,
    Csv,
    JsonLines,
    TextFormat,
)
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.storage.uris import has_scheme

Format = Literal["jsonl", "csv", "parquet", "charades-localisation", "charades-classification"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "charades-localisation",
}
# A row group of Parquet is written when it takes so much, or has so many rows.
ROW_GROUP_BYTES, ROW_GROUP_ROWS = 4 << 20, 16384


class PredictionWriter(ABC):
    """Takes one video at a time, and holds little more than one."""

    def add(self, key: str, prediction: Prediction) -> None:
        """Write a video under the name `key`; raises InputError where its scores are not finite."""
        if not np.isfinite(prediction.scores).all():
            raise InputError(f"scores of {key} are not finite numbers: the model is damaged, train it again")
        self._add(key, prediction)

    @abstractmethod
    def _add(self, key: str, prediction: Prediction) -> None: ...

    @abstractmethod
    def fail(self, key: str, uri: str, reason: str) -> None:
        """Write a video without a prediction, if the format can hold one (JSON lines and Parquet)."""


class _TextWriter(PredictionWriter):
    def __init__(
        self, text: TextFormat, write: Callable[[str], object], flush: Callable[[], None] | None = None
    ) -> None:
        self._text, self._write, self._flush = text, write, flush
        write(text.header())

    def _add(self, key: str, prediction: Prediction) -> None:
        for piece in self._text.pieces(key, prediction):
            self._write(piece)
        if self._flush:
            self._flush()

    def fail(self, key: str, uri: str, reason: str) -> None:
        self._write(self._text.failure(key, uri, reason))


class _ParquetWriter(PredictionWriter):
    def __init__(self, parquet: Any, labelling: Labelling) -> None:
        self._parquet, self._labelling = parquet, labelling
        self._schema = prediction_parquet.file_schema(labelling)
        self._rows: list[Any] = []
        self._num_bytes = 0

    def _add(self, key: str, prediction: Prediction) -> None:
        self._take(prediction_parquet.row_of(key, prediction, self._labelling.task))

    def fail(self, key: str, uri: str, reason: str) -> None:
        classes = len(self._labelling.class_names)
        self._take({"video_id": key, "uri": uri, "num_classes": classes, "error": reason})

    def flush(self) -> None:
        """Write the collected rows as one row group."""
        if self._rows:
            self._parquet.write_table(pa.concat_tables(self._rows))
        self._rows, self._num_bytes = [], 0

    def _take(self, row: dict[str, Any]) -> None:
        table = prediction_parquet.table_of(row, self._schema)
        self._rows.append(table)
        self._num_bytes += table.nbytes
        if self._num_bytes >= ROW_GROUP_BYTES or len(self._rows) == ROW_GROUP_ROWS:
            self.flush()


def choose_format(path: str | None, given: Format | None = None) -> Format:
    """The format `given`, else that of the file's suffix; JSON lines for standard output (None).

    Raises:
        InputError: when the suffix is not known, or Parquet is to go to standard output.
    """
    if path is None:
        if given == "parquet":
            raise InputError("Parquet cannot go to standard output: name a file, or take one of the text formats")
        return given or "jsonl"
    suffix = PurePosixPath(path.partition("?")[0] if has_scheme(path) else path).suffix.lower()
    if given is None and suffix not in SUFFIXES:
        raise InputError(
            f"{path} has the suffix {suffix!r}; allowed: {', '.join(SUFFIXES)}, "
            f"or any other with a format ({', '.join(get_args(Format))})"
        )
    return given or SUFFIXES[suffix]


@contextmanager
def open_writer(
    path: str | None,
    given: Format | None = None,
    *,
    class_names: tuple[str, ...],
    task: Task,
    threshold: float = 0.5,
    frame_scores: bool = False,
) -> Iterator[PredictionWriter]:
    """A writer into a file that appears whole when the context ends without an error, and otherwise not at all.

    Args:
        path: see `choose_format`; None: text goes to standard output, video by video.
        class_names: the classes, in the order of scores.
        threshold: a class counts as seen in a frame at this score or above (task frames; JSON lines and CSV).
        frame_scores: JSON lines with the scores of every frame (task frames), which the other formats have anyway.

    Raises:
        InputError: when the format does not suit the task or the class names.
        StorageError: when the file cannot be written.
    """
    form = choose_format(path, given)
    labelling = Labelling(class_names, task, threshold)
    if frame_scores and form != "jsonl":
        raise InputError(f"frame scores can be asked for with jsonl alone, {form} has its scores anyway; leave it out")
    if form == "parquet":
        assert path is not None
        schema = prediction_parquet.file_schema(labelling)
        with (
            storage.open_atomic(path) as stream,
            # Few values are equal, and a dictionary of them would take several times the memory.
            pq.ParquetWriter(stream, schema, compression="zstd", use_dictionary=False) as parquet,
        ):
            writer = _ParquetWriter(parquet, labelling)
            yield writer
            writer.flush()
        return
    text = _text_format(form, labelling, frame_scores=frame_scores)
    if path is None:
        yield _TextWriter(text, sys.stdout.write, sys.stdout.flush)
        return
    with storage.open_atomic(path) as stream:
        yield _TextWriter(text, lambda piece: stream.write(piece.encode()))


def _text_format(form: Format, labelling: Labelling, *, frame_scores: bool) -> TextFormat:
    if form == "jsonl":
        return JsonLines(labelling, frame_scores=frame_scores)
    kinds: dict[str, Callable[[Labelling], TextFormat]] = {
        "csv": Csv,
        "charades-localisation": CharadesLocalisation,
        "charades-classification": CharadesClassification,
    }
    return kinds[form](labelling)
