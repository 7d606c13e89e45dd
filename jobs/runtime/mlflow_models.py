"""Checkpoints in MLflow: finding them in a run or in the model registry, and downloading them."""

from pathlib import Path

import mlflow

from skipreel.jobs.runtime.mlflow_client import reading
from skipreel.models.checkpoint import CONFIG_FILE
from skipreel.pipeline.errors import InputError


def find_checkpoint(uri: str, run_id: str) -> str:
    """The artifact path of a run's only checkpoint.

    Raises:
        InputError: MLflow or the run cannot be read, or the run has no checkpoint or several.
    """
    with reading(f"run {run_id}", uri=uri) as client:
        folders: list[str] = [entry.path for entry in client.list_artifacts(run_id) if entry.is_dir]
        found = [
            folder
            for folder in folders
            if any(Path(entry.path).name == CONFIG_FILE for entry in client.list_artifacts(run_id, folder))
        ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"run {run_id} holds {len(found)} checkpoints: give one of "
            + ", ".join(f"runs:/{run_id}/{path}" for path in found)
        )
    raise InputError(f"run {run_id} holds no checkpoint: give a run of train, or of one network of a sweep")


def source_of_version(uri: str, name: str, *, version: str | None = None, alias: str | None = None) -> str:
    """The artifact URI of a registered model, given by its version or its alias.

    Raises:
        InputError: MLflow or the model cannot be read.
    """
    which = f"version {version}" if alias is None else f"alias {alias}"
    with reading(f"model {name}, {which},", uri=uri) as client:
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias).version
        source: str = client.get_model_version_download_uri(name, version)
    return source


def download_checkpoint(uri: str, source: str, *, folder: Path) -> Path:
    """Copy a checkpoint from MLflow's artifacts into a folder.

    Raises:
        InputError: it cannot be read, or is not a checkpoint.
    """
    with reading(source, uri=uri):
        copy = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
    if not (copy / CONFIG_FILE).is_file():
        raise InputError(f"{source} in MLflow at {uri} is not a checkpoint of skipreel train or sweep")
    return copy
