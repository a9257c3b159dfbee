"""Strategies that differ from stage to stage and from epoch to epoch, against those they become at their ends."""

import shutil

import pytest
import pytorch_lightning as pl
import timm
import torch
from timm.optim import param_groups_layer_decay
from transformers import BertConfig

from tests.helpers import BACKBONES, FILES, best_weights, compose, differing, fit, fit_components, state
from tlexp.backbones.timm import TimmBackbone
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.reporting.run_report import epochs_in_words
from tlexp.run_folder import read_history
from tlexp.runs.build import build
from tlexp.strategies.layer_decay import LayerDecay
from tlexp.training.metrics import DomainMetrics

SHORT = ("epochs=3", "lr=0.003")


@pytest.mark.parametrize("alpha", ["0", "0.5"])
@pytest.mark.parametrize(
    ("strategy", "options", "other"),
    [
        ("layer_decay", ("strategy.decay=1",), "full_transfer"),
        ("layer_decay", ("strategy.decay=0",), "shared_representation"),
        ("gradual_unfreezing", ("strategy.epochs_per_stage=0", "strategy.decay=1"), "full_transfer"),
        ("gradual_unfreezing", ("strategy.epochs_per_stage=100",), "shared_representation"),
        ("lp_ft", ("strategy.probe_epochs=0",), "finetune"),
        ("surgical", ("strategy.stage=last",), None),
    ],
)
def test_at_its_ends_a_strategy_is_another_to_the_bit(run_job, strategy, options, other, alpha):
    run = ("init=random", "head=one", f"alpha={alpha}", *SHORT)
    ours = run_job(f"strategy={strategy}", *options, *run)
    if other is None:
        other, options = "finetune", ("strategy.freeze_until=stage2", "strategy.backbone_lr_mult=1")
        theirs = run_job(f"strategy={other}", *options, *run)
    else:
        theirs = run_job(f"strategy={other}", *run)
    assert not differing(best_weights(ours["folder"]), best_weights(theirs["folder"]))
    assert ours["test/target/nll"] == theirs["test/target/nll"]


def test_rates_fall_from_stage_to_stage_and_are_what_a_step_is_made_of():
    """After one step of plain SGD every stage has moved by its own rate times its gradient."""
    plain = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0")
    run = ("strategy=layer_decay", "strategy.decay=0.5", "lr=0.1", "schedule=constant", "init=random")
    components = build(compose(*run, *plain))
    optimizer = components.task.build_optimizer()
    rates = {group["name"].removesuffix("/no_decay"): group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"head": 0.1, "hidden": 0.05, "stage2": 0.025, "stage1": 0.0125, "stem": 0.00625})
    before = state(components.task.model)
    batch = next(iter(components.data.train_dataloader()))[0]
    model = components.task.model
    torch.nn.functional.cross_entropy(model(batch["target"].inputs), batch["target"].labels).backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    for stage in model.stages:
        for name in stage.parameters:
            moved, gradient = parameters[name].detach() - before[name], parameters[name].grad
            assert torch.allclose(moved, -rates[stage.name] * gradient, atol=1e-7), name


def test_stages_unfreeze_from_the_top_one_after_the_other():
    components = build(
        compose("strategy=gradual_unfreezing", "strategy.epochs_per_stage=2", "init=random", "epochs=12")
    )
    sets = [components.task.strategy.trainable(epoch) for epoch in range(12)]
    order = ["head", "hidden", "stage2", "stage1", "stem"]
    assert sets == [set(order[: 1 + epoch // 2]) for epoch in range(12)]
    assert components.task.has_phases
    assert [epochs_in_words([name in names for names in sets]) for name in order] == [
        "yes",
        "epochs 3 to 12",
        "epochs 5 to 12",
        "epochs 7 to 12",
        "epochs 9 to 12",
    ]


@pytest.mark.parametrize(
    ("by_epoch", "words"),
    [
        ("1111", "yes"),
        ("0000", "frozen"),
        ("0111", "epochs 2 to 4"),
        ("1000", "epoch 1"),
        ("1011", "epoch 1, epochs 3 to 4"),
    ],
)
def test_when_a_stage_moves_in_words(by_epoch, words):
    assert epochs_in_words([digit == "1" for digit in by_epoch]) == words


def test_the_second_phase_starts_from_the_first_ones_head():
    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, task):
            if trainer.current_epoch == 2:
                self.weights = state(task.model)

    run, look = ("init=random", "alpha=0", "norm=frozen", "schedule=constant", "seed=3"), Look()
    probe, _ = fit(compose(*run, "strategy=shared_representation", "epochs=2"))
    both, _ = fit(compose(*run, "strategy=lp_ft", "epochs=3", "strategy.probe_epochs=2"), look)
    assert both.task.strategy.trainable(1) == {"head"}
    assert both.task.strategy.trainable(2) == {stage.name for stage in both.task.model.stages}
    theirs = state(probe.task.model)
    assert all(torch.allclose(look.weights[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.parametrize("alpha", ["0", "0.5"])
def test_fine_tuning_starts_from_the_solved_probe(alpha):
    run = ("init=random", "epochs=1", f"alpha={alpha}", "head=one")
    probe = build(compose(*run, "strategy=closed_probe"))
    fit_components(compose(*run), probe)
    start = build(compose(*run, "strategy=lp_ft", "lr=1e-9"))
    assert start.task.has_phases is False
    fit_components(compose(*run), start)
    heads = [state(components.task.model.heads["target"]) for components in (probe, start)]
    assert all(torch.allclose(heads[0][name], heads[1][name], atol=1e-6) for name in heads[0])
    assert start.task.strategy.selected() == probe.task.strategy.selected() != {"c": 0.0}


def test_two_heads_are_both_solved():
    run = ("strategy=lp_ft", "init=random", "epochs=1", "alpha=0.5", "head=two", "lr=1e-9")
    components, _ = fit(compose(*run))
    model, data = components.task.model, components.data
    for role in ("target", "source"):
        features, labels = data.features(model, role, "train")
        with torch.no_grad():
            accuracy = (model.classify(features, role).argmax(1) == labels).float().mean()
        assert accuracy > 0.5, role


def test_each_phase_of_lp_ft_has_a_schedule_of_its_own(run_job):
    run = ("strategy=lp_ft", "strategy.probe_epochs=2", "epochs=6", "init=random", "data.shots=20")
    history = read_history(run_job(*run)["folder"])
    rates = [row["train/lr"] for row in history]
    assert rates[0] > rates[1]
    assert rates[2] > 5 * rates[1], "the second phase begins at the top"
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_the_lowest_stage_unfreezes_halfway_through():
    run = ("strategy=gradual_unfreezing", "init=random", *BACKBONES["timm_vit"])
    components = build(compose(*run, "epochs=60"))
    strategy, model = components.task.strategy, components.task.model
    stages = len(model.backbone_stages)
    assert strategy.epochs_per_stage == 60 // (2 * stages)
    assert components.task.last_phase == stages * strategy.epochs_per_stage <= 30
    rates = [strategy.lr_scale(stage) for stage in model.backbone_stages]
    assert rates[0] / rates[-1] == pytest.approx(2.6**-3)
    short = build(compose(*run, "epochs=2"))
    (notice,) = (notice for notice in short.notices if "gradual_unfreezing" in notice)
    assert notice.startswith("gradual_unfreezing: never unfreezes stem")
    assert notice.endswith(f"in epochs=2 at 1 a stage; {stages + 1} would")


@pytest.mark.parametrize(("choice", "expected"), [("last_phase", 2), ("all", 0)])
def test_the_checkpoint_is_chosen_within_the_last_phase(run_job, choice, expected, monkeypatch):
    """The best validation comes first, and early stopping waits for the phase too."""

    def worse_and_worse(self):
        metrics = compute(self)
        counts[id(self)] = counts.get(id(self), 0) + 1
        return {**metrics, "nll": metrics["nll"] + counts[id(self)]}

    counts, compute = {}, DomainMetrics.compute
    monkeypatch.setattr(DomainMetrics, "compute", worse_and_worse)
    run = ("strategy=lp_ft", "strategy.probe_epochs=2", "epochs=6", "init=random", "lr=1e-6", f"choose_from={choice}")
    result = run_job(*run, "patience=2")
    assert result["best_epoch"] == expected
    assert result["epochs_run"] == expected + 3
    assert result["last_phase"] == 2


def test_a_run_that_ends_before_its_last_phase_keeps_what_it_has(run_job):
    run = ("strategy=lp_ft", "strategy.probe_epochs=3", "epochs=4", "init=random", "+trainer.max_steps=8")
    result = run_job(*run)
    assert result["best_epoch"] < result["last_phase"] == 3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_layer_decay_is_timms_own(name):
    theirs = timm.create_model(name, num_classes=3)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, layer_decay=0.7)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    model = TransferModel(TimmBackbone(name), {"target": 3}, 0)
    strategy = LayerDecay("layer_decay", 0.7)
    strategy.prepare(model)
    scales = {
        parameter.removeprefix("backbone.body."): strategy.lr_scale(stage)
        for stage in model.backbone_stages
        for parameter in stage.parameters
    }
    assert len(scales) > 50
    assert scales == pytest.approx({name: expected[name] for name in scales})
    assert {name.rpartition(".")[0] for name in set(expected) - set(scales)} <= {"head", "head.fc", "fc"}


def test_the_second_phase_starts_at_the_probes_loss(tmp_path):
    """In train mode, with the statistics of the start: what the probe reached is where fine-tuning begins."""

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 0:
                self.moving = task.model.trainable
                everything = components.data.raw("target", "train")
                inputs, labels = everything.inputs[range(len(everything))], everything.labels
                with torch.no_grad():
                    self.now = torch.nn.functional.cross_entropy(task.model(inputs), labels).item()
                    features, _ = components.data.features(task.model, "target", "train")
                    self.before = torch.nn.functional.cross_entropy(task.model.classify(features), labels).item()
                self.fresh = state(task.model.backbone)

    run = ("strategy=lp_ft", "strategy.probe_epochs=2", "epochs=3", "init=random", *BACKBONES["small_cnn_batchnorm"])
    components, look = build(compose(*run, "backbone.dropout=0")), Look()
    before = state(components.task.model.backbone)
    fit_components(compose(*run), components, look)
    assert look.moving > {"head"}
    assert look.now == pytest.approx(look.before, abs=1e-6)
    assert not differing(before, look.fresh)


def test_frozen_statistics_stay_to_the_bit_while_weights_move():
    """Training and evaluation then see the same features, also with batches of one."""
    run = ("backbone=timm", "backbone.name=resnet10t", "backbone.size=32", "init=random", "epochs=2", "alpha=0.5")
    components = build(compose(*run, "norm=frozen", "strategy=finetune"))
    before = state(components.task.model)
    trained, _ = fit(compose(*run, "norm=frozen", "strategy=finetune"))
    changed = differing(before, state(trained.task.model))
    assert changed
    assert not {name for name in changed if "running_" in name or "num_batches" in name}
    assert "backbone.body.bn1.weight" in changed
    assert trained.task.model.source_statistics is None
    model = trained.task.model.train()
    images = torch.randint(0, 256, (4, model.backbone.input.channels, 32, 32), dtype=torch.uint8)
    together, alone = model.features(images), torch.cat([model.features(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(together, model.eval().features(images), atol=1e-4)


def test_bitfit_moves_biases_alone_with_dropout_on():
    run = ("strategy=bitfit", "init=random", "epochs=2", "alpha=0.5", *BACKBONES["timm_vit"])
    before = state(build(compose(*run)).task.model)
    components, _ = fit(compose(*run))
    changed = differing(before, state(components.task.model))
    own = {
        name
        for name, _ in components.task.model.named_parameters()
        if name.endswith("bias") or name.startswith("heads")
    }
    assert changed == own
    model = components.task.model.train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(model.features(images), model.features(images)), "stochastic depth"


def test_bitfit_trains_a_thousandth_of_bert_base(tmp_path):
    """102,912 biases, the pooler's among them, and a head of 1,538: the counts of the published method."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FILES / "tiny_bert" / file, tmp_path)
    BertConfig().save_pretrained(tmp_path)
    bert = ("backbone=text", f"backbone.name={tmp_path}", "backbone.pooling=pooler", "init=random", "batch_size=4")
    texts = ("data=text_table", f"data.target.root={FILES / 'reports.csv'}", "data.target.classes=[0,1]")
    model = build(compose(*bert, *texts, "data.shots=5", "strategy=bitfit")).task.model
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 102_912 + 1_538


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("strategy=layer_decay", "strategy.decay=1.5"), r"strategy.decay=1.5: must lie in \[0, 1\]"),
        (("strategy=gradual_unfreezing", "strategy.decay=0"), "strategy.decay=0: would leave nothing to unfreeze"),
        (("strategy=gradual_unfreezing", "strategy.epochs_per_stage=-1"), "epochs_per_stage=-1: must be a number"),
        (("strategy=lp_ft", "strategy.probe_epochs=-1"), "strategy.probe_epochs=-1: must be a number of epochs"),
        (("strategy=layer_decay", "strategy.unit=layer"), "strategy.unit=layer: choose one of block, stage"),
        (
            ("strategy=lp_ft", "strategy.probe_epochs=20", "epochs=8"),
            "strategy.probe_epochs=20: epochs=8 would be a linear probe alone; use fewer, strategy.probe_epochs=null",
        ),
        (("strategy=lp_ft", "head_hidden=8"), "strategy=lp_ft: solves one linear layer; use head_hidden=0"),
        (
            ("strategy=surgical", "strategy.stage=top"),
            "strategy.stage=top: choose first, last or one of stem, stage1, stage2, hidden",
        ),
    ],
)
def test_values_that_make_no_sense_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        build(compose("init=random", *options))
