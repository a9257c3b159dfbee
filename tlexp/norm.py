"""Whose statistics BatchNorm layers use when two domains pass through one backbone."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SourceStatistics(nn.Module):
    """The source's own running statistics, equal to the backbone's at first; weights and biases stay shared.

    Each domain is normalised by its own batch while training, so a single set of running statistics would describe
    neither of them, and least the target where the source's pass comes last. Chang et al. (2019) keep weights and
    biases apart as well.

    Args:
        backbone: the module whose BatchNorm layers are served; it keeps the target's statistics.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.layers = [name for name, module in backbone.named_modules() if has_statistics(module)]
        for index, name in enumerate(self.layers):
            layer = backbone.get_submodule(name)
            for kind in STATISTICS:
                self.register_buffer(f"{kind}_{index}", layer.get_buffer(kind).detach().clone())

    def of(self, layers: Collection[str]) -> list[Tensor]:
        """Returns the statistics of the named layers of the backbone."""
        places = [index for index, name in enumerate(self.layers) if name in layers]
        return [self.get_buffer(f"{kind}_{index}") for index in places for kind in STATISTICS]

    @contextmanager
    def active(self, backbone: nn.Module) -> Iterator[None]:
        """Puts the source's statistics into the backbone inside the block, to be used and to be updated."""
        self._exchange(backbone)
        try:
            yield
        finally:
            self._exchange(backbone)

    def _exchange(self, backbone: nn.Module) -> None:
        for index, name in enumerate(self.layers):
            theirs, ours = backbone.get_submodule(name)._buffers, self._buffers
            for kind in STATISTICS:
                theirs[kind], ours[f"{kind}_{index}"] = ours[f"{kind}_{index}"], theirs[kind]


def source_statistics(backbone: nn.Module, policy: str) -> SourceStatistics | None:
    """Returns the source's statistics under `policy`; None where both domains have the same or there are none."""
    if policy != "per_domain" or not any(has_statistics(module) for module in backbone.modules()):
        return None
    return SourceStatistics(backbone)


def has_statistics(module: nn.Module) -> bool:
    """Returns whether a module is a BatchNorm layer that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None
