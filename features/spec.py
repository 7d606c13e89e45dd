"""`FeatureSpec`: how features were made, and the feature set's id. Features may be mixed only if their ids are equal.

The data card stores it under the key ``recipe``, its name in earlier versions.
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
    """Everything that decides the value of a feature.

    Attributes:
        backbone: the name that loads it, such as ``hf:google/mobilenet_v1_0.75_224`` or ``random:0``.
        weights_digest: SHA-256 (hex) of the backbone's weights, which shows retraining and ignores renaming.
        preprocessing: the backbone's own image preprocessing, JSON-able.
        sampling: which frames are taken.
        dim: D, the length of a feature vector.
        layer: the output of the backbone, such as ``pooled`` or ``cls``.
        dtype: ``float32`` or ``bfloat16``, in which the backbone computes; features are always stored in float16.
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
        """The first 16 hex digits of a SHA-256 over the spec and the schema version.

        The backbone's name is left out: the same weights under another path give the same features.
        """
        content = {**self.to_json(), "schema_version": SCHEMA_VERSION}
        del content["backbone"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Convert to a dict that ``json`` can write and `from_json` can read."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "FeatureSpec":
        """Read the result of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: if a field is missing or of the wrong type.
        """
        return cls(**{**content, "sampling": Sampling(**content["sampling"])})
