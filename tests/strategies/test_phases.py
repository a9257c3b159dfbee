"""Strategies that differ from stage to stage and from epoch to epoch, against those they become at their ends."""

import shutil

import pytest
import pytorch_lightning as pl
import torch
from transformers import BertConfig

from tests.helpers import BACKBONES, FILES, best_weights, compose, differing, fit, fit_components, state
from tlexp.errors import UsageError
from tlexp.reporting.run_report import epochs_in_words
from tlexp.runs.build import build

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
        ("lp_ft", ("strategy.probe_epochs=100",), "shared_representation"),
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
    run = ("strategy=lp_ft", "init=random", "alpha=0", "epochs=4", "schedule=constant", "seed=3")
    probe, _ = fit(compose(*run, "strategy.probe_epochs=4", "trainer.max_epochs=2"))
    both = build(compose(*run, "strategy.probe_epochs=2"))
    assert both.task.strategy.trainable(1) == {"head"}
    assert both.task.strategy.trainable(2) == {stage.name for stage in both.task.model.stages}
    short, _ = fit(compose(*run, "strategy.probe_epochs=2", "trainer.max_epochs=2"))
    ours, theirs = (state(components.task.model) for components in (probe, short))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


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
        (
            ("strategy=surgical", "strategy.stage=top"),
            "strategy.stage=top: choose first, last or one of stem, stage1, stage2, hidden",
        ),
    ],
)
def test_values_that_make_no_sense_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        build(compose("init=random", *options))
