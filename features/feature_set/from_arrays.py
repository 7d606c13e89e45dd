"""`build_from_arrays`: makes a feature set and a manifest from arrays of features with labels, without video.

The rest of the project treats a sequence as a video with T sampled frames, ``1 / rate_hz`` seconds apart.
Letters: N sequences, T steps, D feature length.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.array_files import ArraySequence, read_sequences
from skipreel.features.feature_set.card import create_feature_set, locked
from skipreel.features.feature_set.ledger import read_finished
from skipreel.features.feature_set.schema import MAX_SEGMENT_FRAMES, Source
from skipreel.features.feature_set.shard_list import name_of
from skipreel.features.feature_set.shard_writer import ShardWriter, VideoRows
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline import storage
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry
from skipreel.pipeline.video.sampling import Sampling

BACKBONE = "arrays"
# Beyond this step, two neighbouring steps have the same time in float32, the type of times in manifests.
_MAX_STEPS = 1 << 22
Watch = Callable[[Sequence[str], str], Iterable[str]]


def build_from_arrays(
    files: Sequence[str],
    *,
    output: str,
    rate_hz: float,
    class_names: Sequence[str] | None = None,
    test_splits: Sequence[str] = (),
    shard_bytes: int = 64 << 20,
    watch: Watch = lambda items, _: items,
) -> Manifest:
    """Write the sequences of ``files`` (see `array_files`) to a feature set; sequences that it has already stay.

    Checks all files before it writes. Holds one file in memory (of Parquet, one row group).

    Args:
        output: URI of the feature set.
        rate_hz: steps per second.
        class_names: names of the labels 0, 1, …; None uses the numbers.
        test_splits: sequences of these splits become split ``test``, all others ``train``; if empty, splits keep their
            names.
        shard_bytes: approximate size of a shard.
        watch: wraps the files to show progress; called with them and a description.

    Returns:
        The manifest. Labels of steps are spans in seconds; label -1 is no label.

    Raises:
        FeatureSetError, ManifestError: if a file, label, id or value cannot be used; the message names it.
    """
    digests = {file: storage.sha256(file) for file in files}
    listed = []
    for file in files:
        for sequence in read_sequences(file):
            as_stored(sequence)
            listed.append((_entry(sequence, file, rate_hz), sequence.features.shape[1]))
    if not listed:
        raise FeatureSetError(f"{', '.join(files) or 'no file given'}: no sequence to build from")
    dims = sorted({dim for _, dim in listed})
    if len(dims) > 1:
        raise FeatureSetError(f"features are of different lengths, {dims[0]} and {dims[-1]}: build a set of each")
    entries = _with_test_split([entry for entry, _ in listed], test_splits)
    highest = max((label.class_id for entry in entries for label in entry.labels), default=-1)
    names = tuple(str(number) for number in range(highest + 1)) if class_names is None else tuple(class_names)
    manifest = Manifest(entries, names)
    whole = hashlib.sha256("".join(sorted(digests.values())).encode()).hexdigest()
    spec = FeatureSpec(BACKBONE, whole, {}, Sampling(rate_hz), dims[0], layer="values")
    with locked(output):
        create_feature_set(output, spec, about={"files": {name_of(file): digests[file] for file in files}})
        _write(files, digests, output=output, rate_hz=rate_hz, shard_bytes=shard_bytes, watch=watch)
    return manifest


def as_stored(sequence: ArraySequence) -> NDArray[np.float16]:
    """Convert the features to (T, D) float16.

    Raises:
        FeatureSetError: if a value is NaN, infinite or too large for float16.
    """
    with np.errstate(over="ignore"):
        stored = sequence.features.astype(np.float16)
    bad = np.argwhere(~np.isfinite(stored))
    if len(bad):
        step, place = bad[0].tolist()
        raise FeatureSetError(
            f"{sequence.where}: feature {place} of step {step} is {sequence.features[step, place]}, it must be a "
            f"number of at most {np.finfo(np.float16).max:.0f} in size (float16): correct or scale the features"
        )
    return stored


def _entry(sequence: ArraySequence, file: str, rate_hz: float) -> VideoEntry:
    num_steps = len(sequence.features)
    if num_steps > _MAX_STEPS:
        raise FeatureSetError(
            f"{sequence.where} has {num_steps} steps, at most {_MAX_STEPS} are allowed: cut it in pieces"
        )
    labels: tuple[Label, ...] = ()
    if sequence.labels is not None and sequence.labels.ndim:
        labels = _spans(sequence.labels, rate_hz)
    elif sequence.labels is not None and sequence.labels >= 0:
        labels = (Label(int(sequence.labels)),)
    uri = storage.absolute(file)
    return VideoEntry(sequence.sequence_id, uri, sequence.split, num_steps / rate_hz, labels)


def _spans(labels: NDArray[np.int64], rate_hz: float) -> tuple[Label, ...]:
    """Make spans of runs of equal labels; spans end half-way between steps, so that rounding of times is harmless."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    ends = np.append(starts[1:], len(labels))
    return tuple(
        Label(int(labels[start]), max(0.0, (start - 0.5) / rate_hz), (end - 0.5) / rate_hz)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if labels[start] >= 0
    )


def _with_test_split(entries: Sequence[VideoEntry], test_splits: Sequence[str]) -> tuple[VideoEntry, ...]:
    splits = sorted({entry.split for entry in entries})
    unknown = [name for name in test_splits if name not in splits]
    if unknown:
        raise FeatureSetError(f"there is no split {unknown[0]!r} to test on; allowed: {', '.join(splits)}")
    if not test_splits:
        return tuple(entries)
    return tuple(replace(entry, split="test" if entry.split in test_splits else "train") for entry in entries)


def _write(
    files: Sequence[str], digests: dict[str, str], *, output: str, rate_hz: float, shard_bytes: int, watch: Watch
) -> None:
    done = read_finished(output)
    writer = ShardWriter(output, shard_bytes=shard_bytes)
    for file in watch(files, "writing sequences"):
        (file_stat,) = storage.file_stats([file])
        source = Source(digests[file], file_stat or storage.FileStat(0, 0))
        for sequence in read_sequences(file):
            if sequence.sequence_id in done:
                continue
            features = as_stored(sequence)
            index = np.arange(len(features), dtype=np.int32)
            rows = VideoRows(sequence.sequence_id, source)
            for start in range(0, len(features), MAX_SEGMENT_FRAMES):
                steps = slice(start, start + MAX_SEGMENT_FRAMES)
                rows.append(index[steps], index[steps] / rate_hz, features[steps])
            writer.add(rows)
    writer.flush()
