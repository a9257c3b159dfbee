"""A step by hand: the objective, the weights of the classes, the clipping and the rates, each against its formula."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

from tests.helpers import compose, fit
from tlexp.data.batches import Batch
from tlexp.errors import UsageError
from tlexp.run_folder import read_history
from tlexp.runs.build import build

FEW = ("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=5")
RUN = ("init=random", "backbone.dropout=0", *FEW)


class Steps(pl.Callback):
    """Notes rates, gradients and images at each step."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.norms: list[dict[str, float]] = []
        self.labels: list[dict[str, int]] = []

    def on_train_batch_start(self, trainer: Any, task: Any, batch: dict[str, Batch], index: int) -> None:
        self.labels.append({role: len(part.labels) for role, part in batch.items()})
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        own = [p.grad for name, p in task.model.named_parameters() if name.startswith("heads.source.")]
        rest = [p.grad for name, p in task.model.named_parameters() if not name.startswith("heads.source.")]
        norm = torch.nn.utils.get_total_norm
        self.norms.append({"source head": float(norm(own)) if own else 0.0, "rest": float(norm(rest))})


def batches(components: Any) -> dict[str, Batch]:
    return next(iter(components.data.train_dataloader()))[0]


@pytest.mark.parametrize("form", ["sum", "convex"])
@pytest.mark.parametrize("head", ["one", "two"])
def test_a_step_is_the_formula(form, head):
    components = build(compose(*RUN, "alpha=3", f"head={head}", f"objective.form={form}"))
    components.task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = batches(components)
    model = components.task.model
    target, source = (cross_entropy(model(batch[r].inputs, r), batch[r].labels) for r in ("target", "source"))
    expected = (target + 3 * source) / (4 if form == "convex" else 1)
    assert components.task.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    halved = {role: part._replace(ddp_scale=0.5) for role, part in batch.items()}
    assert components.task.training_step(halved, 0).item() == pytest.approx(expected.item() / 2, rel=1e-6)


def test_label_smoothing_and_class_weights_are_in_the_loss():
    smooth = build(compose(*RUN, "objective.label_smoothing=0.2"))
    batch = batches(smooth)["target"]
    logits = torch.randn(len(batch.labels), 3)
    expected = cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert smooth.task.objective.criteria["target"](logits, batch.labels).mean().item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    uneven = ("data=digits_to_mnist", "data.test_fraction=0.4", "objective.class_weights=balanced", "alpha=1")
    components = build(compose(*RUN, *uneven))
    for role, domain in components.data.domains.items():
        labels = domain.labels("train")
        counts = torch.bincount(labels)
        assert components.task.objective.criteria[role].weights.tolist() == pytest.approx(
            (len(labels) / 3 / counts).tolist()
        )
    assert len(set(components.task.objective.criteria["source"].weights.tolist())) > 1, "or balancing has nothing to do"


@pytest.mark.parametrize("head", ["one", "two"])
def test_clipping_clips_each_heads_gradient_by_itself(head):
    free, clipped = Steps(), Steps()
    options = ("strategy=full_transfer", "alpha=5", f"head={head}", "epochs=1")
    fit(compose(*RUN, *options), free)
    fit(compose(*RUN, *options, "trainer.gradient_clip_val=0.01"), clipped)
    components = ["rest"] + (["source head"] if head == "two" else [])
    for name in components:
        assert free.norms[0][name] > 0.01
        assert [norms[name] for norms in clipped.norms] == pytest.approx([0.01] * len(clipped.norms), rel=1e-3)


def test_the_optimizer_really_runs_at_each_stages_rate():
    steps = Steps()
    fit(compose(*RUN, "lr=0.02", "schedule=constant", "epochs=1", "strategy.backbone_lr_mult=0.25"), steps)
    for rates in steps.rates:
        assert rates["head"] == rates["head/no_decay"] == 0.02
        assert {rates[stage] for stage in ("stem", "stage1", "stage2", "hidden")} == {0.005}


def test_the_rates_that_are_logged_are_those_of_the_epochs_last_step(run_job):
    """After it the cosine is at 0, which no step was ever taken with."""
    result = run_job(*RUN, "lr=0.02", "epochs=3", "schedule=cosine", "strategy.backbone_lr_mult=0.25", "terms=[dann]")
    history = read_history(result["folder"])
    for row in history:
        assert row["train/lr"] == row["train/lr/head"] > 0
        assert row["train/lr/stem"] == pytest.approx(0.25 * row["train/lr"])
        assert "train/lr/terms.dann" in row
    plain = run_job(*RUN, "lr=0.02", "epochs=1", "schedule=constant", "strategy=full_transfer")
    (row,) = read_history(plain["folder"])
    assert [name for name in row if name.startswith("train/lr")] == ["train/lr"]


@pytest.mark.parametrize("alpha", ["0", "0.5", "inf"])
def test_an_epoch_is_one_pass_over_the_target_unless_it_has_no_say(alpha):
    steps = Steps()
    components, _ = fit(compose(*RUN, f"alpha={alpha}", "epochs=2"), steps)
    counted = "source" if alpha == "inf" else "target"
    n = components.data.domains[counted].sizes()["train"]
    assert len(steps.labels) == 2 * components.data.steps == 2 * -(-n // 5)
    assert sum(step[counted] for step in steps.labels) == 2 * n
    if alpha == "0.5":
        assert {step["source"] for step in steps.labels} == {5}
    assert all(("target" in step) == (alpha != "inf") for step in steps.labels)


@pytest.mark.parametrize(("alpha", "role"), [("inf", "target"), ("0.5", "source")])
def test_the_role_whose_passes_are_counted_can_be_chosen(alpha, role):
    steps = Steps()
    components, _ = fit(compose(*RUN, f"alpha={alpha}", "epochs=1", f"epochs_of={role}"), steps)
    n = components.data.domains[role].sizes()["train"]
    assert len(steps.labels) == components.data.steps == -(-n // 5)
    with pytest.raises(UsageError, match="epochs_of=source: alpha=0 does not train on the source"):
        compose(*RUN, "alpha=0", "epochs_of=source")


def test_two_validation_sets_keep_their_names_and_values():
    """Roles name the metrics, whether there are two loaders or one."""
    for alpha, roles in (("0", {"target"}), ("0.5", {"target", "source"})):
        _, trainer = fit(compose(*RUN, f"alpha={alpha}", "epochs=1"))
        validated = {name for name in trainer.callback_metrics if name.startswith("val/")}
        assert {name.split("/")[1] for name in validated} == roles
        assert not any("dataloader" in name for name in trainer.callback_metrics)


def test_shared_statistics_are_a_mixture_and_own_ones_are_not():
    """Here `norm=batch` lets the source move the target's statistics, `per_domain` does not."""
    moved = {}
    for norm in ("batch", "per_domain"):
        components = build(compose(*RUN, "backbone.norm=batch", "alpha=1", f"norm={norm}"))
        model = components.task.model.train()
        before = model.backbone.stem[1].running_mean.clone()
        model(batches(components)["source"].inputs, "source")
        moved[norm] = not torch.equal(before, model.backbone.stem[1].running_mean)
    assert moved == {"batch": True, "per_domain": False}


def trained_weights(*overrides: str) -> dict[str, torch.Tensor]:
    """Returns the weights after an epoch of plain gradient descent without chance, on 50 examples and as many."""
    plain = (
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "optimizer.weight_decay=0",
        "schedule=constant",
    )
    plain += ("strategy=full_transfer", "init=random", "epochs=1", "backbone.dropout=0", "data.shots=6", "lr=0.5")
    components, _ = fit(compose(*plain, *overrides))
    return {name: value.clone() for name, value in components.task.model.state_dict().items()}


@pytest.mark.parametrize("more", [(), ("alpha=0.5", "head=one", "terms=[mcc]")])
def test_a_step_over_the_batches_that_are_left_is_their_mean(more):
    """Eight batches are asked for and two come: the step is that of one batch with the examples of both."""
    if more:  # terms and the source depend on the batch, so the mean is that of two asked for
        expected = trained_weights("batch_size=25", "trainer.accumulate_grad_batches=2", *more)
    else:
        expected = trained_weights("batch_size=50")
    few = trained_weights("batch_size=25", "trainer.accumulate_grad_batches=8", *more)
    start = trained_weights("batch_size=25", "trainer.accumulate_grad_batches=2", "lr=1e-12", *more)
    for name, value in expected.items():
        torch.testing.assert_close(few[name] - start[name], value - start[name], rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())
