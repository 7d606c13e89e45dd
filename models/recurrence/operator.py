"""The recurrence as one differentiable call, whichever implementation computes it.

The fast implementations stand behind two operators registered with torch, `skipreel::skip_rnn` and its backward, so
that torch.compile, autocast and autograd treat them like torch's own. docs/fast-layers.md says why each exists.

Letters: B batch, T steps, D features, H hidden, L layers.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor

from skipreel.models.recurrence import cpp
from skipreel.models.recurrence.arguments import check_arguments
from skipreel.models.recurrence.interface import (
    CellName,
    ForwardInputs,
    ForwardOutputs,
    OutputGrads,
    PreactivationGrads,
    Trace,
)
from skipreel.models.recurrence.reference import (
    Cell,
    LayerWeights,
    SkipState,
    SkipWeights,
    gru_cell,
    gru_cell_reset_after,
    lstm_cell,
    skip_recurrence,
)
from skipreel.models.recurrence.transforms import (
    autocast_is_on,
    batched,
    differentiable_gradients,
    followed,
    transformed,
    without_autocast,
)

Backend = Literal["auto", "reference", "event", "cpp", "triton"]

CELLS: Final[dict[CellName, Cell]] = {"lstm": lstm_cell, "gru": gru_cell, "gru_reset_after": gru_cell_reset_after}

_FAST_DTYPES: Final = (torch.float32, torch.float64)
_NARROW_DTYPES: Final = (torch.float16, torch.bfloat16)


def check_backend(backend: str) -> Backend:
    """The name as given; ValueError for one that does not exist."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    return cast(Backend, backend)


def recurrence(
    x: Tensor,
    state: SkipState,
    weights: SkipWeights,
    *,
    cell: CellName,
    backend: Backend = "auto",
    lengths: Tensor | None = None,
    gates: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, SkipState, Tensor]:
    """As `models.recurrence.reference.skip_recurrence`, computed by `backend`; x (T, B, D) of any strides.

    "auto" takes the C++ implementation on a CPU where it can be built, the event order in torch operators elsewhere,
    and the reference for what only it can do: given gates that want a gradient, dropout between layers, and the
    transforms of torch.func. float16 and bfloat16 are computed in float32 throughout, and output, h and c rounded once
    at the end; "reference" rounds to them at every step instead, all but p, a and the gates. "triton" is taken by name
    alone until it has passed `python -m benchmarks.gpu` on a GPU.

    Raises ValueError where dtypes, devices or shapes do not fit each other, and where the backend was named and cannot
    do this; and where lengths or gates hold what is not allowed or a row becomes NaN, unless torch only records or
    transforms the call and there are no values to check.
    """
    check_arguments(x, state, weights, cell=cell)
    if x.dtype in _NARROW_DTYPES and backend != "reference":
        state, wide = SkipState(*map(_float32, state)), _float32_weights(weights)  # type: ignore[arg-type]
        output, last, used = recurrence(
            x.float(), state, wide, cell=cell, backend=backend, lengths=lengths, gates=gates, dropout=dropout
        )
        c = None if last.c is None else last.c.to(x.dtype)
        return output.to(x.dtype), last._replace(h=last.h.to(x.dtype), c=c), used
    batch_first = x.stride(0) <= x.stride(1)
    flat = [tensor for layer in weights.layers for tensor in layer if tensor is not None]
    parameters = [*flat, weights.update_weight, weights.update_bias]
    is_transformed, is_followed = transformed(), followed((x, *state, *parameters))
    by_reference = _only_by_reference(x, gates, dropout)
    if backend == "reference" or (backend == "auto" and (by_reference is not None or is_transformed)):
        has_values = not is_transformed and (torch.compiler.is_compiling() or not is_followed)
        if has_values:
            _check_values(lengths, gates, num_steps=x.shape[0])
        # In place of a fast implementation it computes in the layer's dtype under autocast too, as that would.
        with (
            contextlib.nullcontext()
            if backend == "reference" or by_reference is not None
            else without_autocast(x.device.type)
        ):
            output, last, used = skip_recurrence(
                x, state, weights, cell=CELLS[cell], lengths=lengths, gates=gates, dropout=dropout
            )
        if has_values:
            _check_finite(last.update_prob)
        return output, last, used
    if is_transformed:
        by_reference = "a transform of torch.func, or forward-mode differentiation"
    if by_reference is not None:
        raise ValueError(f"backend {backend!r} cannot do this ({by_reference}): use backend='auto' or 'reference'")
    differentiable = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *state, *parameters)
    )
    arguments = _Arguments(
        x.transpose(0, 1) if batch_first else x,
        *state,
        parameters,
        lengths,
        gates,
        cell,
        backend,
        batch_first,
        differentiable,
    )
    if differentiable or is_followed or autocast_is_on(x.device.type):
        output, h, c, update_prob, accumulated, used, *_ = _skip_rnn(*arguments)
    else:  # the operator's overhead is longer than a short sequence
        return _forward(arguments)[:3]
    if batch_first:
        output, used = output.transpose(0, 1), used.transpose(0, 1)
    return output, SkipState(h, None if state.c is None else c, update_prob, accumulated), used


def _only_by_reference(x: Tensor, gates: Tensor | None, dropout: float) -> str | None:
    """What of this only the reference can do; None where every implementation can."""
    if x.dtype not in _FAST_DTYPES:
        return f"x of {x.dtype}"
    if gates is not None and gates.requires_grad:
        return "gates that want a gradient"
    return "dropout between layers" if dropout > 0 else None


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _float32_weights(weights: SkipWeights) -> SkipWeights:
    layers = tuple(LayerWeights(*map(_float32, layer)) for layer in weights.layers)  # type: ignore[arg-type]
    return SkipWeights(layers, weights.update_weight.float(), weights.update_bias.float())


def _check_values(lengths: Tensor | None, gates: Tensor | None, *, num_steps: int) -> None:
    if lengths is not None and ((lengths < 0) | (lengths > num_steps)).any():
        raise ValueError(f"lengths must be within 0..{num_steps}, the steps of x, got {lengths.tolist()}")
    if gates is not None and ((gates != 0) & (gates != 1)).any():
        raise ValueError("gates must be 0 or 1, got other values")


def _check_finite(update_prob: Tensor) -> None:
    """A NaN that a row has read stays in its p, so one check at the end finds it."""
    rows = update_prob.isnan().nonzero().flatten().tolist()
    if rows:
        raise ValueError(f"rows {rows} became NaN: their x or state, or the weights, are not finite")


class _Implementation(Protocol):
    """What a module of models/recurrence/ offers."""

    def forward(self, inputs: ForwardInputs, *, save: bool) -> ForwardOutputs: ...

    def backward(
        self, inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads, *, needs_x: bool
    ) -> PreactivationGrads: ...


def _implementation(backend: str, inputs: ForwardInputs) -> _Implementation:
    """The module that computes these inputs; ValueError where the one that was named cannot.

    Triton is imported here, because the environment at its import decides whether it interprets its kernels.
    """
    if backend in ("auto", "cpp"):
        reason = cpp.unsupported_reason(inputs)
        if reason is None:
            return cpp
    elif backend == "triton":
        from skipreel.models.recurrence import triton

        reason = triton.unsupported_reason(inputs)
        if reason is None:
            return triton
    if backend in ("cpp", "triton"):
        raise ValueError(f"backend {backend!r} cannot do this ({reason}): use backend='auto' or 'event'")
    from skipreel.models.recurrence import event

    return event


class _Arguments(NamedTuple):
    """What the operator is called with; x is (B, T, D) with batch_first, else (T, B, D), and so is its output."""

    x: Tensor
    h: Tensor
    c: Tensor | None
    update_prob: Tensor
    accumulated: Tensor
    parameters: Sequence[Tensor]
    lengths: Tensor | None
    gates: Tensor | None
    cell: str
    backend: str
    batch_first: bool
    save: bool

    def forward_inputs(self) -> ForwardInputs:
        *of_layers, update_weight, update_bias = self.parameters
        per_layer = len(of_layers) // self.h.shape[0]
        layers = tuple(
            LayerWeights(*of_layers[first : first + per_layer]) for first in range(0, len(of_layers), per_layer)
        )
        return ForwardInputs(
            x=self._steps_first(self.x),
            state=SkipState(self.h, self.c, self.update_prob, self.accumulated),
            weights=SkipWeights(layers, update_weight, update_bias),
            cell=cast(CellName, self.cell),
            lengths=None if self.lengths is None else self.lengths.to(self.x.device),
            gates=None if self.gates is None else self.gates.to(self.x.device) > 0,
        )

    def _steps_first(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def laid_out(self, tensor: Tensor) -> Tensor:
        """(T, B, …) as the caller has it, and dense."""
        return self._steps_first(tensor).contiguous()


def _forward(arguments: _Arguments) -> ForwardOutputs:
    inputs = arguments.forward_inputs()
    _check_values(inputs.lengths, arguments.gates, num_steps=inputs.x.shape[0])
    with torch.no_grad():
        outputs = _implementation(arguments.backend, inputs).forward(inputs, save=arguments.save)
    _check_finite(outputs.state.update_prob)
    return outputs


@torch.library.custom_op("skipreel::skip_rnn", mutates_args=())
def _skip_rnn(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    update_prob: Tensor,
    accumulated: Tensor,
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    gates: Tensor | None,
    cell: str,
    backend: str,
    batch_first: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, h, c (empty for a GRU), update_prob, accumulated, gates, and a trace's six tensors (empty without)."""
    arguments = _Arguments(
        x, h, c, update_prob, accumulated, parameters, lengths, gates, cell, backend, batch_first, save
    )
    outputs = _forward(arguments)
    if outputs.trace is None:
        trace = [x.new_empty(0) for _ in range(4)] + [x.new_empty(0, dtype=torch.int64), x.new_empty(0)]
    else:
        *trace, projection = outputs.trace
        trace.append(x.new_empty(0, 0, 0) if projection is None else projection)
    last = [x.new_empty(0) if part is None else part for part in outputs.state]
    tensors = arguments.laid_out(outputs.output), *last, arguments.laid_out(outputs.gates), *trace
    return tuple(_without_aliasing(tensors, of=arguments))  # type: ignore[return-value]


@_skip_rnn.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    call = _Arguments(*args)
    fake_mode = getattr(call.x, "fake_mode", None)

    def some(dims: int, dtype: torch.dtype = call.x.dtype) -> Tensor:
        """A tensor of the trace, whose sizes depend on the gates."""
        if not call.save:
            return call.x.new_empty(0, dtype=dtype)
        if fake_mode is None or fake_mode.shape_env is None:  # nothing can stand for a size that is not known
            return call.x.new_empty([0] * dims, dtype=dtype)
        context = torch.library.get_ctx()
        return call.x.new_empty([context.new_dynamic_size() for _ in range(dims)], dtype=dtype)

    return (
        call.x.new_empty(*call.x.shape[:2], call.h.shape[-1]),
        torch.empty_like(call.h),
        call.x.new_empty(0) if call.c is None else torch.empty_like(call.c),
        torch.empty_like(call.update_prob),
        torch.empty_like(call.accumulated),
        call.x.new_empty(*call.x.shape[:2]),
        *(some(4), some(3), some(3), some(1), some(2, torch.int64), some(3)),
    )


@torch.library.custom_op("skipreel::skip_rnn_backward", mutates_args=())
def _skip_rnn_backward(
    grads: Sequence[Tensor | None],
    trace: Sequence[Tensor],
    needs_x: bool,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    update_prob: Tensor,
    accumulated: Tensor,
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    gates: Tensor | None,
    cell: str,
    backend: str,
    batch_first: bool,
    save: bool,
) -> list[Tensor]:
    """Gradients by x (empty unless wanted), h, c (empty for a GRU), update_prob, accumulated, and each parameter."""
    arguments = _Arguments(
        x, h, c, update_prob, accumulated, parameters, lengths, gates, cell, backend, batch_first, save
    )
    from skipreel.models.recurrence.gradients import parameter_gradients

    inputs, kept = arguments.forward_inputs(), _trace(trace)
    by_output, by_h, by_c, by_prob, by_accumulated, by_gates = grads
    output_grads = OutputGrads(
        None if by_output is None else arguments._steps_first(by_output),
        by_h,
        None if c is None else by_c,
        by_prob,
        by_accumulated,
        None if by_gates is None else arguments._steps_first(by_gates),
    )
    preactivation_grads = _implementation(backend, inputs).backward(inputs, kept, output_grads, needs_x=needs_x)
    by_x, by_weights = parameter_gradients(inputs, kept, preactivation_grads, needs_x=needs_x)
    states = preactivation_grads.states[..., : h.shape[-1]].permute(2, 1, 0, 3)
    flat = [tensor for layer in by_weights.layers for tensor in layer if tensor is not None]
    gradients = [
        x.new_empty(0) if by_x is None else arguments.laid_out(by_x),
        states[0],
        x.new_empty(0) if c is None else states[1],
        preactivation_grads.update_prob,
        preactivation_grads.accumulated,
        *flat,
        by_weights.update_weight,
        by_weights.update_bias,
    ]
    return _without_aliasing([gradient.contiguous() for gradient in gradients], of=arguments)


def _trace(tensors: Sequence[Tensor]) -> Trace:
    states, saved, held, prob, index, projection = tensors
    return Trace(states, saved, held, prob, index, projection if projection.numel() else None)


def _without_aliasing(tensors: Sequence[Tensor], *, of: _Arguments) -> list[Tensor]:
    """The tensors, copied where they share memory with another or an argument, which torch forbids of outputs."""
    owned = {part.untyped_storage().data_ptr() for part in (*of[:5], *of.parameters) if part is not None}
    separate = []
    for tensor in tensors:
        own = tensor.clone() if tensor.untyped_storage().data_ptr() in owned else tensor
        owned.add(own.untyped_storage().data_ptr())
        separate.append(own)
    return separate


@_skip_rnn_backward.register_fake
def _(_grads: Sequence[Tensor | None], _trace: Sequence[Tensor], needs_x: bool, *args: Any) -> list[Tensor]:
    call = _Arguments(*args)
    dense = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)
    return [
        dense(call.x) if needs_x else call.x.new_empty(0),
        dense(call.h),
        call.x.new_empty(0) if call.c is None else dense(call.c),
        dense(call.update_prob),
        dense(call.accumulated),
        *(dense(tensor) for tensor in call.parameters),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = _Arguments(*inputs)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[6:])
    ctx.num_parameters = len(call.parameters)
    ctx.rest = call[8:]
    ctx.save_for_backward(*call[:5], call.lengths, call.gates, *call.parameters, *output[6:])


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    x, h, c, update_prob, accumulated, lengths, gates, *tensors = ctx.saved_tensors
    parameters, trace = tensors[: ctx.num_parameters], tensors[ctx.num_parameters :]
    if torch.is_grad_enabled() or transformed() or any(map(batched, grads)):
        call = _Arguments(x, h, c, update_prob, accumulated, parameters, lengths, gates, *ctx.rest)
        return _backward_by_reference(call, grads[:6], needed=ctx.needs_input_grad)
    by_x, by_h, by_c, by_prob, by_accumulated, *by_parameters = _skip_rnn_backward(
        list(grads[:6]),
        trace,
        ctx.needs_input_grad[0],
        x,
        h,
        c,
        update_prob,
        accumulated,
        parameters,
        lengths,
        gates,
        *ctx.rest,
    )
    return (
        by_x if ctx.needs_input_grad[0] else None,
        by_h,
        None if c is None else by_c,
        by_prob,
        by_accumulated,
        by_parameters,
        *[None] * 6,
    )


def _backward_by_reference(
    call: _Arguments, grads: Sequence[Tensor | None], *, needed: Sequence[Any]
) -> tuple[Any, ...]:
    """As `_backward`, by the reference's steps: torch knows how to differentiate and to batch those."""

    def outputs(*inputs: Tensor | None) -> list[Tensor | None]:
        first = dict(zip(call._fields, inputs[:5], strict=False))
        x, state, weights, cell, lengths, gates = call._replace(**first, parameters=inputs[5:]).forward_inputs()  # type: ignore[arg-type]
        output, last, used = skip_recurrence(x, state, weights, cell=CELLS[cell], lengths=lengths, gates=gates)
        return [call._steps_first(output), *last, call._steps_first(used)]

    inputs, wanted = [*call[:5], *call.parameters], [*needed[:5], *needed[5]]
    with without_autocast(call.x.device.type):
        gradients = differentiable_gradients(outputs, inputs, grads, wanted=wanted)
    return *gradients[:5], gradients[5:], *[None] * 6


_skip_rnn.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    # The gate decides in float32 whatever runs around it: in bfloat16 several sequences in a hundred would change.
    _skip_rnn.register_autocast(_device, torch.float32)
