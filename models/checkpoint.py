"""A checkpoint is a directory: `model.safetensors` (weights and buffers) and `model.json` (configuration and metadata).

Nothing in it can run code. It is replaced as a whole: even after an interrupted write, a reader finds the old one or
the new one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from skipreel.models.recognizer import Recognizer, RecognizerConfig

WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "model.json"
FORMAT_VERSION: Final = 1


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which one, why, and what to do."""


def save_checkpoint(directory: str | Path, recognizer: Recognizer, metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint; an older one is replaced only once the new one is safe on disk.

    Args:
        directory: Where it goes; missing parents are made.
        recognizer: The network.
        metadata: Anything that JSON can hold, such as class names.

    Raises:
        CheckpointError: For other metadata, or where `directory` exists and is not a checkpoint.
        OSError: When the disk refuses.
    """
    check_replaceable(directory)
    write_checkpoint(directory, pack_checkpoint(recognizer, metadata))


def pack_checkpoint(recognizer: Recognizer, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by name, for the process that writes them.

    Raises:
        CheckpointError: For metadata that JSON cannot hold.
    """
    weights = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in recognizer.state_dict().items()})
    description = {
        "format_version": FORMAT_VERSION,
        "config": recognizer.config.to_json(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": dict(metadata),
    }
    try:
        text = json.dumps(description, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"metadata of a checkpoint cannot be written as JSON: {error}") from None
    return {WEIGHTS_FILE: weights, CONFIG_FILE: text.encode()}


def write_checkpoint(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes the files of `pack_checkpoint`; replaces and raises as `save_checkpoint` does."""
    directory = Path(directory).absolute()
    check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o755)  # with mkdtemp's 0700 other users could not read a shared checkpoint
        for name, content in files.items():
            _write(temporary / name, content)
        _sync_directory(temporary)
        _put_in_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(directory: str | Path) -> tuple[Recognizer, dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
        The recogniser, in evaluation mode on the CPU and in the dtype in which it was saved; and the metadata.

    Raises:
        CheckpointError: When a file is missing or corrupt, or the two files do not belong together.
    """
    directory = Path(directory).absolute()
    if not directory.exists() and _previous(directory).exists():
        directory = _previous(directory)  # a write was interrupted between its two renames
    description = _read_description(directory)
    weights = _read(directory, WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != description["weights_sha256"]:
        raise _broken(directory, f"{WEIGHTS_FILE} is not the file that {CONFIG_FILE} was written for")
    try:
        config = RecognizerConfig.from_json(description["config"])
        # No memory is allocated for a configuration before its weights are known to fit.
        with torch.device("meta"):
            recognizer = Recognizer(config)
        recognizer.load_state_dict(safetensors.torch.load(weights), assign=True)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise _broken(directory, " ".join(str(error).split())) from None
    return recognizer.eval(), description["metadata"]


def _read_description(directory: Path) -> dict[str, Any]:
    try:
        description = json.loads(_read(directory, CONFIG_FILE))
    except ValueError as error:
        raise _broken(directory, f"{CONFIG_FILE} is not JSON: {error}") from None
    types = {"format_version": int, "config": dict, "weights_sha256": str, "metadata": dict}
    if not isinstance(description, dict):
        raise _broken(directory, f"{CONFIG_FILE} is not a JSON object")
    for name, kind in types.items():
        if not isinstance(description.get(name), kind):
            raise _broken(directory, f"{CONFIG_FILE} has no {name} that is a JSON {kind.__name__}")
    if description["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {directory} has format version {description['format_version']}, this code reads "
            f"{FORMAT_VERSION}: load it with the version of skipreel that wrote it"
        )
    return description


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at {directory}: {name} cannot be read ({error.strerror}); "
            f"give the directory that holds {WEIGHTS_FILE} and {CONFIG_FILE}"
        ) from None


def _broken(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {directory} is damaged: {reason}; use another checkpoint or train again")


def check_replaceable(directory: str | Path) -> None:
    """Raises CheckpointError where `directory` exists and is not a checkpoint."""
    directory = Path(directory).absolute()
    if not directory.exists():
        return
    ours = {WEIGHTS_FILE, CONFIG_FILE}
    if not directory.is_dir() or not {entry.name for entry in directory.iterdir()} <= ours:
        raise CheckpointError(
            f"{directory} holds something else than a checkpoint and is left alone: choose another path"
        )


def _previous(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")


def _put_in_place(temporary: Path, directory: Path) -> None:
    """Renames; an older checkpoint first gets the name under which `load_checkpoint` looks too.

    A directory cannot be renamed over one that has files.
    """
    previous = _previous(directory)
    if directory.exists():
        shutil.rmtree(previous, ignore_errors=True)
        directory.rename(previous)
    temporary.rename(directory)
    _sync_directory(directory.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes the names in a directory as durable as the files' contents."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
