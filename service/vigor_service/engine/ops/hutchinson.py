"""Hutchinson's estimate of ``‖GᵀA‖²`` by random sketch vectors, for uses in which only the ranking of norms matters.

For a vector z of independent random signs, ``E ‖M z‖² = ‖M‖²`` (M. F. Hutchinson 1989, A stochastic estimator of the
trace of the influence matrix for Laplacian smoothing splines, Communications in Statistics 18(3)). With M = GᵀA, P
vectors cost ``2 T P (I + O)`` operations, where the gradient costs ``2 T I O`` and two Gram matrices ``2 T² (I + O)``.

The mean over P vectors has the variance ``(2 / P) (‖MᵀM‖² - Σ_i (MᵀM)²_ii)``, below ``(2 / P) ‖M‖⁴ / r`` with the
effective rank ``r = ‖M‖⁴ / ‖MᵀM‖²``. Each matrix has its own vectors, so that the errors of a model's matrices are
independent: the relative error of their sum is much smaller than the relative error of each. ``‖Mᵀz‖²`` costs the same;
on real text its variance was larger for every kind of matrix (docs/decisions/0010-approximations.md).

Shapes: P sketch vectors, T tokens of a sequence, N of all, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import Tensor

from vigor_service.engine.ops.gram import gram_blocks, inner_product_, matmul_float32, weighted_gram_blocks
from vigor_service.engine.ops.typed_torch import vector_norm


class SketchVectors:
    """The sketch vectors of every matrix of a model.

    They depend only on the parameter's name, so that the same request has the same estimate in any batch. The errors of
    a group's completions, whose gradients are alike, then have much in common. Vectors are made at their first use;
    threads that make them at the same time make the same vectors.

    Raises:
        ValueError: ``num_vectors`` is not above 0.
    """

    def __init__(self, parameters: Mapping[str, Tensor], num_vectors: int) -> None:
        if num_vectors <= 0:
            raise ValueError(f"num_vectors={num_vectors} must be above 0")
        self.num_vectors = num_vectors
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._signs: dict[str, Tensor] = {}

    def of(self, parameter: Tensor, weight_OI: Tensor, times: int = 1) -> Tensor | None:
        """Return signs (times P, I) for the weight; None if it is not measured or its gradient costs no more."""
        num_outputs, num_inputs = weight_OI.shape
        num_vectors = self.num_vectors * times
        name = self._names.get(id(parameter))
        if name is None or num_vectors * (num_inputs + num_outputs) >= num_inputs * num_outputs:
            return None
        if name not in self._signs:
            self._signs[name] = random_signs(name, num_vectors, num_inputs).to(weight_OI)
        return self._signs[name]


def random_signs(name: str, num_vectors: int, num_features: int) -> Tensor:
    """Return signs (P, I) that depend on the name alone; a smaller P gives the first vectors of a larger one."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randint(2, (num_vectors, num_features), generator=generator) * 2 - 1


def estimated_share(x_TI: Tensor, gradient_TO: Tensor, signs_PI: Tensor) -> Tensor:
    """Return ``‖GᵀA‖²`` estimated by the mean of ``‖Gᵀ(A z)‖²`` over the vectors, a float64 scalar.

    It is exact if T is not above P, because the two Gram matrices then cost no more.
    """
    if len(x_TI) <= len(signs_PI):
        return inner_product_(gram_blocks(gradient_TO), weighted_gram_blocks(x_TI))
    sketched_PT = matmul_float32(signs_PI, x_TI.T)
    largest = sketched_PT.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)  # A z may be too large for float16
    products_PO = matmul_float32((sketched_PT / largest).to(gradient_TO.dtype), gradient_TO)
    return (vector_norm(products_PO).double() * largest).square() / len(signs_PI)
