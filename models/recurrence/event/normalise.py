"""Layer normalisation of gate blocks in place, and its backward; the formula is `normalise` of `reference.py`.

Letters: n rows, H hidden, N normalised blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skipreel.models.recurrence.reference import NORM_EPSILON, LayerWeights


class Norm(NamedTuple):
    """gain and bias (N, H); start: the column of `saved` from which on a row keeps what its backward needs.

    That is (a − mean) / (σ + ε), N·H wide; 1 / (σ + ε), N wide; and 1 / σ, N wide, 0 where σ is.
    """

    gain: Tensor
    bias: Tensor
    start: int

    @staticmethod
    def of(weights: LayerWeights, *, start: int) -> "Norm | None":
        if weights.norm_weight is None or weights.norm_bias is None:
            return None
        shape = (-1, weights.weight_hh.shape[1])
        return Norm(weights.norm_weight.reshape(shape), weights.norm_bias.reshape(shape), start)

    @property
    def width(self) -> int:
        return self.gain.numel() + 2 * self.gain.shape[0]

    def kept(self, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of saved (n, start + width): (n, N, H), (n, N, 1), (n, N, 1)."""
        after = self.start + self.gain.numel()
        unit = saved[:, self.start : after].view(-1, *self.gain.shape)
        scale, inverse_sigma = saved[:, after:, None].chunk(2, 1)
        return unit, scale, inverse_sigma


def normalise_(saved: Tensor, norm: Norm) -> None:
    """The first N·H columns of `saved`, pre-activations, become gain · (a − mean) / (σ + ε) + bias."""
    unit, scale, inverse_sigma = norm.kept(saved)
    a = saved[:, : norm.gain.numel()].view(unit.shape)
    sigma, mean = torch.std_mean(a, -1, correction=0, keepdim=True)
    torch.reciprocal(sigma + NORM_EPSILON, out=scale)
    torch.reciprocal(sigma, out=inverse_sigma).masked_fill_(sigma == 0, 0)
    torch.sub(a, mean, out=unit).mul_(scale)
    torch.addcmul(norm.bias, unit, norm.gain, out=a)


def normalise_backward(adjoint: Tensor, saved: Tensor, norm: Norm, *, out: Tensor) -> None:
    """From the adjoint (n, N, H) of the normalised blocks to that of the pre-activations, into `out` of its shape."""
    unit, scale, inverse_sigma = norm.kept(saved)
    scaled = adjoint * norm.gain
    through_sigma = (scaled * unit).mean(-1, keepdim=True).mul_(inverse_sigma)
    torch.sub(scaled, scaled.mean(-1, keepdim=True), out=out).mul_(scale).addcmul_(unit, through_sigma, value=-1)
