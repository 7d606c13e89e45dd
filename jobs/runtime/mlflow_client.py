"""MLflow's client: how its errors, its retries and its log messages are handled."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from skipreel.jobs.runtime.database import database_file
from skipreel.pipeline.errors import InputError

# What MLflow's client raises when a server, a database or an artifact store cannot be used.
MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, OSError)
# Errors that every retry would give again. All others (no connection, a locked database) may be temporary.
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "INVALID_STATE", "BAD_REQUEST")


@contextmanager
def few_retries() -> Iterator[None]:
    """Silence MLflow, and keep it from waiting 4 minutes for a server that is down. The user's own settings hold."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # another thread may have removed it


@contextmanager
def reading(what: str, *, uri: str) -> Iterator[mlflow.MlflowClient]:
    """A client for a block that reads from an MLflow that exists already.

    Args:
        what: the thing to read, for the error message.
        uri: MLflow's server or database.

    Raises:
        InputError: there is no such database, or MLflow raises an error in the block.
    """
    database = database_file(uri)
    if database is not None and not database.is_file():  # MLflow itself would make an empty one
        raise InputError(f"there is no MLflow database {database}: give another --tracking-uri")
    try:
        with few_retries():
            yield mlflow.MlflowClient(uri)
    except MLFLOW_ERRORS as error:
        raise InputError(f"{what} cannot be read from MLflow at {uri}: {first_line(error)}") from error


def is_permanent(error: Exception) -> bool:
    """Whether every retry of a request would give this error again."""
    return isinstance(error, MlflowException) and error.error_code in _PERMANENT


def first_line(error: Exception | None) -> str:
    """The first line of an error's message."""
    return next(iter(str(error or "").strip().splitlines()), "it does not answer")
