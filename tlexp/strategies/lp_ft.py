"""Linear probing, then fine-tuning."""

from collections.abc import Set

import numpy as np
import torch
from torch import Tensor

from tlexp.data.datamodule import TransferDataModule
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import Objective
from tlexp.strategies.closed_probe import CS, check_linear, solve_head
from tlexp.strategies.finetune import Finetune


class ProbeThenFinetune(Finetune):
    """Starts from a linear probe, then trains everything (Kumar et al. 2022).

    A randomly initialised head distorts pretrained features in its first steps; a trained one does not. As in the
    paper the probe is solved: each head is a logistic regression on features, its penalty selected by validation. With
    `probe_epochs` the heads are trained alone for so many epochs instead, and the schedule of the learning rate begins
    anew with what follows. With 0 it is fine-tuning.

    Args:
        name: the option's name.
        probe_epochs: epochs that train the heads alone; None solves them.
        backbone_lr_mult: the backbone's rate over the head's in the second phase, above 0.
        freeze_until: name of the last stage that stays frozen; None for none.

    Raises:
        UsageError: for a value outside its range; in `prepare` for a head that cannot be solved; in `plan` where
            nothing but the probe would be trained.
    """

    c: Tensor

    def __init__(
        self,
        name: str,
        probe_epochs: int | None = None,
        backbone_lr_mult: float = 1.0,
        freeze_until: str | None = None,
    ) -> None:
        super().__init__(name, backbone_lr_mult, freeze_until)
        if probe_epochs is not None and probe_epochs < 0:
            raise UsageError(f"strategy.probe_epochs={probe_epochs}: must be a number of epochs, 0, or null")
        self.probe_epochs = probe_epochs
        if probe_epochs is None:
            self.register_buffer("c", torch.zeros(()))

    def prepare(self, model: TransferModel) -> None:
        """Resolves the frozen prefix and the heads into stage names."""
        super().prepare(model)
        self._heads = {stage.name for stage in model.head_stages}
        if self.probe_epochs is None:
            check_linear(model, self.name, "head_hidden=0 head_dropout=0, or strategy.probe_epochs=")

    def plan(self, epochs: int) -> list[str]:
        """Refuses a probe that takes all epochs."""
        if self.probe_epochs and self.probe_epochs >= epochs:
            reason = f"epochs={epochs} would be a linear probe alone"
            remedy = "use fewer, strategy.probe_epochs=null to solve the probe, or strategy=linear_probe"
            raise UsageError(f"strategy.probe_epochs={self.probe_epochs}: {reason}; {remedy}")
        return []

    @property
    def schedule_starts(self) -> tuple[int, ...]:
        """The second phase has a schedule of its own."""
        return (0, self.probe_epochs) if self.probe_epochs else (0,)

    def on_fit_start(self, model: TransferModel, objective: Objective, data: TransferDataModule) -> None:
        """Solves the probe, unless it is trained."""
        if self.probe_epochs is None:
            for head in model.heads:
                if head not in objective.roles and len(model.heads) > 1:
                    continue  # the source's, which nothing trains
                c = solve_head(model, head, objective, data, np.logspace(*CS))
                if head == "target":
                    self.c.fill_(c)

    def selected(self) -> dict[str, float]:
        """Returns the selected inverse strength of the target's probe."""
        return {"c": float(self.c)} if self.probe_epochs is None else {}

    def trainable(self, epoch: int) -> Set[str]:
        """The heads, and from `probe_epochs` on the rest."""
        return self._heads if epoch < (self.probe_epochs or 0) else self._trained
