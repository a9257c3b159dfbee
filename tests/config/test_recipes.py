"""Every recipe of conf/experiment runs as it stands, but for random weights, small images and one epoch."""

import pytest
import torch
from torch import nn

from tests.helpers import FILES, STRATEGIES, compose, tree
from tlexp.config.load import CONF
from tlexp.runs.build import build

KERAS = {
    "vgg16_keras": ("backbone.size=32", 512 * 49),
    "alexnet_keras": ("backbone.size=64", 256 * 36),
    "resnet50_keras": ("backbone.size=32", 2048),
    "bert_keras": (f"backbone.name={FILES / 'tiny_bert'}", 32),
}


SWEEPS = ("alpha_curve", "backbone_heatmap", "label_efficiency", "strategy_shootout")


def overrides(recipe, tmp_path):
    text = recipe == "bert_keras"
    root = FILES / "reports.csv" if text else tree(tmp_path / "pets", cat=40, dog=40)
    return (f"experiment={recipe}", f"data.target.root={root}", KERAS[recipe][0], *(("backbone.max_length=16",) * text))


def test_every_recipe_is_tested():
    demonstrations = {"digits_l2_sp", "digits_negative_transfer"}  # which have tests of their own, as have these:
    tuned = set(STRATEGIES) - {"zero_shot", "nearest_mean"}  # which have nothing to tune
    others = demonstrations | set(SWEEPS) | {"tune", *(f"tune_{strategy}" for strategy in tuned)}
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == set(KERAS) | others


@pytest.mark.parametrize("recipe", KERAS)
def test_the_keras_recipe_is_what_it_says(recipe, tmp_path):
    """A frozen base without its top, a head of its own, Adam at 1e-3, cross-entropy."""
    config = compose(*overrides(recipe, tmp_path), "init=random")
    components = build(config)
    model = components.task.model
    head = [type(layer) for layer in model.heads["target"]]
    assert (model.backbone.num_features, head) == (KERAS[recipe][1], [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear])
    optimizer = components.task.build_optimizer()
    assert (type(optimizer), config.alpha) == (torch.optim.Adam, 0)
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(1e-3, 0.0)}
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    classes = len(components.data.domains["target"].samples.classes)
    assert held == KERAS[recipe][1] * 256 + 256 + 256 * classes + classes
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert compose(*overrides(recipe, tmp_path / "again")).init == "pretrained"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", KERAS)
def test_the_keras_recipe_runs_in_one_command(recipe, tmp_path, run_job):
    result = run_job(*overrides(recipe, tmp_path), "init=random", "epochs=1", "batch_size=8")
    assert result["epochs_run"] == 1
    assert 0.2 < result["train/target/loss"] < 5, "near the logarithm of two classes"
