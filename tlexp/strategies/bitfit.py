"""BitFit: the biases and the heads."""

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn

from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


class BitFit(Strategy):
    """Trains every parameter whose name ends in `bias`, and the heads (Ben Zaken et al. 2022).

    It is a way of training, not a probe: dropout is on. In networks with BatchNorm the biases are mostly those of its
    layers, whose statistics the recipe leaves as they are.

    Args:
        name: the option's name.

    Raises:
        UsageError: in `prepare`, for a backbone without biases.
    """

    def prepare(self, model: TransferModel) -> None:
        """Splits each stage into its weights, which stay frozen, and its biases, which set its mode."""
        stages = model.backbone_stages
        biases = {name for stage in stages for name in stage.parameters if name.endswith("bias")}
        if not biases:
            raise UsageError(f"strategy={self.name}: the backbone has no parameter whose name ends in bias")
        model.regroup([part for stage in stages for part in stage.split(biases, "bias")])
        self._trained = {stage.name for stage in model.stages if biases & set(stage.parameters)}
        self._trained |= {stage.name for stage in model.head_stages}
        if torch.__version__ < "2.14":  # compared as versions, not as text
            for module in model.backbone.modules():
                if isinstance(module, nn.GroupNorm):
                    module.register_forward_pre_hook(_as_contiguous)

    def trainable(self, epoch: int) -> Set[str]:
        """The biases and the heads, in every epoch."""
        return self._trained


def _as_contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Lays out the input of GroupNorm channels first.

    Before torch 2.14, where its bias alone needs a gradient and the input is laid out channels last, its backward pass
    on a CPU ends the process.
    """
    return tuple(tensor.contiguous() for tensor in inputs)
