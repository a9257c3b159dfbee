"""The contracts of every strategy on every backbone there is: what is frozen, what moves, in which mode."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.helpers import (
    BACKBONES,
    STRATEGIES,
    WHOLE,
    compose,
    differing,
    each_once,
    example,
    fit,
    options_of,
    random_inputs,
    state,
)
from tlexp.runs.build import build

# Each strategy on a network with BatchNorm and dropout and on another one; on all of them under TLEXP_WHOLE=1.
LARGE = "torchvision_alexnet"  # 57 M parameters: by default with a strategy that trains few of them
OTHERS = [*BACKBONES] if WHOLE else [name for name in BACKBONES if name != LARGE]
PAIRS = sorted(
    {*each_once(STRATEGIES, ("small_cnn_batchnorm",)), *each_once(STRATEGIES, OTHERS), ("linear_probe", LARGE)}
)


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
def test_a_strategy_keeps_its_contracts(strategy, backbone):
    """One training, looked at in four ways; also after validations in the middle of an epoch."""
    config, watch = config_of(strategy, backbone), Watch()
    components, trainer = fit(config, watch)
    check_modes(components, watch)
    check_groups(config, components, trainer.optimizers[0])
    trainer.validate(components.task, components.data, verbose=False)
    components.task.model.train()
    check_what_moved(components, [*watch.states, state(components.task.model)])
    changed = differing(watch.before, state(components.task.model))
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not {name for name, p in components.task.model.named_parameters() if id(p) not in held} & changed


def check_what_moved(components: Any, states: list[dict[str, torch.Tensor]]) -> None:
    """In every epoch exactly the predicted stages changed, buffers included; the rest has no gradient."""
    model, strategy = components.task.model, components.task.strategy
    for epoch in range(2):
        moving = strategy.trainable(epoch)
        changed = differing(states[epoch], states[epoch + 1])
        for stage in model.stages:
            moves = stage.name in moving and strategy.lr_scale(stage) > 0  # one that is solved has no rate
            assert bool(changed & {*stage.parameters, *stage.buffers}) == moves, f"{stage.name} in epoch {epoch}"
    parameters = dict(model.named_parameters())
    for stage in model.stages:
        if stage.name not in moving:
            assert not any(parameters[name].requires_grad for name in stage.parameters)
            assert all(parameters[name].grad is None for name in stage.parameters)


def check_modes(components: Any, watch: Watch) -> None:
    """What moves is in train mode at every step, also where its library handed it over in eval mode."""
    model = components.task.model
    assert len(watch.modes) == 2 * components.data.steps
    layers = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    frozen = layers if model.frozen_statistics else set()
    for step, modes in enumerate(watch.modes):
        moving = components.task.strategy.trainable(step // components.data.steps)
        for stage in model.stages:
            for name in stage.modules:
                assert modes[name] == (stage.name in moving and name not in frozen), f"{name} in step {step}"


def check_groups(config: Any, components: Any, optimizer: torch.optim.Optimizer) -> None:
    """Every parameter that ever moves is in one named group, at its stage's rate."""
    model, strategy, groups = components.task.model, components.task.strategy, optimizer.param_groups
    ever = strategy.trainable(0) | strategy.trainable(1)
    parameters = dict(model.named_parameters())
    owned = [id(parameters[name]) for stage in model.stages if stage.name in ever for name in stage.parameters]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(owned)
    assert len({group["name"] for group in groups}) == len(groups)
    stages = {stage.name: stage for stage in model.stages}
    spared = {id(parameters.get(f"backbone.{name}")) for name in getattr(model.backbone, "no_weight_decay", ())}
    for group in groups:
        stage = group["name"].removesuffix("/no_decay")
        assert group["initial_lr"] == pytest.approx(config.lr * strategy.lr_scale(stages[stage]))
        if group["name"].endswith("/no_decay"):
            assert group["weight_decay"] == 0
            assert all(p.ndim <= 1 or id(p) in spared for p in group["params"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_frozen_features_do_not_depend_on_chance_or_batch_mates(backbone):
    model = build(config_of("linear_probe", backbone)).task.model
    model.train()
    inputs = random_inputs(model.backbone.input, 8)
    alone = torch.cat([model.backbone(example(inputs, index)) for index in range(8)])
    together = model.backbone(inputs)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.equal(together, model.backbone(inputs))
    model.eval()
    assert torch.equal(together, model.backbone(inputs))


def test_finetune_gives_the_backbone_a_tenth_of_the_rate():
    components = build(config_of("finetune", "small_cnn", "lr=0.02"))
    rates = {group["name"]: group["lr"] for group in components.task.build_optimizer().param_groups}
    assert rates["head"] == 0.02
    assert rates["stem"] == rates["hidden"] == pytest.approx(0.002)


def test_a_frozen_prefix_is_frozen():
    watch = Watch()
    config = config_of("finetune", "small_cnn_batchnorm", "strategy.freeze_until=stage1")
    components, _ = fit(config, watch)
    changed = differing(watch.before, state(components.task.model))
    assert {name.split(".")[1] for name in changed if name.startswith("backbone.")} == {"stage2", "hidden"}
    assert not watch.modes[0]["backbone.stage1"]
    assert watch.modes[0]["backbone.stage2"]
