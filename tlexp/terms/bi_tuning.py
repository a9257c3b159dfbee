"""Bi-tuning: examples of a class are drawn together, among themselves and to the classifier's row."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tlexp.errors import UsageError
from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import Frozen, StepContext, Term, full_precision, mean, world_size


class BiTuning(Term):
    """Two contrastive losses over queues of each class (Zhong et al. 2020).

    A key network, a moving average of the trained one and its projector, sees a second view of each image. `L_z`: the
    projected example against its own key and all queued keys; those of its class are positives. `L_y`: the same around
    the classifier's row of the class, [w; b] normalised and without gradient, against [features; 1] normalised. Each is
    the mean over the positives of -log softmax(similarity / T).

    Keys are queued once the loss is computed, empty slots take no part, the key network runs in eval
    mode and its buffers follow the same average. Memory: classes * queue * (projection + features + 1) numbers.

    Args:
        name: the option's name.
        weight: of both losses.
        queue: keys that are kept of each class.
        projection: width of the projections.
        momentum: of the moving average; with 0 the key network is the trained one.
        temperature: T.

    Raises:
        UsageError: for a value outside its range, or a head with hidden layers.
    """

    views = 2
    queue_z: Tensor
    queue_y: Tensor
    filled: Tensor

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        queue: int = 40,
        projection: int = 128,
        momentum: float = 0.999,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(name, weight)
        self.require_int("queue", queue)
        self.require_int("projection", projection)
        self.require(0 <= momentum < 1, "momentum", momentum, "must lie in [0, 1)")
        self.require(temperature > 0, "temperature", temperature, "must be above 0")
        self.size, self.projection, self.momentum, self.temperature = queue, projection, momentum, temperature

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Builds the projector, the key network and empty queues."""
        if not isinstance(model.heads["target"], nn.Linear):
            raise UsageError(f"terms=[{self.name}]: needs a linear head; use head_hidden=0 head_dropout=0")
        width, classes = model.backbone.num_features, model.classes["target"]
        self.projector = nn.Linear(width, self.projection)
        self.same_views = not start.augmented
        self.key_backbone, self.key_projector = Frozen(model.backbone), Frozen(self.projector)
        self.register_buffer("queue_z", torch.zeros(classes, self.size, self.projection))
        self.register_buffer("queue_y", torch.zeros(classes, self.size, width + 1))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.long))

    def check(self, optimizer: Optimizer) -> list[str]:
        """Notes that both views are the same without augmentation."""
        reason = "both of its views are the same, since training inputs are not augmented; images have augment="
        return [f"{self.name}: {reason}"] if self.same_views else []

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares the batch with the queues, then queues its keys."""
        output, labels = step.target, step.target.labels
        keys = self.key_backbone(output.inputs if output.second_view is None else output.second_view).float()
        z_keys = F.normalize(self.key_projector(keys).float(), dim=1)
        z = F.normalize(self.projector(output.features).float(), dim=1)
        head: Any = model.heads["target"]
        rows = F.normalize(torch.cat([head.weight, head.bias[:, None]], 1).detach().float(), dim=1)[labels]
        y = append_one(output.features.float())
        similarities = ((z * z_keys).sum(1), (rows * y).sum(1))
        with full_precision(z):
            queues = (z @ self.queue_z.flatten(0, 1).T, rows @ self.queue_y.flatten(0, 1).T)
        losses = [self._contrast(own, queued, labels) for own, queued in zip(similarities, queues, strict=True)]
        self._enqueue(z_keys, append_one(keys), labels)
        return mean(losses[0] + losses[1], output)

    def _contrast(self, own: Tensor, queued: Tensor, labels: Tensor) -> Tensor:
        """Returns losses (batch,) from similarities to the own key (batch,) and to all slots (batch, slots)."""
        classes = len(self.filled)
        slots = torch.arange(self.size, device=labels.device)
        filled = (slots < self.filled[:, None]).flatten()
        of_class = torch.arange(classes, device=labels.device).repeat_interleave(self.size)
        logits = torch.cat([own[:, None], queued.masked_fill(~filled, -torch.inf)], 1) / self.temperature
        same = torch.cat([torch.ones_like(own, dtype=torch.bool)[:, None], filled & (of_class == labels[:, None])], 1)
        log_p = logits.log_softmax(1)
        return -log_p.masked_fill(~same, 0.0).sum(1) / same.sum(1)

    @torch.no_grad()
    def _enqueue(self, z: Tensor, y: Tensor, labels: Tensor) -> None:
        """Puts the keys of all processes in front of their class's queue, in the same order on each process."""
        if world_size() > 1:
            gathered: list[tuple[Tensor, Tensor, Tensor]] = [()] * world_size()  # type: ignore[list-item]
            torch.distributed.all_gather_object(gathered, (z.cpu(), y.cpu(), labels.cpu()))
            z, y, labels = (torch.cat(parts).to(z.device) for parts in zip(*gathered, strict=True))
        # Copies, since the loss still needs the queues as they were for its gradient.
        queue_z, queue_y, filled = self.queue_z.clone(), self.queue_y.clone(), self.filled.clone()
        for label in set(labels.tolist()):
            mask = labels == label
            for queue, new in ((queue_z, z[mask]), (queue_y, y[mask])):
                queue[label] = torch.cat([new, queue[label]])[: self.size]
            filled[label] = (filled[label] + mask.sum()).clamp(max=self.size)
        self.queue_z, self.queue_y, self.filled = queue_z, queue_y, filled

    @torch.no_grad()
    def after_step(self, model: TransferModel) -> None:
        """Updates the key network and its buffers towards the trained ones."""
        for key, trained in ((self.key_backbone.module, model.backbone), (self.key_projector.module, self.projector)):
            current = trained.state_dict()
            for name, tensor in key.state_dict().items():
                if tensor.is_floating_point():
                    tensor.lerp_(current[name], 1 - self.momentum)
                else:
                    tensor.copy_(current[name])


def append_one(features: Tensor) -> Tensor:
    """Returns [features; 1] (batch, d + 1), normalised."""
    return F.normalize(F.pad(features, (0, 1), value=1.0), dim=1)
