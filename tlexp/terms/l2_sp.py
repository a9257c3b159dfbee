"""L2-SP: weight decay towards where the weights came from."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.terms.base import Step, Term, moving

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData


class L2SP(Term):
    """`strength / 2 * |w - w0|^2` over the backbone, `head_strength / 2 * |w|^2` over new heads (Li et al. 2018).

    It stands in for weight decay, which its option therefore sets to 0. The authors' code penalises the weights of
    convolutions and linear layers alone; `parameters=all` adds biases and normalisation layers.

    Args:
        name: the option's name.
        weight: of both parts.
        strength: of the pull to the start.
        head_strength: of the pull of new heads to zero.
        parameters: `weights` or `all`.

    Raises:
        UsageError: for a value outside its range; where nothing it pulls at moves; in `check`, where plain gradient
            descent at this rate would overshoot the start further with each step.
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        strength: float = 0.1,
        head_strength: float = 0.01,
        parameters: str = "weights",
    ) -> None:
        super().__init__(name, weight)
        self.require(strength >= 0, "strength", strength, "must be >= 0")
        self.require(head_strength >= 0, "head_strength", head_strength, "must be >= 0")
        self.require(parameters in ("weights", "all"), "parameters", parameters, "choose one of weights, all")
        self.strength, self.head_strength, self.parameters_kind = strength, head_strength, parameters

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Remembers the start of everything that it pulls at."""
        tensors = dict(model.named_parameters())

        def pulled(stages: list[str]) -> list[str]:
            return [n for n in moving(model, stages) if self.parameters_kind == "all" or tensors[n].ndim > 1]

        self.pulled = pulled([name for stage in model.backbone_stages for name in stage.parameters])
        self.heads = pulled([name for stage in model.head_stages for name in stage.parameters])
        if not self.pulled:
            rule = "only biases and 1-d parameters of the backbone move; use terms.l2_sp.parameters=all"
            raise UsageError(f"terms=[{self.name}]: {rule}")
        for index, name in enumerate(self.pulled):
            self.register_buffer(f"start_{index}", tensors[name].detach().clone())

    def check(self, optimizer: Optimizer) -> list[str]:
        """Sees that descent is stable, lr * strength < 2 * (1 + momentum), and that weight decay is not there twice."""
        pull = self.weight * self.strength
        for group in optimizer.param_groups:
            limit = 2 * (1 + group.get("momentum", 0.0))
            if isinstance(optimizer, SGD) and group["lr"] * pull >= limit:
                rule = f"times the rate {group['lr']:g} of {group['name']} must stay below {limit:g}; lower it or lr="
                raise UsageError(f"terms.{self.name}.strength={self.strength:g}: {rule}")
        decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
        return [f"{self.name} pulls to the start while weight_decay={decay:g} pulls to zero"] if decay else []

    def forward(self, model: TransferModel, step: Step) -> Tensor:
        """Sums squares in single precision, also where the rest of the step has less."""
        parameters = dict(model.named_parameters())
        device = next(iter(parameters.values())).device
        with torch.autocast(device.type, enabled=False):
            value = torch.zeros((), device=device)
            if self.strength:
                for index, name in enumerate(self.pulled):
                    value = value + (parameters[name].float() - self.get_buffer(f"start_{index}")).pow(2).sum()
                value = value * (self.strength / 2)
            if self.head_strength:
                value = value + sum(parameters[name].float().pow(2).sum() for name in self.heads) * (
                    self.head_strength / 2
                )
        return value
