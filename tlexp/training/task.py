"""The one LightningModule: what a training step, a validation and a checkpoint are."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tlexp.data.batches import Batch
from tlexp.errors import TrainingDivergedError
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import Objective
from tlexp.rng import fork_rng, seed_globally
from tlexp.strategies.base import Strategy
from tlexp.terms.base import DomainOutput, StepContext, Term
from tlexp.training.average import WeightAverage
from tlexp.training.metrics import DomainMetrics, TermMetric, TrainingMetrics
from tlexp.training.optim import Optimization, parameter_groups, split_by_decay, trained_stages

ROLES = ("target", "source", "unlabelled")  # in the order in which their batches pass through the model


@dataclass
class WorkDone:
    """What training has cost on this process, whatever the machine.

    Attributes:
        seen: examples of all roles that steps used.
        passed: those of them that passed through the backbone; those of teachers and second views not counted.
        seen_before: those that steps used before a resumed run was interrupted.
    """

    seen: int = 0
    passed: int = 0
    seen_before: int = 0


class TransferTask(pl.LightningModule):
    """Trains a model under a strategy on the joint objective and its terms.

    Args:
        model: backbone and heads.
        strategy: what trains and how fast; already prepared.
        objective: the joint objective.
        terms: further losses by name; already prepared.
        optimization: optimizer, schedule, learning rate and epochs.
        num_classes: number of classes of each tested role; all but `shifted` are validated too.
        seed: of the named streams for dropout.
        metadata: plain values that let a checkpoint be understood without its configuration.
        joint_forward: whether all roles pass through the backbone in one batch.
        average: of the weights, which is evaluated and kept in their place; None for the weights themselves.
    """

    def __init__(
        self,
        model: TransferModel,
        strategy: Strategy,
        objective: Objective,
        terms: Mapping[str, Term],
        optimization: Optimization,
        num_classes: Mapping[str, int],
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
        joint_forward: bool = False,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__()
        self.average = average
        self.model, self.strategy, self.objective = model, strategy, objective
        self.terms = nn.ModuleDict(dict(terms))
        self.optimization, self.lr = optimization, optimization.lr
        self.trains_on_features = self.keeps_validation = False
        self.validated: dict[str, float] | None = None  # metrics of held-out labels that this training has none of
        self.seed, self.metadata, self.joint_forward = seed, metadata or {}, joint_forward
        self.tested_roles = list(num_classes)
        evaluated = {f"{split}/{role}": n for role, n in num_classes.items() for split in ("val", "test")}
        evaluated.pop("val/shifted", None)
        self.metrics = nn.ModuleDict(
            {
                **{f"train/{role}": TrainingMetrics() for role in objective.roles},
                **{f"train/terms/{name}": TermMetric() for name in terms},
                **{key: DomainMetrics(n) for key, n in evaluated.items()},
            }
        )
        self.work = WorkDone()
        self.logits: dict[str, list[Tensor]] = {}  # by split and role, of this process's batches, in half precision
        self._steps_followed = 0
        self._rates: dict[str, float] = {}
        # Whatever trains in some epoch has a gradient now, so that several processes agree to average it.
        model.set_trainable(trained_stages(strategy, optimization.epochs))

    @property
    def last_phase(self) -> int:
        """The epoch from which on the same stages train to the end; 0 where they do so from the start."""
        trained = [self.strategy.trainable(epoch) for epoch in self.optimization.epochs]
        return max((epoch + 1 for epoch, stages in enumerate(trained) if stages != trained[-1]), default=0)

    @property
    def has_phases(self) -> bool:
        """Whether different stages train in different epochs."""
        return self.last_phase > 0

    def use_lr(self, lr: float) -> None:
        """Replaces the head's learning rate, before the optimizer exists."""
        self.lr = lr

    # Training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Sets what trains first, before it is reported, and lets strategy and terms measure what they need."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.first_epoch == 0:  # a resumed run has it in its checkpoint
            self.strategy.on_fit_start(self.model, self.objective, data)
            for term in self.all_terms():
                term.on_fit_start(self.model, data)

    def on_train_start(self) -> None:
        """Starts the average, on the device of the weights."""
        self._steps_followed = self.trainer.global_step  # of a resumed run, before its first step
        if self.average is not None:
            self.average.start(self.model, trained_stages(self.strategy, self.optimization.epochs))

    def on_train_epoch_start(self) -> None:
        """Sets what trains and the randomness of this epoch from its number alone, so that a resumed run agrees."""
        self.model.set_trainable(self.strategy.trainable(self.current_epoch))
        self.train()
        seed_globally(self.seed, "dropout/target", self.current_epoch, self.global_rank)

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Returns the objective with its terms, shape ()."""
        outputs = self._forward_roles(batch, batch_idx)
        loss: Tensor = self.objective({role: self._loss(role, outputs[role]) for role in self.objective.roles})
        for term in self.all_terms():
            loss = loss + self._weighted_term(term, outputs, batch_idx)
        return loss if (scale := self._accumulation_scale(batch_idx)) == 1.0 else loss * scale

    def _accumulation_scale(self, batch_idx: int) -> float:
        """Returns what makes a step over fewer batches than `trainer.accumulate_grad_batches` their mean.

        Lightning divides each loss by that number, also where an epoch ends before as many have come.
        """
        trainer = self._trainer
        if trainer is None or trainer.accumulate_grad_batches == 1:
            return 1.0
        wanted = trainer.accumulate_grad_batches
        left = int(trainer.num_training_batches) - batch_idx // wanted * wanted
        return wanted / min(wanted, left)

    def _forward_roles(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, DomainOutput]:
        """Passes each role's batch through the model, in the order of `ROLES`."""
        roles = [role for role in ROLES if role in batch]
        n = sum(len(batch[role].labels) for role in roles)
        self.work.seen += n
        self.work.passed += 0 if self.trains_on_features else n
        mixed = {role: self._mixed(role, batch[role], batch_idx) for role in roles}
        joint = self.model.features_together([mixed[role][0] for role in roles]) if self.joint_forward else None
        outputs: dict[str, DomainOutput] = {}
        for index, role in enumerate(roles):
            with self._dropout_stream(role, batch_idx):
                features = joint[index] if joint else self.model.features(mixed[role][0], role)
                logits = self.model.classify(features, role)
            view = batch[role].second_view
            second_view = None if view is None else self.model.as_input(view)
            outputs[role] = DomainOutput(*mixed[role], features, logits, batch[role].ddp_scale, second_view)
        return outputs

    def _dropout_stream(self, role: str, batch_idx: int) -> AbstractContextManager[None]:
        """Gives all roles but the target a dropout stream of their own: the target's dropout is that of alpha = 0."""
        if role == "target":
            return nullcontext()
        return fork_rng(self.seed, f"dropout/{role}", self.current_epoch, batch_idx, self.global_rank)

    def _mixed(self, role: str, batch: Batch, batch_idx: int) -> tuple[Any, Tensor]:
        inputs, labels = self.model.as_input(batch.inputs), batch.labels
        if not self.objective.mixes(role):
            return inputs, labels
        with fork_rng(self.seed, "mix", role, self.current_epoch, batch_idx, self.global_rank):
            return self.objective.mix(role, inputs, labels)

    def _loss(self, role: str, output: DomainOutput) -> Tensor:
        loss = self.objective.loss(role, output.logits, output.labels)
        self.metrics[f"train/{role}"].update(loss, output.logits, output.labels)  # type: ignore[operator]
        return loss if output.ddp_scale == 1.0 else loss * output.ddp_scale

    def all_terms(self) -> list[Term]:
        """Returns the terms."""
        return [term for term in self.terms.values() if isinstance(term, Term)]

    def _weighted_term(self, term: Term, outputs: dict[str, DomainOutput], batch_idx: int) -> Tensor:
        target = outputs.get("target")
        if not term.needs_labels:
            target = outputs.get("unlabelled", target)
        step = StepContext(target, outputs.get("source"), self._progress())
        with fork_rng(self.seed, "terms", term.name, self.current_epoch, batch_idx, self.global_rank):
            value: Tensor = term(self.model, step)
        self.metrics[f"train/terms/{term.name}"].update(value.detach())  # type: ignore[operator]
        return term.weight * value

    def _progress(self) -> float:
        """Returns the fraction of all optimizer steps that have been taken; 0 outside of training."""
        trainer = self._trainer
        return 0.0 if trainer is None else min(1.0, trainer.global_step / int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lets terms and the average follow what the optimizer has done."""
        if self.trainer.global_step == self._steps_followed:  # gradients are still being accumulated
            return
        self._steps_followed = self.trainer.global_step
        for term in self.all_terms():
            term.after_step(self.model)
        if self.average is not None:
            self.average.update(self.model)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes the rate that each stage is trained with; afterwards the schedule has the next step's."""
        self._rates = {group["name"].removesuffix("/no_decay"): group["lr"] for group in optimizer.param_groups}

    def on_train_epoch_end(self) -> None:
        """Logs `train/<role>/<metric>`, `train/terms/<term>` and the rates of the epoch's last step.

        `train/lr` is the head's; where stages differ, `train/lr/<stage>` is that of each.
        """
        head = self.model.head_stages[0].name
        rates = {"train/lr": self._rates.get(head, 0.0)}
        if len(set(self._rates.values())) > 1:
            rates |= {f"train/lr/{name}": rate for name, rate in self._rates.items()}
        self._log("train", {name: torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()})

    def build_optimizer(self) -> Optimizer:
        """Returns an optimizer with every parameter that ever trains in exactly one named group."""
        groups = parameter_groups(self.model, self.strategy, self.lr, self.optimization.epochs)
        for term in self.all_terms():
            trained = [(name, p) for name, p in term.named_parameters() if p.requires_grad]
            old = [p for name, p in trained if name.split(".")[0] in term.pretrained]
            new = [p for name, p in trained if name.split(".")[0] not in term.pretrained]
            groups += split_by_decay(new, f"terms.{term.name}", self.lr)
            groups += split_by_decay(old, f"terms.{term.name}/pretrained", self.lr * self._top_scale())
        return self.optimization.make_optimizer(groups, lr=self.lr)

    def _top_scale(self) -> float:
        """Returns the factor of the learning rate at the highest stage of the backbone that trains; 1 without one."""
        trained = trained_stages(self.strategy, self.optimization.epochs)
        stages = [stage for stage in self.model.backbone_stages if stage.name in trained]
        return self.strategy.lr_scale(stages[-1]) if stages else 1.0

    def configure_optimizers(self) -> Any:
        """Adds the schedule, which counts optimizer steps whatever a batch, an epoch or accumulation is."""
        optimizer = self.build_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        starts = [min(total, epoch * steps) for epoch in self.strategy.schedule_starts]
        scheduler = LambdaLR(optimizer, partial(_schedule_factor, self.optimization.schedule, [*starts, total]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips a separate source head and the terms' parameters separately, so as not to shrink the target's step."""
        if not gradient_clip_val:
            return
        named = list(self.model.named_parameters())
        source_head = [p for name, p in named if name.startswith("heads.source.")]
        rest = [p for name, p in named if not name.startswith("heads.source.")]
        for parameters in (source_head, rest, list(self.terms.parameters())):
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    # Evaluation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Puts the average of the weights in their place."""
        self.share_statistics()
        if self.average is not None:
            self.average.swap(self.model)

    def share_statistics(self) -> None:
        """Lets all processes have the same running statistics, of the weights and of their average."""
        self._share_statistics()
        if self.average is not None:
            self.average.swap(self.model)
            self._share_statistics()
            self.average.swap(self.model)

    def _share_statistics(self) -> None:
        """Averages trained running statistics over processes before they evaluate; what is frozen is not touched."""
        if self.trainer.world_size > 1:
            for buffer in self.model.trained_statistics():
                torch.distributed.all_reduce(buffer)
                buffer /= self.trainer.world_size

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the metrics of its role."""
        logits = self._evaluate("val", batch, dataloader_idx)
        if self.keeps_validation:
            self._keep("val", dataloader_idx, logits)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the metrics of its role."""
        self._keep("test", dataloader_idx, self._evaluate("test", batch, dataloader_idx))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Keeps the logits of a validation batch."""
        logits: Tensor = self.model(batch.inputs, self.tested_roles[dataloader_idx])
        self._keep("val", dataloader_idx, logits)
        return logits

    def _keep(self, split: str, role_index: int, logits: Tensor) -> None:
        self.logits.setdefault(f"{split}/{self.tested_roles[role_index]}", []).append(_halved(logits))

    def _evaluate(self, split: str, batch: Batch, role_index: int) -> Tensor:
        role = self.tested_roles[role_index]
        logits: Tensor = self.model(batch.inputs, role)
        self.metrics[f"{split}/{role}"].update(logits, batch.labels)  # type: ignore[operator]
        return logits

    def on_validation_epoch_end(self) -> None:
        """Logs `val/<role>/<metric>` and puts the weights back."""
        self._log("val")
        if self.average is not None:
            self.average.swap(self.model)

    def on_test_epoch_end(self) -> None:
        """Logs `test/<role>/<metric>` and keeps the target's confusion matrix (classes, classes), rows true classes."""
        target: Any = self.metrics["test/target"]
        self.confusion = target.confusion.compute().cpu()
        self._log("test")

    def _log(self, split: str, others: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Logs and resets all metrics of a split; training, validation and test take the same route."""
        values: dict[str, Tensor] = {}
        for key, metric in self.metrics.items():
            if key.startswith(f"{split}/"):
                result = metric.compute()  # type: ignore[operator]
                named = {f"{key}/{name}": value for name, value in result.items()} if isinstance(result, dict) else {}
                values |= named or {key: result}
                metric.reset()  # type: ignore[operator]
        if split != "test":
            self._check_finite(values)
        self.log_dict({**values, **others}, sync_dist=True)

    def _check_finite(self, values: Mapping[str, Tensor]) -> None:
        """Ends a run at the first epoch that has no finite loss: what would be kept of it is a checkpoint from before.

        Raises:
            TrainingDivergedError: naming the first metric that is NaN or infinite.
        """
        if not values or torch.stack([value.double() for value in values.values()]).isfinite().all():
            return
        unusable = {name: float(value) for name, value in values.items() if not value.isfinite()}
        name = min(unusable, key=lambda name: not name.endswith(("loss", "nll")))
        reason = f"training diverged (NaN or inf): {name} is {unusable[name]} in epoch {self.current_epoch}"
        raise TrainingDivergedError(f"{reason}; lower lr={self.lr:g}")

    # Checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the file readable by itself: plain values only, so that `weights_only=True` loads it."""
        logged = self.trainer.callback_metrics.items()
        kept = "as trained" if self.average is None else self.average.write(checkpoint, "model.")
        checkpoint["tlexp"] = {
            **self.metadata,
            "weights": kept,
            "lr": self.lr,
            "metrics": self.validated or {name: float(value) for name, value in logged if name.startswith("val/")},
            "stopped": bool(self.trainer.should_stop),
            "work": [self.work.seen, self.work.passed],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the work and the average of the run that is resumed."""
        if "work" in (metadata := checkpoint.get("tlexp", {})):
            self.work.seen, self.work.passed = metadata["work"]
            self.work.seen_before = self.work.seen
        if self.average is not None:
            self.average.read(checkpoint)


def _halved(logits: Tensor) -> Tensor:
    """Returns logits in half precision on the CPU, less the largest of each row, where half precision has no room."""
    shifted = logits.float() - logits.float().amax(dim=1, keepdim=True)
    return shifted.clamp(min=torch.finfo(torch.float16).min).half().cpu()


def _schedule_factor(schedule: Any, limits: list[int], step: int) -> float:
    """Returns a schedule's factor at a step; the schedule begins anew at each limit but the last."""
    index = max(0, min(bisect_right(limits, step), len(limits) - 1) - 1)
    factor: float = schedule(step - limits[index], limits[index + 1] - limits[index])
    return factor
