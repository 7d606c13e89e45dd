"""`read_sequences`: reads sequences that are not video from npz (without pickle) or Parquet files.

npz: ``features`` (or ``scores``), numbers, (N, T, D) or all steps joined as (ΣT, D). Optional: ``lengths`` (N,),
required for (ΣT, D); ``labels``, integers, (N, T), (ΣT,) or one per sequence (N,); ``split`` (N,); ``ids`` (N,), by
default the file's name and a number.

Parquet: a row per sequence with ``sequence_id`` string and ``features``, a list of T lists of D numbers. Optional:
``labels``, a list of T integers or one integer; ``split``.

Letters: N sequences, T steps, D feature length.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.shard_list import name_of
from skipreel.pipeline import storage
from skipreel.pipeline.storage.uris import one_line

_DEFAULT_SPLIT = "train"
_NPZ_NAMES = ("features", "scores", "labels", "lengths", "split", "ids")
_COLUMNS = ("sequence_id", "features", "labels", "split")


@dataclass(frozen=True, slots=True)
class ArraySequence:
    """One sequence.

    Attributes:
        where: the file and the sequence, for error messages.
        features: (T, D) numbers.
        labels: (T,) int64, one per step, or () int64, one for all steps; -1 is no label. None without labels.
    """

    where: str
    sequence_id: str
    split: str
    features: NDArray[Any]
    labels: NDArray[np.int64] | None


def read_sequences(uri: str) -> Iterator[ArraySequence]:
    """Read the sequences of an ``.npz`` or ``.parquet`` file, in order.

    Raises:
        FeatureSetError: if the file has another format, is damaged or inconsistent; the message names it.
        StorageError: if it is missing.
    """
    suffix = PurePosixPath(name_of(uri)).suffix.lower()
    if suffix == ".npz":
        return _read_npz(uri)
    if suffix == ".parquet":
        return _read_parquet(uri)
    raise FeatureSetError(f"{uri} is neither .npz nor .parquet: save arrays with numpy.savez, or a table as Parquet")


def _read_npz(uri: str) -> Iterator[ArraySequence]:
    arrays = _load_npz(uri)
    features = arrays.get("features", arrays.get("scores"))
    if features is None or features.ndim not in (2, 3) or features.dtype.kind not in "fiu" or 0 in features.shape:
        what = "has no features" if features is None else f"has features {features.dtype} {features.shape}"
        raise FeatureSetError(f"{uri} {what}: needed are numbers of shape (N, T, D), or (steps, D) with lengths (N,)")
    lengths = _lengths(uri, arrays.get("lengths"), features)
    count = len(lengths)
    for name in ("split", "ids"):
        if name in arrays and arrays[name].shape != (count,):
            raise FeatureSetError(f"{uri} has {name} of shape {arrays[name].shape}, needed is one for each of {count}")
    labels = arrays.get("labels")
    if labels is not None:
        shapes = [features.shape[:-1], (count,)]
        if labels.dtype.kind not in "iu" or labels.shape not in shapes:
            raise FeatureSetError(
                f"{uri} has labels {labels.dtype} {labels.shape}, "
                f"needed are integers of shape {shapes[0]} or {shapes[1]}"
            )
    stem = PurePosixPath(name_of(uri)).stem
    starts = np.cumsum(lengths) - lengths
    for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        steps = (number, slice(length)) if features.ndim == 3 else slice(start, start + length)
        sequence_id = str(arrays["ids"][number]) if "ids" in arrays else f"{stem}-{number:04d}"
        split = str(arrays["split"][number]) if "split" in arrays else _DEFAULT_SPLIT
        own = None if labels is None else labels[steps if labels.shape == features.shape[:-1] else number]
        yield _checked(f"{uri}: sequence {sequence_id!r}", sequence_id, split, features[steps], own)


def _load_npz(uri: str) -> dict[str, NDArray[Any]]:
    with storage.open_input(uri) as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            unknown = sorted(set(archive.files) - set(_NPZ_NAMES))
            if unknown:
                raise FeatureSetError(f"{uri} has an array {unknown[0]!r}; allowed: {', '.join(_NPZ_NAMES)}")
            return {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FeatureSetError(
                f"{uri} is not an npz of plain arrays ({one_line(error)}): save it with numpy.savez, without objects"
            ) from error


def _lengths(uri: str, lengths: NDArray[Any] | None, features: NDArray[Any]) -> NDArray[np.int64]:
    if lengths is None:
        if features.ndim == 2:
            raise FeatureSetError(f"{uri} has features of shape {features.shape} and no lengths (N,): add them")
        return np.full(len(features), features.shape[1])
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or (lengths < 1).any():
        raise FeatureSetError(f"{uri} has lengths {lengths.dtype} {lengths.shape}, needed are integers from 1 on")
    fits = lengths.sum() == len(features) if features.ndim == 2 else len(lengths) == len(features)
    if not fits or (features.ndim == 3 and lengths.max() > features.shape[1]):
        raise FeatureSetError(
            f"{uri} has {len(lengths)} lengths that add up to {lengths.sum()} and are at most {lengths.max()}, "
            f"they do not fit features of shape {features.shape}"
        )
    return lengths.astype(np.int64)


def _read_parquet(uri: str) -> Iterator[ArraySequence]:
    with storage.open_input(uri) as stream:
        try:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            missing = [name for name in _COLUMNS[:2] if name not in names]
            if missing:
                raise FeatureSetError(f"{uri} has no column {missing[0]}; needed: sequence_id, features")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[name for name in _COLUMNS if name in names])
                for row in range(table.num_rows):
                    yield _parquet_row(uri, {name: table[name][row] for name in table.column_names})
        except (pa.ArrowException, OSError) as error:
            raise FeatureSetError(f"{uri} is not Parquet ({one_line(error)}): write it again") from error


def _parquet_row(uri: str, row: dict[str, Any]) -> ArraySequence:
    sequence_id = row["sequence_id"].as_py()
    where = f"{uri}: sequence {sequence_id!r}"
    split = row["split"].as_py() if "split" in row else _DEFAULT_SPLIT
    if not isinstance(sequence_id, str) or split is None:
        raise FeatureSetError(f"{where}: sequence_id must be a string and split must not be null")
    steps = row["features"].values if _is_list(row["features"].type) else None
    if steps is None or not _is_list(steps.type):
        raise FeatureSetError(f"{where}: features are {row['features'].type}, needed is a list of lists of numbers")
    sizes = pc.unique(pc.list_value_length(steps)).to_pylist()
    values = steps.flatten()
    if len(sizes) != 1 or not sizes[0] or values.null_count or not _is_number(values.type):
        raise FeatureSetError(f"{where}: features must be lists of one length of numbers, got lengths {sizes}")
    labels = row.get("labels")
    own = None
    if labels is not None and labels.is_valid:
        own = labels.values.to_numpy(zero_copy_only=False) if _is_list(labels.type) else np.asarray(labels.as_py())
    return _checked(where, sequence_id, str(split), values.to_numpy().reshape(len(steps), sizes[0]), own)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _checked(
    where: str, sequence_id: str, split: str, features: NDArray[Any], labels: NDArray[Any] | None
) -> ArraySequence:
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape not in ((), features.shape[:1]):
            raise FeatureSetError(
                f"{where}: labels {labels.dtype} {labels.shape}, needed is an integer or {len(features)} of them"
            )
        if (labels < -1).any():
            raise FeatureSetError(
                f"{where}: label {labels.min()}, allowed are class numbers from 0 on, and -1 for none"
            )
        labels = labels.astype(np.int64)
    return ArraySequence(where, sequence_id, split, features, labels)
