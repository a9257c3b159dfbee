"""An exponential moving average of the weights, which is validated, kept and tested in their place."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tlexp.models.transfer_model import TransferModel

WARMUP = 10  # the decay rises as (1 + t) / (10 + t), as in TensorFlow: else short runs would keep their first weights


class WeightAverage:
    """After each optimizer step t: average = d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)).

    Averaged are the parameters and the floating-point buffers of the stages that ever train (Polyak and Juditsky 1992
    for the idea). What is frozen stays the same to the bit, and counters among the buffers are those of training.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._values: dict[str, Tensor] = {}
        self._aside: dict[str, Tensor] = {}  # the weights, while the average is in their place

    def start(self, model: TransferModel, stages: Iterable[str]) -> None:
        """Starts from the weights as they are, or goes on with the values of a checkpoint."""
        wanted = set(stages)
        trained = [stage for stage in model.stages if stage.name in wanted]
        names = {name for stage in trained for name in (*stage.parameters, *stage.buffers)}
        tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point() and (name in names or name.startswith("source_statistics."))
        }
        self._values = {
            name: self._values.get(name, tensor).detach().to(tensor.device, _whole(tensor.dtype), copy=True)
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def update(self, model: TransferModel) -> None:
        """Takes in the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (WARMUP + self.steps))
        weights = [tensor.to(_whole(tensor.dtype)) for tensor in self._of(model).values()]
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self._values.values()), weights, self.steps)

    @torch.no_grad()
    def swap(self, model: TransferModel) -> None:
        """Puts the average in the place of the weights; a second call puts the weights back, the same to the bit."""
        if self._aside:
            for name, tensor in self._of(model).items():
                if tensor.dtype == self._values[name].dtype:  # running statistics may have been averaged over processes
                    self._values[name].copy_(tensor)
                tensor.copy_(self._aside[name])
            self._aside = {}
            return
        self._aside = {name: tensor.clone() for name, tensor in self._of(model).items()}
        for name, tensor in self._of(model).items():
            tensor.copy_(self._values[name])

    def _of(self, model: TransferModel) -> dict[str, Tensor]:
        tensors = model.state_dict()
        return {name: tensors[name] for name in self._values}

    def write(self, checkpoint: dict[str, Any], prefix: str) -> str:
        """Puts the average into a checkpoint: as its weights, or beside those that training goes on with.

        Args:
            checkpoint: what is saved; changed.
            prefix: of the model's names in it.

        Returns:
            Which weights it holds.
        """
        if "optimizer_states" in checkpoint:
            checkpoint["average"] = {"steps": self.steps, "values": self._values}
            return "as trained, to resume from"
        state = checkpoint["state_dict"]
        state.update({prefix + name: v.to(state[prefix + name].dtype) for name, v in self._values.items()})
        return f"moving average of {self.steps} steps, ema={self.decay:g}"

    def read(self, checkpoint: dict[str, Any]) -> None:
        """Takes the average from a checkpoint that training resumes from."""
        self.steps, self._values = checkpoint["average"]["steps"], checkpoint["average"]["values"]


def _whole(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision of an average: at least single, in which small steps are not lost."""
    return torch.promote_types(dtype, torch.float32)
