"""What a user runs: the command line, training, sweeps and their reports, closed-loop inference.

The public names are imported at first use, so that importing this package loads neither torch nor Ray nor MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipreel.jobs.closed_loop.live import open_live_session
    from skipreel.jobs.closed_loop.online import OnlineRecognizer
    from skipreel.jobs.closed_loop.prediction import Prediction
    from skipreel.jobs.closed_loop.recognizer import VideoRecognizer
    from skipreel.jobs.closed_loop.session import Request
    from skipreel.jobs.predictions.files import open_writer
    from skipreel.jobs.predictions.store import iterate_predictions
    from skipreel.jobs.trained.backbone import load_backbone_of
    from skipreel.jobs.trained.budget import with_budget
    from skipreel.jobs.trained.model import TrainedModel, load_model

_MODULES = {
    "OnlineRecognizer": "closed_loop.online",
    "Prediction": "closed_loop.prediction",
    "Request": "closed_loop.session",
    "TrainedModel": "trained.model",
    "VideoRecognizer": "closed_loop.recognizer",
    "iterate_predictions": "predictions.store",
    "load_backbone_of": "trained.backbone",
    "load_model": "trained.model",
    "open_live_session": "closed_loop.live",
    "open_writer": "predictions.files",
    "with_budget": "trained.budget",
}

__all__ = [
    "OnlineRecognizer",
    "Prediction",
    "Request",
    "TrainedModel",
    "VideoRecognizer",
    "iterate_predictions",
    "load_backbone_of",
    "load_model",
    "open_live_session",
    "open_writer",
    "with_budget",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
