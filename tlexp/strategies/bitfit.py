"""BitFit: the biases and the heads."""

from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.strategies.base import Strategy

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData


class BitFit(Strategy):
    """Trains every parameter whose name ends in `bias`, and the heads (Ben Zaken et al. 2022).

    It is a way of training, not a probe: dropout is on. In networks with BatchNorm the biases are mostly those of its
    layers, whose statistics the recipe leaves as they are.

    Args:
        name: the option's name.

    Raises:
        UsageError: in `prepare`, for a backbone without biases.
    """

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Parts each stage into its weights, which stay, and its biases, which set its mode."""
        stages: list[Stage] = []
        self._moving = {stage.name for stage in model.head_stages}
        for stage in model.backbone_stages:
            biases = tuple(name for name in stage.parameters if name.endswith("bias"))
            weights = tuple(name for name in stage.parameters if name not in biases)
            if not biases:
                stages.append(stage)
                continue
            stages.append(replace(stage, parameters=weights, buffers=(), modules=()))
            stages.append(Stage(f"{stage.name}/bias", biases, stage.buffers, stage.modules))
            self._moving.add(stages[-1].name)
        if len(stages) == len(model.backbone_stages):
            raise UsageError(f"strategy={self.name}: the backbone has no parameter whose name ends in bias")
        model.regroup(stages)

    def trainable(self, epoch: int) -> Set[str]:
        """The biases and the heads, in every epoch."""
        return self._moving
