"""One layer's candidate and its backward over a batch of rows, in place; the backward is what autograd would compute.

A backward comes in two parts: `factors`, everything that does not depend on the adjoints, for many updates at once; and
`backward_step`, update by update. Formulas of the cells: models/recurrence/reference.py; normalisation:
normalise.py in this folder.

Letters: n rows, D features (H in upper layers), H hidden, G gate blocks, N of them that layer normalisation reaches, A
blocks that are saved, R blocks of recurrent products that need the held h alone.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from skipreel.models.recurrence.event.normalise import Norm, normalise_, normalise_backward
from skipreel.models.recurrence.interface import CellName, ForwardInputs
from skipreel.models.recurrence.reference import LayerWeights

Vectors = tuple[Tensor, ...]
"""What a layer's state is made of: (h,) or (h, c), each (n, H)."""


class Layer(NamedTuple):
    """weight_ih (G·H, D); bias (G·H,), all of it that joins W x; bias_n (H,) if U_n h has its own.

    weight_hh (G·H, H) also in two parts, gates (N·H, H), all of an LSTM, and candidate (the rest, H), U_n of a GRU.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    gates: Tensor
    candidate: Tensor
    bias: Tensor
    bias_n: Tensor | None
    norm: Norm | None


class BackwardStep(NamedTuple):
    """The backward of one update: adjoint, of h̃ and c̃, becomes that of h and c; below (n, H), if any, gains Wᵀ δ.

    saved as in `Cell`; extra from `factors`. pre (n, G, H), the factors, becomes δ, the adjoint of W x + b. gates
    (n, N, H), the factors of the normalised blocks, becomes their adjoint: the start of pre, unless a layer normalises.
    """

    adjoint: Vectors
    below: Tensor | None
    saved: Tensor
    extra: Tensor | None
    pre: Tensor
    gates: Tensor


class Cell(ABC):
    """The operations of one kind of cell. saved (n, A·H or more) holds A blocks, and then what normalisation keeps."""

    blocks: ClassVar[int]
    vectors: ClassVar[int]
    saved_blocks: ClassVar[int]
    held_blocks: ClassVar[int]
    norm_blocks: ClassVar[int]

    def layers(self, inputs: ForwardInputs) -> list[Layer]:
        return [self._layer(weights) for weights in inputs.weights.layers]

    def _layer(self, weights: LayerWeights) -> Layer:
        size = weights.weight_hh.shape[1]
        gates, candidate = weights.weight_hh.tensor_split((self.norm_blocks * size,))
        norm = Norm.of(weights, start=self.saved_blocks * size)
        bias = weights.bias_ih + weights.bias_hh
        return Layer(weights.weight_ih, weights.weight_hh, gates, candidate, bias, None, norm)

    def hold(self, h: Tensor, layer: Layer, out: Tensor) -> None:
        """The recurrent products that need the held h (n, H) alone, into out (n, R·H)."""
        torch.mm(h, layer.gates.t(), out=out)

    @abstractmethod
    def forward_step(self, saved: Tensor, old: Vectors, new: Vectors, layer: Layer, *, held: Tensor | None) -> None:
        """The candidate, into `new`, which may be `old`. `saved` starts as W x + b (n, G·H), and ends as what is kept.

        held: the products of `hold`, or None where they are still to be made.
        """

    @abstractmethod
    def factors(self, saved: Tensor, old: Vectors, new: Vectors, pre: Tensor) -> Tensor | None:
        """Into pre (n, G, H): what adjoints get multiplied with. Returns what else `backward_step` needs, (n, H)."""

    @abstractmethod
    def backward_step(self, step: BackwardStep, layer: Layer) -> None:
        """Through the cell, from the candidate to the state before."""


class _LSTM(Cell):
    blocks = 4
    vectors = 2
    saved_blocks = 4
    held_blocks = 4
    norm_blocks = 4

    def forward_step(self, saved: Tensor, old: Vectors, new: Vectors, layer: Layer, *, held: Tensor | None) -> None:
        h, c = old
        h_new, c_new = new
        gates = saved[:, : layer.bias.shape[0]]
        _add_recurrent(gates, h, layer, held)
        if layer.norm is not None:
            normalise_(saved, layer.norm)
        i, f, g, o = gates.view(-1, 4, h.shape[1]).unbind(1)
        g.mul_(-2)  # and all four at once through σ: tanh as in `_tanh_`
        gates.sigmoid_()
        g.mul_(-2).add_(1)
        torch.mul(f, c, out=c_new).addcmul_(i, g)
        torch.mul(c_new, -2, out=h_new).sigmoid_()
        torch.addcmul(o, o, h_new, value=-2, out=h_new)

    def factors(self, saved: Tensor, old: Vectors, new: Vectors, pre: Tensor) -> Tensor:
        h_new, size = new[0], pre.shape[2]
        gates = saved[:, : 4 * size].view(-1, 4, size)
        i, _, g, o = gates.unbind(1)
        d_i, d_f, d_g, d_o = pre.unbind(1)
        torch.addcmul(gates[:, :2], gates[:, :2], gates[:, :2], value=-1, out=pre[:, :2])
        d_i.mul_(g)
        d_f.mul_(old[1])
        torch.mul(g, g, out=d_g)
        torch.addcmul(i, i, d_g, value=-1, out=d_g)
        torch.addcmul(h_new, h_new, o, value=-1, out=d_o)
        # tanh c̃ once more, cheaply; where o underflows to 0, so does h̃.
        tanh_c = h_new / o.clamp_min(torch.finfo(o.dtype).tiny)
        return torch.addcmul(o, h_new, tanh_c, value=-1)

    def backward_step(self, step: BackwardStep, layer: Layer) -> None:
        dh, dc = step.adjoint
        size = dh.shape[1]
        assert step.extra is not None
        dc.addcmul_(dh, step.extra)
        step.gates[:, :3].mul_(dc.unsqueeze(1))
        step.gates[:, 3].mul_(dh)
        if layer.norm is not None:
            normalise_backward(step.gates, step.saved, layer.norm, out=step.pre)
        pre = step.pre.view(-1, 4 * size)
        dc.mul_(step.saved[:, size : 2 * size])
        torch.mm(pre, layer.weight_hh, out=dh)
        if step.below is not None:
            step.below.addmm_(pre, layer.weight_ih)


class _GRU(Cell):
    """r multiplies h before the recurrent matrix."""

    blocks = 3
    vectors = 1
    saved_blocks = 3
    held_blocks = 2
    norm_blocks = 2

    def forward_step(self, saved: Tensor, old: Vectors, new: Vectors, layer: Layer, *, held: Tensor | None) -> None:
        (h,), (h_new,) = old, new
        size = h.shape[1]
        rz, n = saved[:, : 3 * size].tensor_split((2 * size,), dim=1)
        _add_recurrent(rz, h, layer, held)
        if layer.norm is not None:
            normalise_(saved, layer.norm)
        r, z = rz.sigmoid_().chunk(2, 1)
        _tanh_(n.addmm_(r * h, layer.candidate.t()))
        torch.lerp(n, h, z, out=h_new)

    def factors(self, saved: Tensor, old: Vectors, new: Vectors, pre: Tensor) -> None:  # noqa: ARG002 - an LSTM's are
        r, z, n = saved[:, : 3 * pre.shape[2]].view(-1, 3, pre.shape[2]).unbind(1)
        d_r, d_z, d_n = pre.unbind(1)
        _gru_factors(z, n, old[0], d_z, d_n)
        torch.addcmul(r, r, r, value=-1, out=d_r).mul_(old[0])

    def backward_step(self, step: BackwardStep, layer: Layer) -> None:
        (dh,) = step.adjoint
        size = dh.shape[1]
        r, z = step.saved[:, : 2 * size].chunk(2, 1)
        d_reset_h = torch.mm(step.pre[:, 2].mul_(dh), layer.candidate)
        step.gates[:, 1].mul_(dh)
        step.gates[:, 0].mul_(d_reset_h)
        if layer.norm is not None:
            normalise_backward(step.gates, step.saved, layer.norm, out=step.pre[:, :2])
        pre = step.pre.view(-1, 3 * size)
        dh.mul_(z).addcmul_(d_reset_h, r).addmm_(pre[:, : 2 * size], layer.gates)
        if step.below is not None:
            step.below.addmm_(pre, layer.weight_ih)


class _GRUResetAfter(Cell):
    """torch.nn.GRU's: r multiplies U_n h + b_hn."""

    blocks = 3
    vectors = 1
    saved_blocks = 4
    held_blocks = 3
    norm_blocks = 2

    def _layer(self, weights: LayerWeights) -> Layer:
        layer = super()._layer(weights)
        split = layer.gates.shape[0]
        bias = torch.cat([layer.bias[:split], weights.bias_ih[split:]])
        return layer._replace(bias=bias, bias_n=weights.bias_hh[split:])

    def hold(self, h: Tensor, layer: Layer, out: Tensor) -> None:
        assert layer.bias_n is not None
        torch.mm(h, layer.weight_hh.t(), out=out)[:, 2 * h.shape[1] :].add_(layer.bias_n)

    def forward_step(self, saved: Tensor, old: Vectors, new: Vectors, layer: Layer, *, held: Tensor | None) -> None:
        (h,), (h_new,) = old, new
        size = h.shape[1]
        rz, n, hidden_n = saved[:, : 4 * size].tensor_split((2 * size, 3 * size), dim=1)
        assert layer.bias_n is not None
        if held is None:
            _add_recurrent(rz, h, layer, None)
            torch.addmm(layer.bias_n, h, layer.candidate.t(), out=hidden_n)
        else:
            rz.add_(held[:, : 2 * size])
            hidden_n.copy_(held[:, 2 * size :])
        if layer.norm is not None:
            normalise_(saved, layer.norm)
        r, z = rz.sigmoid_().chunk(2, 1)
        _tanh_(n.addcmul_(r, hidden_n))
        torch.lerp(n, h, z, out=h_new)

    def factors(self, saved: Tensor, old: Vectors, new: Vectors, pre: Tensor) -> None:  # noqa: ARG002 - an LSTM's are
        r, z, n, hidden_n = saved[:, : 4 * pre.shape[2]].view(-1, 4, pre.shape[2]).unbind(1)
        d_r, d_z, d_n = pre.unbind(1)
        _gru_factors(z, n, old[0], d_z, d_n)
        torch.addcmul(r, r, r, value=-1, out=d_r).mul_(hidden_n).mul_(d_n)

    def backward_step(self, step: BackwardStep, layer: Layer) -> None:
        (dh,) = step.adjoint
        size = dh.shape[1]
        r, z = step.saved[:, : 2 * size].chunk(2, 1)
        step.gates.mul_(dh.unsqueeze(1))
        d_n = step.pre[:, 2].mul_(dh)
        if layer.norm is not None:
            normalise_backward(step.gates, step.saved, layer.norm, out=step.pre[:, :2])
        pre = step.pre.view(-1, 3 * size)
        dh.mul_(z).addmm_(pre[:, : 2 * size], layer.gates).addmm_(d_n * r, layer.candidate)
        if step.below is not None:
            step.below.addmm_(pre, layer.weight_ih)


CELLS: Final[dict[CellName, Cell]] = {"lstm": _LSTM(), "gru": _GRU(), "gru_reset_after": _GRUResetAfter()}


def _add_recurrent(gates: Tensor, h: Tensor, layer: Layer, held: Tensor | None) -> None:
    if held is None:
        gates.addmm_(h, layer.gates.t())
    else:
        gates.add_(held)


def _tanh_(x: Tensor) -> Tensor:
    """1 − 2 σ(−2x) in place: right to a rounding of 1, and on a CPU four times faster than torch's tanh."""
    return x.mul_(-2).sigmoid_().mul_(-2).add_(1)


def _gru_factors(z: Tensor, n: Tensor, h: Tensor, d_z: Tensor, d_n: Tensor) -> None:
    """∂h̃/∂(pre-activation) of z and n, with h̃ = n + z·(h − n): z(1 − z)(h − n) and (1 − z)(1 − n²)."""
    torch.addcmul(z, z, z, value=-1, out=d_z).mul_(h - n)
    torch.mul(n, n, out=d_n).neg_().add_(1)
    d_n.addcmul_(z, d_n, value=-1)
