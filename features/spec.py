"""What made a feature: backbone, weights, preprocessing and sampling, and the id that follows from them.

Two feature sets may be mixed exactly when their ids are equal.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from skipreel.pipeline.video.sampling import Sampling

SCHEMA_VERSION = 1
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Everything that decides a feature's value.

    Attributes:
        backbone: the name it is loaded by, such as ``hf:google/mobilenet_v1_0.75_224`` or ``random:0``.
        weights_digest: SHA-256 of the backbone's weights (hex), so that a renamed or retrained one is noticed.
        preprocessing: the backbone's own image preprocessing, JSON-able.
        sampling: which frames are taken.
        dim: D, the length of one feature vector.
        layer: which of the backbone's outputs it is, such as ``pooled`` or ``cls``.
        dtype: ``float32`` or ``bfloat16``, what the backbone computed in; features are stored in float16 either way.
    """

    backbone: str
    weights_digest: str
    preprocessing: dict[str, Any]
    sampling: Sampling
    dim: int
    layer: str = "pooled"
    dtype: Dtype = "float32"

    @property
    def feature_set_id(self) -> str:
        """The first 16 hex digits of a SHA-256 over the recipe and the schema version.

        The backbone's name is left out: the same weights under another path are the same recipe.
        """
        content = {**self.to_json(), "schema_version": SCHEMA_VERSION}
        del content["backbone"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write and ``from_json`` reads back to an equal recipe."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "FeatureSpec":
        """Inverse of ``to_json``.

        Raises:
            KeyError, TypeError, ValueError: when a part is missing or of the wrong kind.
        """
        return cls(**{**content, "sampling": Sampling(**content["sampling"])})
