"""The contracts of every strategy on every backbone there is: what is frozen, what moves, in which mode."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.conftest import BACKBONES, STRATEGIES, compose, differing, fit, options_of, random_inputs, row, state
from tlexp.assemble import assemble

PAIRS = [
    pytest.param(strategy, backbone, id=f"{strategy}-{backbone}") for strategy in STRATEGIES for backbone in BACKBONES
]


def config_of(strategy: str, backbone: str, *overrides: str) -> Any:
    decay = "optimizer.weight_decay=0.1"  # would move a frozen parameter that has a zero gradient
    few = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "data.test_fraction=0.95", "batch_size=6")
    common = (*few, f"strategy={strategy}", *options_of(strategy, backbone), *BACKBONES[backbone], "init=random", decay)
    common += ("epochs=2",)
    return compose(*common, "trainer.val_check_interval=0.5", "alpha=0.5", *overrides)


class Watch(pl.Callback):
    """Takes the model's state before the first step and in each epoch, and the modes at each training step."""

    def __init__(self) -> None:
        self.modes: list[dict[str, bool]] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, task: Any) -> None:
        task.model.backbone.eval()  # as a library may hand it over
        self.before = state(task.model)

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.states.append(state(task.model))

    def on_train_batch_start(self, trainer: pl.Trainer, task: Any, *_: Any) -> None:
        self.modes.append({name: module.training for name, module in task.model.named_modules()})


@pytest.mark.parametrize(("strategy", "backbone"), PAIRS)
def test_frozen_stays_to_the_bit_and_the_rest_moves(strategy, backbone):
    watch = Watch()
    parts, trainer = fit(config_of(strategy, backbone), watch)
    model = parts.task.model
    trainer.validate(parts.task, parts.data, verbose=False)
    model.train()
    states = [*watch.states, state(model)]
    for epoch in range(2):
        moving = parts.task.strategy.trainable(epoch)
        changed = differing(states[epoch], states[epoch + 1])
        for stage in model.stages:
            own = {*stage.parameters, *stage.buffers}
            moves = stage.name in moving and parts.task.strategy.lr_scale(stage) > 0  # one that is solved has no rate
            assert bool(changed & own) == moves, f"{stage.name} in epoch {epoch}"
    for stage in model.stages:
        if stage.name not in moving:
            assert all(not dict(model.named_parameters())[name].requires_grad for name in stage.parameters)
            assert all(dict(model.named_parameters())[name].grad is None for name in stage.parameters)
    changed = differing(watch.before, state(model))
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    frozen = {name for name, p in model.named_parameters() if id(p) not in held}
    assert not frozen & changed


@pytest.mark.parametrize(("strategy", "backbone"), PAIRS)
def test_modes_are_right_at_every_step(strategy, backbone):
    """Also after validations in the middle of an epoch, and for a backbone that came in eval mode."""
    watch = Watch()
    parts, _ = fit(config_of(strategy, backbone), watch)
    assert len(watch.modes) == 2 * parts.data.steps
    frozen = {name for name, module in parts.task.model.named_modules() if isinstance(module, _BatchNorm)}
    frozen = frozen if parts.task.model.frozen_statistics else set()
    for step, modes in enumerate(watch.modes):
        moving = parts.task.strategy.trainable(step // parts.data.steps)
        for stage in parts.task.model.stages:
            for name in stage.modules:
                assert modes[name] == (stage.name in moving and name not in frozen), f"{name} in step {step}"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_frozen_features_do_not_depend_on_chance_or_batch_mates(backbone):
    model = assemble(config_of("linear_probe", backbone)).task.model
    model.train()
    inputs = random_inputs(model.backbone.input, 8)
    alone = torch.cat([model.backbone(row(inputs, place)) for place in range(8)])
    together = model.backbone(inputs)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.equal(together, model.backbone(inputs))
    model.eval()
    assert torch.equal(together, model.backbone(inputs))


@pytest.mark.parametrize(("strategy", "backbone"), PAIRS)
def test_every_moving_parameter_is_in_one_named_group_with_its_own_rate(strategy, backbone):
    config = config_of(strategy, backbone)
    parts = assemble(config)
    model, rule = parts.task.model, parts.task.strategy
    groups = parts.task.build_optimizer().param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    stages = {stage.name: stage for stage in model.stages}
    for group in groups:
        stage = group["name"].removesuffix("/no_decay")
        assert group["lr"] == pytest.approx(config.lr * rule.lr_scale(stages[stage]))
        if group["name"].endswith("/no_decay"):
            assert group["weight_decay"] == 0
            assert all(p.ndim <= 1 for p in group["params"])


def test_finetune_gives_the_backbone_a_tenth_of_the_rate():
    parts = assemble(config_of("finetune", "small_cnn", "lr=0.02"))
    rates = {group["name"]: group["lr"] for group in parts.task.build_optimizer().param_groups}
    assert rates["head"] == 0.02
    assert rates["stem"] == rates["hidden"] == pytest.approx(0.002)


def test_a_frozen_prefix_is_frozen():
    watch = Watch()
    config = config_of("finetune", "small_cnn_batchnorm", "strategy.freeze_until=stage1")
    parts, _ = fit(config, watch)
    changed = differing(watch.before, state(parts.task.model))
    assert {name.split(".")[1] for name in changed if name.startswith("backbone.")} == {"stage2", "hidden"}
    assert not watch.modes[0]["backbone.stage1"]
    assert watch.modes[0]["backbone.stage2"]
