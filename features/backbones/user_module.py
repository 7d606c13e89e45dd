"""`load_module`: loads ``module:function``, a backbone in the user's own code.

The function has no arguments and returns a torch module and its preprocessing:

    def my_resnet():
        return network, Preprocessing(resize=256, crop=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

The module maps (T, 3, h, w) float to (T, D), the layer ``pooled``, or to a dict from layer names to such tensors.
Instead of the ``Preprocessing`` it may return a function from (T, H, W, 3) uint8 to (T, 3, h, w) float32, both on the
module's device; the spec then records only the function's name.
"""

from torch import nn

from skipreel.features.backbones.network import Network, reason_of
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.errors import BackboneError
from skipreel.pipeline.user_code import import_function


def load_module(name: str) -> Network:
    """Call the function ``name``, such as ``my_package.backbones:my_resnet``.

    Raises:
        BackboneError: if it cannot be imported, raises, or returns something else.
    """
    try:
        function = import_function(name)
    except (ImportError, AttributeError) as error:
        raise BackboneError(f"cannot import backbone {name}: {error} (check both names and PYTHONPATH)") from error
    try:
        returned = function()
    except Exception as error:
        raise BackboneError(f"backbone {name} raised {type(error).__name__}: {reason_of(error)}") from error
    match returned:
        case (nn.Module() as network, prepare) if callable(prepare):
            if isinstance(prepare, Preprocessing):
                settings = prepare.to_json()
            else:
                called = getattr(prepare, "__qualname__", type(prepare).__name__)
                settings = {"function": f"{prepare.__module__}:{called}"}
            return Network(network, prepare, f"{type(network).__name__} from {name}", settings)
    raise BackboneError(
        f"backbone {name} returned {type(returned).__name__}: return a torch module and a Preprocessing (or a function "
        "from (T, H, W, 3) uint8 to (T, 3, h, w) float32)"
    )
