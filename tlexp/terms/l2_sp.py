"""L2-SP: weight decay towards where the weights came from."""

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import HEAD, SOURCE_HEAD, TransferModel
from tlexp.terms.base import StepContext, Term, full_precision, trained_parameters


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
        UsageError: for a value outside its range; where none of the penalised parameters train; in `check`, where plain
            gradient descent at this rate would overshoot the start further with each step.
    """

    roles = ()

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

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Remembers the start of everything that came with the weights; what did not is as new as the heads."""
        tensors = dict(model.named_parameters())

        def pulled(stages: list[Stage]) -> list[str]:
            names = trained_parameters(model, [name for stage in stages for name in stage.parameters])
            return [name for name in names if self.parameters_kind == "all" or tensors[name].ndim > 1]

        backbone = pulled(model.backbone_stages)
        if not backbone:
            remedy = "only biases and 1-d parameters of the backbone train; use terms.l2_sp.parameters=all"
            raise UsageError(f"terms=[{self.name}]: {remedy}")
        self.pulled = [name for name in backbone if name not in start.new_parameters]
        self.heads = [*(name for name in backbone if name in start.new_parameters), *pulled(model.head_stages)]
        if not self.pulled:
            raise UsageError(
                f"terms=[{self.name}]: pulls to where weights came from, but init= brings none; take it out"
            )
        for index, name in enumerate(self.pulled):
            self.register_buffer(f"start_{index}", tensors[name].detach().clone())

    def check(self, optimizer: Optimizer) -> list[str]:
        """Sees that descent on the penalty alone is stable, and that weight decay is not there twice.

        The limit of lr * strength is 2 (1 + m) for momentum m, and 2 (1 + m) / (1 + 2 m) for Nesterov's; the data's
        curvature adds to the penalty's, so a product below it is necessary and not sufficient.
        """
        for group in optimizer.param_groups:
            stage = group["name"].removesuffix("/no_decay")
            key = "head_strength" if stage in (HEAD, SOURCE_HEAD) else "strength"
            pull = 0.0 if stage.startswith("terms.") else self.weight * getattr(self, key)
            momentum = group.get("momentum", 0.0)
            limit = 2 * (1 + momentum) / (1 + 2 * momentum * bool(group.get("nesterov")))
            if isinstance(optimizer, SGD) and group["lr"] * pull >= limit:
                remedy = f"times the rate {group['lr']:g} of {stage} must stay below {limit:g}; lower it or lr="
                raise UsageError(f"terms.{self.name}.{key}={getattr(self, key):g}: {remedy}")
        decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
        return [f"{self.name} pulls to the start while weight_decay={decay:g} pulls to zero"] if decay else []

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Sums squares in single precision, also where the rest of the step has less."""
        parameters = dict(model.named_parameters())
        device = next(iter(parameters.values())).device
        value = torch.zeros((), device=device)
        with full_precision(value):
            if self.strength:
                for index, name in enumerate(self.pulled):
                    value = value + (parameters[name].float() - self.get_buffer(f"start_{index}")).pow(2).sum()
                value = value * (self.strength / 2)
            if self.head_strength:
                value = value + sum(parameters[name].float().pow(2).sum() for name in self.heads) * (
                    self.head_strength / 2
                )
        return value
