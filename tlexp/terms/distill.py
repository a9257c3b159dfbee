"""Distillation from the weights a run started from: learning without forgetting."""

import torch.nn.functional as F
from torch import Tensor

from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import Frozen, StepContext, Term, at_least_float32, copy_pretrained_head, mean


class Distill(Term):
    """Preserves predictions or features of the target's inputs from before adaptation (Li and Hoiem 2016).

    `logits`: KL(teacher || student) of softmax(. / T), times T^2 so that the weight does not depend on T; the student
    is the current backbone with the pretrained output layer, which trains too, at
    the backbone's rate. `features`: the mean squared
    difference of the features. The teacher is a frozen copy of the start in eval mode and sees the same view in the
    same step.

    Args:
        name: the option's name.
        weight: of the term.
        kind: `logits` or `features`.
        temperature: T.
        kd_t2: whether the divergence is multiplied by T^2.

    Raises:
        UsageError: for a value outside its range, or `logits` where the start has no output layer.
    """

    pretrained = ("head",)

    def __init__(
        self, name: str, weight: float = 1.0, kind: str = "logits", temperature: float = 2.0, kd_t2: bool = True
    ) -> None:
        super().__init__(name, weight)
        self.require(kind in ("logits", "features"), "kind", kind, "choose one of logits, features")
        self.require(temperature > 0, "temperature", temperature, "must be above 0")
        self.kind, self.temperature, self.kd_t2 = kind, temperature, kd_t2

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Copies the starting weights as the teacher."""
        if self.kind == "logits":
            self.head = copy_pretrained_head(self, start)
            self.teacher_head = Frozen(self.head)
        self.teacher = Frozen(model.backbone)

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares student and teacher on the target's batch."""
        before, now = self.teacher(step.target.inputs), step.target.features
        if self.kind == "features":
            return mean(at_least_float32(now - before).pow(2).mean(1), step.target)
        value = mean(divergence(self.head(now), self.teacher_head(before), self.temperature), step.target)
        return value * self.temperature**2 if self.kd_t2 else value


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns KL(teacher || student) (batch,) of logits (batch, classes) at a temperature (Hinton et al. 2015)."""
    student_log_p, teacher_log_p = (
        (at_least_float32(logits) / temperature).log_softmax(1) for logits in (student, teacher)
    )
    return F.kl_div(student_log_p, teacher_log_p, reduction="none", log_target=True).sum(1)
