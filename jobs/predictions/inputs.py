"""The videos that a user names: files, folders, URIs or a manifest; each video once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow.compute as pc
import pyarrow.fs as pafs

from skipreel.jobs.runtime.video_id import video_id_of
from skipreel.pipeline import storage
from skipreel.pipeline.annotations.class_folders import SUFFIXES
from skipreel.pipeline.errors import InputError, ManifestError
from skipreel.pipeline.manifest import iterate_manifest
from skipreel.pipeline.storage.uris import explained


class VideoInput(NamedTuple):
    """A video to label: its name in results, and where it is.

    The key is the `video_id` of a manifest, else the path or URI as it was given (in a folder: the folder's, joined
    with the file's).
    """

    key: str
    uri: str


def require_distinct_ids(videos: Iterable[VideoInput]) -> None:
    """Raises InputError where two videos have the same `video_id_of`."""
    seen: dict[str, str] = {}
    for video in videos:
        first = seen.setdefault(video_id_of(video.key), video.uri)
        if first != video.uri:
            raise InputError(
                f"{first} and {video.uri} would both be {video_id_of(video.key)!r} in the file: give one of them, "
                "rename one, or give a manifest with an id for each"
            )


@dataclass(frozen=True)
class VideoInputs:
    """Videos in the order they were named, those of the manifest last; iterate any number of times.

    Those named one by one or found in folders are held in memory; those of the manifest are read again in every pass.
    """

    named: tuple[VideoInput, ...]
    manifest: str | None
    split: str | None
    num_listed: int  # by the manifest

    def __len__(self) -> int:
        return len(self.named) + self.num_listed

    def __iter__(self) -> Iterator[VideoInput]:
        yield from self.named
        if self.manifest is not None:
            yield from _listed(self.manifest, self.split, self.named)


def video_inputs(videos: Sequence[str], *, manifest: str | None = None, split: str | None = None) -> VideoInputs:
    """The videos that a user names.

    Args:
        videos: files with any name, and folders, local or by URI: all files below a folder that end in a video suffix,
            sorted, without hidden ones. A file that is named twice comes once.
        manifest: more videos; one that is also among ``videos`` keeps its place and name there.
        split: of the manifest; None for all.

    Raises:
        InputError: when there are no videos at all, none in a folder, a name that is not UTF-8, or a split without a
            manifest.
        ManifestError: when the manifest cannot be used, has no such split, or has another video under a name given.
        StorageError: when a place does not answer.
    """
    if split is not None and manifest is None:
        raise InputError(f"a split ({split}) is one of a manifest's: give the manifest, or leave the split out")
    named: dict[str, VideoInput] = {}
    for place in videos:
        _check_text(place)
        for uri in _expand(place):
            named.setdefault(_identity(uri), VideoInput(uri, uri))
    if manifest is None and not named:
        raise InputError("no video given: name files, folders or URIs, or give a manifest")
    found = tuple(named.values())
    count = 0 if manifest is None else sum(1 for _ in _listed(manifest, split, found))
    return VideoInputs(found, manifest, split, count)


def _check_text(place: str) -> None:
    try:
        place.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place!r} is not UTF-8 text, as names in results must be: rename the file") from None


def _expand(place: str) -> Iterator[str]:
    """A file as it is, even if it is missing (it will fail by itself); a folder's videos."""
    if not _is_folder(place):
        yield place
        return
    files = [file for file in storage.list_tree(place) if _is_video(PurePosixPath(file))]
    if not files:
        raise InputError(f"folder {place} has no video: allowed are files that end in {', '.join(SUFFIXES)}")
    for file in files:
        yield storage.join(place, file)


def _is_video(path: PurePosixPath) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _identity(uri: str) -> str:
    """Equal for all spellings of a local file: relative, absolute, or with `file://`."""
    return str(storage.local_path(uri) or uri)


def _is_folder(place: str) -> bool:
    local = storage.local_path(place)
    if local is not None:
        return local.is_dir()
    if PurePosixPath(place.partition("?")[0]).suffix.lower() in SUFFIXES:  # saves a request for each
        return False
    filesystem, path = storage.resolve(place)
    with explained("look for", place):
        return bool(filesystem.get_file_info(path).type == pafs.FileType.Directory)


def _listed(manifest: str, split: str | None, named: Sequence[VideoInput]) -> Iterator[VideoInput]:
    """Videos of a manifest that are not `named`."""
    keys, places = {video.key for video in named}, {_identity(video.uri) for video in named}
    splits = set()
    for batch in iterate_manifest(manifest):
        splits |= set(pc.unique(batch["split"]).to_pylist())
        rows = batch if split is None else batch.filter(pc.equal(batch["split"], split))
        for video in map(VideoInput, rows["video_id"].to_pylist(), rows["uri"].to_pylist()):
            if places and _identity(video.uri) in places:
                continue
            if video.key in keys:
                raise ManifestError(f"{manifest} has a video {video.key} other than the one of this name that is given")
            yield video
    if split is not None and split not in splits:
        raise ManifestError(f"no split {split!r} in {manifest}; allowed: {', '.join(sorted(splits)) or 'none'}")
