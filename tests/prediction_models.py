"""An untrained network that skips some frames, for tests of predictions: no training, no weights to be had."""

import torch

from features.backbones import load_backbone
from jobs.evaluation import TrainedModel
from models import Recognizer, RecognizerConfig
from pipeline.sampling import Sampling

BACKBONE = load_backbone("random:0")


def make_model(*, task="frames", seed=0) -> TrainedModel:
    """Looks at about every fourth of 10 frames a second; the seed decides the weights."""
    torch.manual_seed(seed)
    recognizer = Recognizer(RecognizerConfig("gru", task, BACKBONE.dim, 3, hidden_size=8))
    torch.nn.init.constant_(recognizer.recurrent.update_bias, -1.2)
    torch.nn.init.normal_(recognizer.recurrent.update_weight, std=0.3)
    recipe = BACKBONE.recipe(Sampling(10.0))
    return TrainedModel(recognizer.eval(), ("a", "b", "c"), recipe.feature_set_id, recipe, {})
