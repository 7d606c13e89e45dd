"""The C++ implementation: built on first use by torch's extension loader, cached on disk, called through ctypes.

Letters: B batch, T steps, H hidden, P = H rounded up to 16, L layers, E updates, S = B + E segments.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_int64, c_void_p
from pathlib import Path
from typing import Final

import torch
from filelock import FileLock
from torch import Tensor

from skipreel.models.recurrence.interface import (
    CellName,
    ForwardInputs,
    ForwardOutputs,
    OutputGrads,
    PreactivationGrads,
    Trace,
)
from skipreel.models.recurrence.reference import LayerWeights, SkipState

_logger = logging.getLogger(__name__)

_SOURCE: Final = Path(__file__).with_name("skip_rnn.cpp")
_CELLS: Final[dict[CellName, int]] = {"lstm": 0, "gru": 1, "gru_reset_after": 2}
_BLOCKS: Final[dict[CellName, tuple[int, int, int, int]]] = {  # gates, states, recurrent products, saved values
    "lstm": (4, 2, 4, 4),
    "gru": (3, 1, 2, 3),
    "gru_reset_after": (3, 1, 3, 4),
}
_INSTRUCTIONS: Final = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"]}
_OPENMP: Final = ["-fopenmp"] if sys.platform == "linux" else []
"""Torch's own threads; elsewhere the library starts its own."""
_PAD: Final = 16
_SUM_IN_CACHE: Final = 2 * 1024 * 1024
"""Bytes of all weights up to which every thread sums their gradients while it has the updates in its cache; beyond, the
grads of all updates are kept, for one large product."""
_PROJECT_AHEAD: Final = 512 * 1024
"""Bytes of input weights from which on W x is computed for all steps at once: a core's cache does not hold them, and a
batch that updates together is too small to pay for reading them."""


def _structure(name: str, **fields: type) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields.items())})


# As in skip_rnn.cpp.
_ForwardInputs = _structure(
    "_ForwardInputs",
    **dict.fromkeys(("num_threads", "T", "B", "D", "H", "L", "cell"), c_int64),
    x=c_void_p,
    **dict.fromkeys(("x_stride_t", "x_stride_b"), c_int64),
    **dict.fromkeys(("h", "c", "update_prob", "accumulated"), c_void_p),
    weights=POINTER(c_void_p),
    **dict.fromkeys(("update_weight", "update_bias", "lengths", "gates", "projection"), c_void_p),
)
_Trace = _structure(
    "_Trace",
    **dict.fromkeys(("states", "saved", "held", "prob", "index"), c_void_p),
    **dict.fromkeys(("num_updates", "num_held"), c_int64),
)
_ForwardOutputs = _structure(
    "_ForwardOutputs",
    output=c_void_p,
    **dict.fromkeys(("output_stride_t", "output_stride_b"), c_int64),
    **dict.fromkeys(("h", "c", "update_prob", "accumulated", "gates"), c_void_p),
)
_OutputGrads = type("_OutputGrads", (Structure,), {"_fields_": _ForwardOutputs._fields_})
_PreactivationGrads = _structure(
    "_PreactivationGrads",
    **dict.fromkeys(("pre_activation", "logit", "states", "update_prob", "accumulated", "sums"), c_void_p),
    sums_size=c_int64,
)


def unsupported_reason(inputs: ForwardInputs) -> str | None:
    """Why this implementation cannot compute these inputs; None if it can."""
    if inputs.weights.layers[0].norm_weight is not None:
        return "layer normalisation"
    if inputs.x.device.type != "cpu":
        return f"tensors on {inputs.x.device}"
    return None if library() is not None else "it could not be built, the log says why"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with one line in the log, where it cannot be built.

    It stands beside torch's own extensions (`TORCH_EXTENSIONS_DIR`, else ~/.cache/torch_extensions), one file for each
    version of the source and kind of processor.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", *_INSTRUCTIONS.get(capability, []), *_OPENMP]
    digest = hashlib.sha256(_SOURCE.read_bytes() + repr((flags, torch.__version__)).encode()).hexdigest()[:16]
    try:
        # Inside, because a user without an entry in passwd and without $HOME has no home folder.
        cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions") / "skipreel"
        target = cache / f"skip_rnn-{capability.lower()}-{digest}.so"
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / "lock"):  # the system lets go of it when its holder dies
                if not target.exists():
                    _build(target, flags)
        return ctypes.CDLL(str(target))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[0]
        _logger.warning(
            "the C++ Skip RNN layers could not be built (%s): slower ones in torch operators are used; "
            "the fast ones need g++, ninja and a folder to build in: $TORCH_EXTENSIONS_DIR, or one in the home folder",
            reason,
        )
        return None


def _build(target: Path, flags: list[str]) -> None:
    from torch.utils import cpp_extension  # half a second of imports that only a build needs

    _logger.warning("building the C++ Skip RNN layers, once: about 20 seconds")
    with tempfile.TemporaryDirectory(dir=target.parent) as directory, _ninja_on_path():
        built = cpp_extension.load(
            "skip_rnn",
            str(_SOURCE),
            extra_cflags=flags,
            extra_ldflags=_OPENMP,
            build_directory=directory,
            is_python_module=False,
        )
        Path(str(built)).replace(target)


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """pip puts ninja beside python, which is on the path only where the environment was activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def forward(inputs: ForwardInputs, *, save: bool) -> ForwardOutputs:
    """The recurrence on CPU tensors, float32 or float64; `save` keeps what `backward` needs."""
    layout = _Layout(inputs)
    num_steps, batch_size, hidden = layout.num_steps, layout.batch_size, layout.hidden_size
    new = functools.partial(torch.empty, dtype=inputs.x.dtype)
    if inputs.x.stride(0) <= inputs.x.stride(1):  # batch first: the output gets the same layout
        output = new(batch_size, num_steps, hidden).transpose(0, 1)
    else:
        output = new(num_steps, batch_size, hidden)
    state = SkipState(
        new(inputs.state.h.shape),
        None if inputs.state.c is None else new(inputs.state.h.shape),
        new(batch_size),
        new(batch_size),
    )
    gates = new(num_steps, batch_size)
    capacity = batch_size * num_steps
    projection = new(num_steps, batch_size, layout.projected) if save and layout.projects_ahead else None
    trace = (
        # Room for an update at every step; memory that is never touched is never really taken.
        Trace(
            states=new(batch_size + capacity, layout.num_layers, layout.num_states, layout.padded),
            saved=new(capacity, layout.num_layers, layout.num_saved * layout.padded),
            held=new(batch_size + capacity, layout.num_layers, layout.num_products * layout.padded),
            prob=new(batch_size + capacity),
            index=torch.empty(batch_size + capacity, 4, dtype=torch.int64),
            projection=projection,
        )
        if save
        else None
    )
    outputs = _ForwardOutputs(_pointer(output), output.stride(0), output.stride(1), *map(_pointer, (*state, gates)))
    kept = None if trace is None else _Trace(*map(_pointer, trace[:5]), 0, 0)
    layout.call("forward", projection, outputs, kept)
    if trace is not None and kept is not None:
        num_updates, num_held = kept.num_updates, kept.num_held
        trace = Trace(
            states=trace.states[: batch_size + num_updates],
            saved=trace.saved[:num_updates],
            held=trace.held[:num_held],
            prob=trace.prob[: batch_size + num_updates],
            index=trace.index[: batch_size + num_updates],
            projection=projection,
        )
    return ForwardOutputs(output, state, gates, trace)


def backward(inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads, *, needs_x: bool) -> PreactivationGrads:
    """Exact straight-through gradients, by pre-activation; the parameters' follow from them."""
    layout = _Layout(inputs)
    dtype, num_updates = inputs.x.dtype, len(trace.saved)
    sums = layout.sums() if layout.sums_in_cache else None
    pre_activation = num_updates, layout.num_layers, layout.num_gates, layout.padded
    grads = PreactivationGrads(
        pre_activation=None if sums is not None and not needs_x else torch.empty(pre_activation, dtype=dtype),
        logit=torch.empty(num_updates, dtype=dtype),
        states=torch.empty(layout.batch_size, layout.num_layers, layout.num_states, layout.padded, dtype=dtype),
        update_prob=torch.empty(layout.batch_size, dtype=dtype),
        accumulated=torch.empty(layout.batch_size, dtype=dtype),
    )
    output = output_grads.output
    if output is not None and output.stride(2) != 1:
        output = output.contiguous()
    others = [None if tensor is None else tensor.contiguous() for tensor in output_grads[1:]]
    given = _OutputGrads(
        _pointer(output), *(output.stride()[:2] if output is not None else (0, 0)), *map(_pointer, others)
    )
    kept = _Trace(*map(_pointer, trace[:5]), num_updates, len(trace.held))
    outputs = _PreactivationGrads(*map(_pointer, (*grads[:5], sums)), 0 if sums is None else sums.shape[1])
    layout.call("backward", trace.projection, kept, given, outputs)
    return grads if sums is None else grads._replace(layers=layout.layer_gradients(sums.sum(0)))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


class _Layout:
    """Sizes of the inputs, and the inputs as the library wants them; keeps alive what the pointers point to."""

    def __init__(self, inputs: ForwardInputs) -> None:
        self.num_steps, self.batch_size, self.input_size = inputs.x.shape
        self.cell, self.dtype, self.element_size = inputs.cell, inputs.x.dtype, inputs.x.element_size()
        self.num_layers, _, self.hidden_size = inputs.state.h.shape
        self.padded = -(-self.hidden_size // _PAD) * _PAD
        self.num_gates, self.num_states, self.num_products, self.num_saved = _BLOCKS[inputs.cell]
        self.projected = self.num_gates * self.padded
        self.projects_ahead = self.input_size * self.projected * self.element_size > _PROJECT_AHEAD
        self._suffix = {torch.float32: "float", torch.float64: "double"}[inputs.x.dtype]
        x = inputs.x if inputs.x.stride(2) == 1 else inputs.x.contiguous()
        dense = [None if tensor is None else tensor.detach().contiguous() for tensor in inputs.state]
        weights = [tensor.detach().contiguous() for layer in inputs.weights.layers for tensor in layer[:4]]
        gate = [tensor.detach().contiguous() for tensor in inputs.weights[1:]]
        choice = [
            None if tensor is None else tensor.to(kind).contiguous()
            for tensor, kind in ((inputs.lengths, torch.int64), (inputs.gates, torch.uint8))
        ]
        self._alive = [x, *dense, *weights, *gate, *choice]
        self._inputs = _ForwardInputs(
            torch.get_num_threads(),
            self.num_steps,
            self.batch_size,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            _CELLS[inputs.cell],
            _pointer(x),
            x.stride(0),
            x.stride(1),
            *map(_pointer, dense),
            (c_void_p * len(weights))(*map(_pointer, weights)),
            *map(_pointer, gate),
            *map(_pointer, choice),
        )

    def _widths(self) -> list[int]:
        """What each layer reads, padded."""
        return [-(-self.input_size // _PAD) * _PAD] + [self.padded] * (self.num_layers - 1)

    @property
    def sums_in_cache(self) -> bool:
        return sum(self._widths()) * self.projected * self.element_size <= _SUM_IN_CACHE

    def sums(self) -> Tensor:
        """Zeros for the gradients of all layers' weights, a row for each block of rows."""
        each = [self.projected * (width + self.padded + 1) + self.padded for width in self._widths()]
        return torch.zeros(min(self._inputs.num_threads, self.batch_size), sum(each), dtype=self.dtype)

    def layer_gradients(self, sums: Tensor) -> tuple[LayerWeights, ...]:
        """The gradients that `sums` holds, as skip_rnn.cpp laid them out."""
        layers = []
        hidden = self.hidden_size
        for depth, width in enumerate(self._widths()):
            sizes = [self.projected * width, self.projected * self.padded, self.projected, self.padded]
            *blocks, b_hn = torch.split(sums[: sum(sizes)], sizes)
            sums = sums[sum(sizes) :]
            by_input, by_hidden, bias = (block.view(self.num_gates, self.padded, -1)[:, :hidden] for block in blocks)
            bias_ih = bias.flatten()
            bias_hh = bias_ih.clone()
            if self.cell == "gru_reset_after":
                bias_hh[2 * hidden :] = b_hn[:hidden]
            read = hidden if depth else self.input_size
            layers.append(
                LayerWeights(
                    by_input[:, :, :read].flatten(0, 1), by_hidden[:, :, :hidden].flatten(0, 1), bias_ih, bias_hh
                )
            )
        return tuple(layers)

    def call(self, direction: str, projection: Tensor | None, *others: Structure | None) -> None:
        self._inputs.projection = _pointer(projection)
        compiled = library()
        assert compiled is not None, "whoever chooses this implementation asks for library() first"
        function = getattr(compiled, f"skip_rnn_{direction}_{self._suffix}")
        structures = [None if each is None else ctypes.byref(each) for each in others]
        if function(ctypes.byref(self._inputs), *structures) != 0:
            raise MemoryError(
                f"not enough memory for the {direction} pass of a Skip RNN: {self.num_layers} layers of "
                f"{self.hidden_size} hidden units, {self.batch_size} rows of {self.num_steps} steps; "
                "use fewer rows or shorter sequences, or raise the memory limit"
            )
