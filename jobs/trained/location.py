"""Locations of models: a checkpoint folder, a run of MLflow, or a model registered in MLflow.

MLflow is imported only for the last two, because that takes more than a second.
"""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

from skipreel.pipeline.errors import InputError

_ALLOWED = "a folder, runs:/RUN_ID, runs:/RUN_ID/ARTIFACT_PATH, models:/NAME/VERSION or models:/NAME@ALIAS"


def local_model(uri: str, *, tracking_uri: str | None = None) -> Path:
    """The folder of a checkpoint. One in MLflow is copied to a temporary folder, which is deleted at exit.

    Args:
        uri: a folder; ``runs:/RUN_ID/ARTIFACT_PATH``, or ``runs:/RUN_ID`` of a run with one checkpoint;
            ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        tracking_uri: MLflow's server or database; default: MLFLOW_TRACKING_URI.

    Raises:
        InputError: the URI has another form; or MLflow, the run, the model or its checkpoint cannot be read.
    """
    if not uri.startswith(("runs:", "models:")):
        return Path(uri)
    of_run = re.fullmatch(r"runs:/([^/]+)(?:/(.*))?", uri)
    of_model = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", uri)
    if of_run is None and of_model is None:
        raise InputError(f"the model is {uri}, allowed are {_ALLOWED}")
    where = _tracking_uri(uri, tracking_uri)

    from skipreel.jobs.runtime import mlflow_models  # imports MLflow

    if of_run is not None:
        run_id, path = of_run.groups()
        source = f"runs:/{run_id}/{path or mlflow_models.find_checkpoint(where, run_id)}"
    else:
        assert of_model is not None
        name, version, alias = of_model.groups()
        source = mlflow_models.source_of_version(where, name, version=version, alias=alias)
    folder = tempfile.mkdtemp(prefix="skipreel-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return mlflow_models.download_checkpoint(where, source, folder=Path(folder))


def _tracking_uri(uri: str, given: str | None) -> str:
    where = given or os.environ.get("MLFLOW_TRACKING_URI")
    if where is None:
        raise InputError(f"{uri} is in MLflow, but where is MLflow? Give --tracking-uri, or set MLFLOW_TRACKING_URI")
    return where
