"""How closely two ways to the same number must agree, by dtype: one table for all tests, never loosened in CI."""

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    rtol: float
    atol: float


TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-9, atol=1e-9),
    torch.float32: Tolerance(rtol=1e-5, atol=1e-6),
    torch.bfloat16: Tolerance(rtol=2e-2, atol=2e-2),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """As torch.testing.assert_close, within the table's tolerance for the dtype; shapes and dtypes must be equal."""
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance.rtol, atol=tolerance.atol)
