"""The one LightningModule: what a step, a validation and a checkpoint are."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from tlexp.terms.base import Passed, Step, Term


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
        terms: what else pulls, by name; already prepared.
        together: whether all roles pass through the backbone in one batch.
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
        terms: dict[str, Term] | None = None,
        together: bool = False,
    ) -> None:
        super().__init__()
        self.mix, self.classes, self.together = mix, classes, together
        self.terms = nn.ModuleDict(terms or {})
        self.model, self.strategy = model, strategy
        self.criteria = nn.ModuleDict(criteria)
        self.make_optimizer, self.schedule, self.lr, self.epochs = optimizer, schedule, lr, epochs
        self.alpha, self.form, self.seed = alpha, form, seed
        self.card = card or {}
        self.roles = list(classes)
        self.loss_roles = [*(["target"] if alpha < math.inf else []), *(["source"] if alpha > 0 else [])]
        self.evaluations = nn.ModuleDict(
            {
                f"{split}_{role}": Evaluation(count)
                for split in ("val", "test")
                for role, count in classes.items()
                if (split, role) != ("val", "shifted")
            }
        )
        self._train_sums: dict[str, Tensor] = {}
        self._term_sums: dict[str, Tensor] = {}
        self._followed = 0
        # Whatever moves in some epoch has a gradient now, so that several processes agree to average it.
        model.set_trainable(set().union(*(strategy.trainable(epoch) for epoch in epochs)))

    @property
    def phased(self) -> bool:
        """Whether other stages move in other epochs."""
        return len({frozenset(self.strategy.trainable(epoch)) for epoch in self.epochs}) > 1

    # Training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Lets move what the first epoch moves, before anybody reports it, and measures what must be known by then."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.first_epoch == 0:  # one that goes on has it in its checkpoint
            self.strategy.start(self, data)
            for term in self.all_terms():
                term.start(self.model, data)

    def on_train_epoch_start(self) -> None:
        """Derives what moves and the chance of this epoch from its number alone, so that a resumed run agrees."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))
        self.train()
        torch.manual_seed(derive(self.seed, "dropout/target", self.current_epoch, self.global_rank))

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Returns the objective, shape (); a role whose loss has no weight is in the batch only where a term asks."""
        passed = self._passed(batch, batch_idx)
        losses = {role: self._loss(role, passed[role]) for role in self.loss_roles}
        objective = joint_objective(losses, self.alpha, self.form)
        for term in self.all_terms():
            objective = objective + self._pull(term, passed, batch_idx)
        return objective

    def _passed(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Passed]:
        """Sends each role's batch through the model, in the order target, source, unlabelled target."""
        roles = [role for role in ("target", "source", "unlabelled") if role in batch]
        mixed = {role: self._mixed(role, batch[role], batch_idx) for role in roles}
        together = self.model.features_together([mixed[role][0] for role in roles]) if self.together else None
        passed: dict[str, Passed] = {}
        for place, role in enumerate(roles):
            with self._chance_of(role, batch_idx):
                features = together[place] if together else self.model.features(mixed[role][0], role)
                logits = self.model.classify(features, role)
            second = None if (other := batch[role].second) is None else self.model.prepared(other)
            passed[role] = Passed(*mixed[role], features, logits, batch[role].share, second)
        return passed

    def _chance_of(self, role: str, batch_idx: int) -> AbstractContextManager[None]:
        """Lets all but the target draw their dropout from streams of their own: its chance is that of alpha = 0."""
        if role == "target":
            return nullcontext()
        return forked(self.seed, f"dropout/{role}", self.current_epoch, batch_idx, self.global_rank)

    def _mixed(self, role: str, batch: Batch, batch_idx: int) -> tuple[Any, Tensor]:
        inputs, labels = self.model.prepared(batch.inputs), batch.labels
        if self.mix is None or role not in self.loss_roles:
            return inputs, labels
        assert isinstance(inputs, Tensor)
        with forked(self.seed, "mix", role, self.current_epoch, batch_idx, self.global_rank):
            return self.mix(inputs, labels, self.classes[role])

    def _loss(self, role: str, passed: Passed) -> Tensor:
        loss: Tensor = self.criteria[role](passed.logits, passed.labels).mean()
        hard = passed.labels if passed.labels.ndim == 1 else passed.labels.argmax(1)
        self._count(role, loss, passed.logits, hard)
        return loss if passed.share == 1.0 else loss * passed.share

    def all_terms(self) -> list[Term]:
        """Returns what else pulls."""
        return [term for term in self.terms.values() if isinstance(term, Term)]

    def _pull(self, term: Term, passed: dict[str, Passed], batch_idx: int) -> Tensor:
        target = passed.get("target")
        if not term.needs_labels:
            target = passed.get("unlabelled", target)
        step = Step(target, passed.get("source"), self._progress())
        with forked(self.seed, "terms", term.name, self.current_epoch, batch_idx, self.global_rank):
            value: Tensor = term(self.model, step)
        row = torch.stack([value.detach().float(), torch.ones((), device=value.device)])
        self._term_sums[term.name] = self._term_sums[term.name] + row if term.name in self._term_sums else row
        return term.weight * value

    def _progress(self) -> float:
        """Returns the share of all optimizer steps that have been taken; 0 outside of training."""
        trainer = self._trainer
        return 0.0 if trainer is None else min(1.0, trainer.global_step / int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lets terms follow what the optimizer has done."""
        if self.trainer.global_step == self._followed:  # gradients are still being accumulated
            return
        self._followed = self.trainer.global_step
        for term in self.all_terms():
            term.after_step(self.model)

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
        rows, self._term_sums = self._term_sums, {}
        for name, row in rows.items():
            total = row.double()
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(total)
            values[f"train/terms/{name}"] = float(total[0] / total[1])
        return values

    def build_optimizer(self) -> Optimizer:
        """Puts every parameter that ever moves into exactly one named group."""
        groups = parameter_groups(self.model, self.strategy, self.lr, self.epochs)
        for term in self.all_terms():
            own = [p for p in term.parameters() if p.requires_grad]
            groups += _by_decay(own, f"terms.{term.name}", self.lr)
        return self.make_optimizer(groups, lr=self.lr)

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
        """Clips a separate source head and what terms train by themselves: the target's gradient must not shrink."""
        if not gradient_clip_val:
            return
        own = [p for name, p in self.model.named_parameters() if name.startswith("heads.source.")]
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("heads.source.")]
        for parameters in (own, rest, list(self.terms.parameters())):
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
            if (split, role) == ("val", "shifted"):
                continue
            evaluation = self.evaluations[f"{split}_{role}"]
            values = evaluation.compute()  # type: ignore[operator]
            self.log_dict({f"{split}/{role}/{name}": value for name, value in values.items()}, sync_dist=True)
            if split == "val":
                evaluation.reset()  # type: ignore[operator]

    # Checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the file readable by itself: plain values only, so that `weights_only=True` loads it."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["tlexp"] = {
            **self.card,
            "lr": self.lr,
            "metrics": metrics,
            "stopped": bool(self.trainer.should_stop),
        }


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
        groups += _by_decay(own, stage.name, lr * strategy.lr_scale(stage))
    return groups


def _by_decay(parameters: list[nn.Parameter], name: str, rate: float) -> list[dict[str, Any]]:
    """Returns the groups of some parameters: those with weight decay, and those without."""
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "name": name, "lr": rate}] if decayed else []
    return groups + ([{"params": plain, "name": f"{name}/no_decay", "lr": rate, "weight_decay": 0.0}] if plain else [])
