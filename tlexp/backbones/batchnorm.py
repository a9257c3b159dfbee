"""BatchNorm policies: whose statistics the layers use when two domains pass through one backbone."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tlexp.errors import UsageError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")


class SourceStatistics(nn.Module):
    """The source's own running statistics, initially the backbone's; optionally its own weights and biases too.

    In training each domain is normalised by its own batch, so a single set of running statistics would describe
    neither, least of all the target, whose pass comes first. Chang et al. (2019) separate weights and biases as well.

    Args:
        backbone: the module with the BatchNorm layers; it keeps the target's statistics.
        affine: whether weights and biases are separate as well.
    """

    def __init__(self, backbone: nn.Module, affine: bool = False) -> None:
        super().__init__()
        self.layers = [name for name, module in backbone.named_modules() if has_statistics(module)]
        for index, name in enumerate(self.layers):
            layer = backbone.get_submodule(name)
            for kind in STATISTICS:
                self.register_buffer(f"{kind}_{index}", layer.get_buffer(kind).detach().clone())
            affine_parameters = nn.Module()
            for kind in AFFINE:
                value = getattr(layer, kind)
                if affine and value is not None:
                    affine_parameters.register_parameter(kind, nn.Parameter(value.detach().clone()))
            self.add_module(str(index), affine_parameters)

    def affine_of(self, layers: Collection[str]) -> list[str]:
        """Returns the names, within this module, of the weights and biases it has for the named layers."""
        indices = {str(index) for index, name in enumerate(self.layers) if name in layers}
        return [name for name, _ in self.named_parameters() if name.split(".")[0] in indices]

    def of(self, layers: Collection[str]) -> list[Tensor]:
        """Returns the statistics of the named layers of the backbone."""
        indices = [index for index, name in enumerate(self.layers) if name in layers]
        return [self.get_buffer(f"{kind}_{index}") for index in indices for kind in STATISTICS]

    @contextmanager
    def active(self, backbone: nn.Module) -> Iterator[None]:
        """Swaps the source's statistics into the backbone inside the block, where they are used and updated."""
        self._swap(backbone)
        try:
            yield
        finally:
            self._swap(backbone)

    def _swap(self, backbone: nn.Module) -> None:
        for index, name in enumerate(self.layers):
            theirs, ours = backbone.get_submodule(name)._buffers, self._buffers
            for kind in STATISTICS:
                theirs[kind], ours[f"{kind}_{index}"] = ours[f"{kind}_{index}"], theirs[kind]
            target, source = backbone.get_submodule(name)._parameters, self.get_submodule(str(index))._parameters
            for kind in source:
                target[kind], source[kind] = source[kind], target[kind]


def source_statistics(backbone: nn.Module, policy: str) -> SourceStatistics | None:
    """Returns what the source has of its own under `policy`; None where both domains share everything."""
    separate = policy in ("per_domain", "per_domain_affine")
    if not separate or not any(has_statistics(module) for module in backbone.modules()):
        return None
    return SourceStatistics(backbone, affine=policy == "per_domain_affine")


class StochasticNorm(_BatchNorm):
    """BatchNorm that normalises each channel by the batch's or by the running statistics, at random (Kou et al. 2020).

    For each channel and forward pass s ~ Bernoulli(p): y = weight * ((1 - s) z0 + s z1) + bias, where z0 is normalised
    by the running statistics as they were before this batch and z1 by the batch's own, which update the running ones as
    usual. In eval mode it is BatchNorm.
    """

    p: float = 0.5

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Accepts whatever the replaced layer accepted."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Maps (batch, channels, ...) to the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        before = self.running_mean.clone(), self.running_var.clone()
        y = super().forward(input)
        if self.training and self.p < 1:
            of_before = F.batch_norm(input, *before, self.weight, self.bias, False, 0.0, self.eps)
            of_batch = torch.rand(input.shape[1], device=input.device) < self.p
            y = torch.where(of_batch.view(1, -1, *[1] * (input.ndim - 2)), y, of_before)
        for name in ("drop", "act"):  # which timm puts into the same layer
            y = getattr(self, name, nn.Identity())(y)
        return y


def make_stochastic(backbone: nn.Module, p: float) -> None:
    """Converts the BatchNorm layers of a backbone into StochasticNorm in place, with their tensors.

    Raises:
        UsageError: where there is none, or one whose forward pass is its own.
    """
    layers = [module for module in backbone.modules() if has_statistics(module)]
    if not layers:
        raise UsageError("norm=stochastic: the backbone has no BatchNorm layer; use another norm= or backbone=")
    for layer in layers:
        if type(layer).forward is not _BatchNorm.forward and not hasattr(layer, "act"):
            raise UsageError(f"norm=stochastic: cannot replace {type(layer).__name__}; use another backbone=")
        layer.__class__ = StochasticNorm
        layer.p = p  # type: ignore[assignment]


def has_statistics(module: nn.Module) -> bool:
    """Returns whether a module is a BatchNorm layer that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None
