"""What torch is doing around a call of the recurrence: whether it follows the call, and whether it transforms it."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp, …) or forward-mode differentiation is at work.

    Then only the reference can compute, in torch's own operators. Torch has no public way to ask.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(tensor: Tensor | None) -> bool:
    """Whether it is several at once for torch.autograd.grad's is_grads_batched, which `transformed` does not see."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


def followed(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the call must go through torch's dispatcher, because something there records or replaces it.

    That is so under torch.compile, jit.trace, and modes such as those of make_fx and fake tensors; and for tensors
    without values or of a subclass.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._len_torch_dispatch_stack() > 0
        or any(
            tensor is not None and (type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta) for tensor in tensors
        )
    )


def autocast_is_on(device_type: str) -> bool:
    """As torch.is_autocast_enabled, which fails for a device without autocast, such as "meta"."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Operators run in the dtype of what they are given."""
    return torch.autocast(device_type, enabled=False) if autocast_is_on(device_type) else contextlib.nullcontext()


def differentiable_gradients(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    *,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by each wanted input, given those by each output of function(*inputs), which is computed once more.

    Where gradients are on, they can be differentiated too. None stands for no gradient.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one tensor may be given twice, and each of the two has a gradient of its own.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        pairs = [
            (output, grad)
            for output, grad in zip(function(*views), grads, strict=True)
            if output is not None and grad is not None and output.requires_grad
        ]
        sources = [view for view, want in zip(views, wanted, strict=True) if view is not None and want]
        if not pairs:
            return [None] * len(inputs)
        outputs, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, sources, given, create_graph=create_graph, allow_unused=True))
    return [next(found) if view is not None and want else None for view, want in zip(views, wanted, strict=True)]
