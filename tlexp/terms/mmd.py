"""Maximum mean discrepancy between source and target features."""

import torch
from torch import Tensor

from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, at_least_float32


class MMD(Term):
    """The squared distance of a source and a target batch's mean embeddings (Gretton et al. 2012; Long et al. 2015).

    The kernel is a sum of Gaussians exp(-|x - y|^2 / (2 s_u^2)) with s_u^2 = 2^u times the mean squared distance of all
    pairs, which carries no gradient. The unbiased value differs by a constant, 2 / (n - 1), from that of the Transfer
    Learning Library, whose gradient is the same.

    Args:
        name: the option's name.
        weight: the authors use 1.
        kernels: the exponents u.
        unbiased: leaves out the distances of examples to themselves; the value can then be below 0.

    Raises:
        UsageError: without a kernel.
    """

    roles = ("target", "source")
    needs_labels = False
    min_batch_size = 2

    def __init__(
        self, name: str, weight: float = 1.0, kernels: tuple[int, ...] = (-3, -2, -1, 0, 1), unbiased: bool = True
    ) -> None:
        super().__init__(name, weight)
        ok = len(kernels) > 0 and all(isinstance(u, int | float) for u in kernels)
        self.require(ok, "kernels", kernels, "needs one exponent at least, numbers all of them")
        self.kernels, self.unbiased = tuple(kernels), unbiased

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares each process's own parts of the batches."""
        source, target = at_least_float32(step.source.features), at_least_float32(step.target.features)
        both = torch.cat([source, target])
        distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").pow(2)
        scale = distances.detach().mean().clamp(min=torch.finfo(torch.float32).tiny)
        kernel = sum((torch.exp(-distances / (2 * 2.0**u * scale)) for u in self.kernels), torch.zeros_like(distances))
        n, m = len(source), len(target)
        within = (_within(kernel[:n, :n], self.unbiased), _within(kernel[n:, n:], self.unbiased))
        return within[0] + within[1] - 2 * kernel[:n, n:].sum() / (n * m)


def _within(kernel: Tensor, unbiased: bool) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1)) if unbiased else kernel.mean()
