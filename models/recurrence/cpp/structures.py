"""The structs of interface.h, field by field."""

from ctypes import POINTER, Structure, c_int64, c_void_p

from torch import Tensor


def _structure(name: str, **fields: type) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields.items())})


CForwardInputs = _structure(
    "CForwardInputs",
    **dict.fromkeys(("num_threads", "T", "B", "D", "H", "L", "cell"), c_int64),
    x=c_void_p,
    **dict.fromkeys(("x_stride_t", "x_stride_b"), c_int64),
    **dict.fromkeys(("h", "c", "update_prob", "accumulated"), c_void_p),
    weights=POINTER(c_void_p),
    **dict.fromkeys(("update_weight", "update_bias", "lengths", "gates", "projection"), c_void_p),
)
CTrace = _structure(
    "CTrace",
    **dict.fromkeys(("states", "saved", "held", "prob", "index"), c_void_p),
    **dict.fromkeys(("num_updates", "num_held"), c_int64),
)
CForwardOutputs = _structure(
    "CForwardOutputs",
    output=c_void_p,
    **dict.fromkeys(("output_stride_t", "output_stride_b"), c_int64),
    **dict.fromkeys(("h", "c", "update_prob", "accumulated", "gates"), c_void_p),
)
COutputGrads = type("COutputGrads", (Structure,), {"_fields_": CForwardOutputs._fields_})
CPreactivationGrads = _structure(
    "CPreactivationGrads",
    **dict.fromkeys(("pre_activation", "logit", "states", "update_prob", "accumulated", "sums"), c_void_p),
    sums_size=c_int64,
)


def pointer(tensor: Tensor | None) -> int | None:
    """The address of its first number; None, a null pointer, where there is none."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
