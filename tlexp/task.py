"""The one LightningModule: what a step, a validation and a checkpoint are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tlexp.data.batches import Batch
from tlexp.metrics import Evaluation
from tlexp.model import TransferModel
from tlexp.objective import Mix, joint_objective
from tlexp.strategies.base import Strategy
from tlexp.streams import derive, forked


class TransferTask(pl.LightningModule):
    """Trains a model under a strategy on L(target) + alpha * L(source).

    Args:
        model: backbone and heads.
        strategy: what moves and how fast; already prepared.
        criteria: for each evaluated role, what maps logits (batch, classes) and labels (batch,) to losses (batch,).
        classes: for each evaluated role, its number of classes.
        optimizer: maps parameter groups and `lr` to an optimizer.
        schedule: maps (step, total steps) to the factor of every group's rate.
        lr: rate of the head.
        epochs: the epochs that will be trained, over which the strategy says what moves.
        alpha: weight of the source's loss.
        form: `sum` or `convex`.
        seed: of the named streams for dropout.
        card: plain values that let a checkpoint be understood without its configuration.
        mix: what mixes training pictures and labels of a role with each other, if anything.
    """

    def __init__(
        self,
        model: TransferModel,
        strategy: Strategy,
        criteria: dict[str, nn.Module],
        classes: dict[str, int],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[int, int], float],
        lr: float,
        epochs: range,
        alpha: float = 0.0,
        form: str = "sum",
        seed: int = 0,
        card: dict[str, Any] | None = None,
        mix: Mix | None = None,
    ) -> None:
        super().__init__()
        self.mix, self.classes = mix, classes
        self.model, self.strategy = model, strategy
        self.criteria = nn.ModuleDict(criteria)
        self.make_optimizer, self.schedule, self.lr, self.epochs = optimizer, schedule, lr, epochs
        self.alpha, self.form, self.seed = alpha, form, seed
        self.card = card or {}
        self.roles = list(classes)
        self.evaluations = nn.ModuleDict(
            {f"{split}_{role}": Evaluation(count) for split in ("val", "test") for role, count in classes.items()}
        )
        self._train_sums: dict[str, Tensor] = {}
        # Whatever moves in some epoch has a gradient now, so that several processes agree to average it.
        model.set_trainable(set().union(*(strategy.trainable(epoch) for epoch in epochs)))

    @property
    def phased(self) -> bool:
        """Whether other stages move in other epochs."""
        return len({frozenset(self.strategy.trainable(epoch)) for epoch in self.epochs}) > 1

    # Training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Lets move what the first epoch moves, before anybody reports it."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))

    def on_train_epoch_start(self) -> None:
        """Derives what moves and the chance of this epoch from its number alone, so that a resumed run agrees."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))
        self.train()
        torch.manual_seed(derive(self.seed, "dropout/target", self.current_epoch, self.global_rank))

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Returns the objective, shape (); a role whose loss has no weight is not in the batch."""
        losses = {}
        if "target" in batch:
            losses["target"] = self._loss("target", batch["target"], batch_idx)
        if "source" in batch:
            # The source draws its dropout from a stream of its own: the target's chance is that of alpha = 0.
            with forked(self.seed, "dropout/source", self.current_epoch, batch_idx, self.global_rank):
                losses["source"] = self._loss("source", batch["source"], batch_idx)
        return joint_objective(losses, self.alpha, self.form)

    def _loss(self, role: str, batch: Batch, batch_idx: int) -> Tensor:
        inputs, labels = batch.inputs, batch.labels
        if self.mix is not None:
            assert isinstance(inputs, Tensor)
            with forked(self.seed, "mix", role, self.current_epoch, batch_idx, self.global_rank):
                inputs, labels = self.mix(self.model.normalised(inputs), labels, self.classes[role])
        logits = self.model(inputs, role)
        loss: Tensor = self.criteria[role](logits, labels).mean()
        self._count(role, loss, logits, labels if labels.ndim == 1 else labels.argmax(1))
        return loss if batch.share == 1.0 else loss * batch.share

    @torch.no_grad()
    def _count(self, role: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        n = len(labels)
        correct = (logits.argmax(1) == labels).sum()
        row = torch.stack([loss.float() * n, correct.float(), torch.full_like(loss, n, dtype=torch.float32)])
        self._train_sums[role] = self._train_sums[role] + row if role in self._train_sums else row

    def train_metrics(self) -> dict[str, float]:
        """Returns loss and accuracy of the training batches since the last call; all processes must call it."""
        sums, self._train_sums = self._train_sums, {}
        values: dict[str, float] = {}
        for role, row in sums.items():
            total = row.double()
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(total)
            loss, correct, n = total.tolist()
            values |= {f"train/{role}/loss": loss / n, f"train/{role}/accuracy": correct / n}
        return values

    def build_optimizer(self) -> Optimizer:
        """Puts every parameter that ever moves into exactly one named group."""
        return self.make_optimizer(parameter_groups(self.model, self.strategy, self.lr, self.epochs), lr=self.lr)

    def configure_optimizers(self) -> Any:
        """Adds the schedule, which counts optimizer steps whatever a batch, an epoch or accumulation is."""
        optimizer = self.build_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, partial(_factor, self.schedule, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips a separate source head by itself: its gradient must not shrink the target's."""
        if not gradient_clip_val:
            return
        own = [p for name, p in self.model.named_parameters() if name.startswith("heads.source.")]
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("heads.source.")]
        for parameters in (own, rest):
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    # Evaluation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Gives all processes the same running statistics before they evaluate; what is frozen is not touched."""
        if self.trainer.world_size > 1:
            for buffer in self.model.moving_statistics():
                torch.distributed.all_reduce(buffer)
                buffer /= self.trainer.world_size

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the metrics of its role."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the metrics of its role."""
        self._evaluate("test", batch, dataloader_idx)

    def _evaluate(self, split: str, batch: Batch, role_index: int) -> None:
        role = self.roles[role_index]
        self.evaluations[f"{split}_{role}"].update(self.model(batch.inputs, role), batch.labels)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Logs `val/<role>/<metric>`."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Logs `test/<role>/<metric>` and keeps the target's confusion matrix (classes, classes), rows the truth."""
        self._log("test")
        self.confusion = self.evaluations["test_target"].confusion.compute().cpu()  # type: ignore[union-attr,operator]

    def _log(self, split: str) -> None:
        for role in self.roles:
            evaluation = self.evaluations[f"{split}_{role}"]
            values = evaluation.compute()  # type: ignore[operator]
            self.log_dict({f"{split}/{role}/{name}": value for name, value in values.items()}, sync_dist=True)
            if split == "val":
                evaluation.reset()  # type: ignore[operator]

    # Checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the file readable by itself: plain values only, so that `weights_only=True` loads it."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["tlexp"] = {**self.card, "metrics": metrics, "stopped": bool(self.trainer.should_stop)}


def _factor(schedule: Callable[[int, int], float], total: int, step: int) -> float:
    return schedule(step, total)


def parameter_groups(model: TransferModel, strategy: Strategy, lr: float, epochs: range) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: by stage, biases and other 1-d parameters apart and without weight decay.

    Every parameter of a stage that moves in any of `epochs` is in exactly one group from the first step on; phases
    switch gradients, never groups. The stage's factor is written into the group's own `lr`.
    """
    moving: set[str] = set().union(*(strategy.trainable(epoch) for epoch in epochs))
    parameters = dict(model.named_parameters())
    groups = []
    for stage in model.stages:
        if stage.name not in moving:
            continue
        own = [parameters[name] for name in stage.parameters]
        rate = lr * strategy.lr_scale(stage)
        decayed = [p for p in own if p.ndim > 1]
        plain = [p for p in own if p.ndim <= 1]
        if decayed:
            groups.append({"params": decayed, "name": stage.name, "lr": rate})
        if plain:
            groups.append({"params": plain, "name": f"{stage.name}/no_decay", "lr": rate, "weight_decay": 0.0})
    return groups
