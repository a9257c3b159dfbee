import pytest
import torch
from torch import nn

from tests.helpers import BACKBONES, compose, example, random_inputs
from tlexp.backbones.base import group_stages, measure_width
from tlexp.backbones.timm import TimmBackbone
from tlexp.backbones.torchvision import TorchvisionBackbone
from tlexp.config.instantiate import build as instantiate
from tlexp.errors import UsageError


def make(name):
    return instantiate("backbone", compose("init=random", *BACKBONES[name]).backbone)


@pytest.fixture(scope="module", params=[*BACKBONES])
def backbone(request):
    return make(request.param)


def test_stages_own_every_tensor_once_in_order(backbone):
    stages = backbone.stages()
    for kind in ("parameters", "buffers"):
        owned = [name for stage in stages for name in getattr(stage, kind)]
        assert sorted(owned) == sorted(name for name, _ in getattr(backbone, f"named_{kind}")())
    assert stages[0].name in ("stem", "embeddings")
    assert len(stages) >= 3
    assert len({stage.name for stage in stages}) == len(stages)


def test_modules_with_a_mode_of_their_own_belong_to_a_stage(backbone):
    owned = [name for stage in backbone.stages() for name in stage.modules]
    assert len(owned) == len(set(owned))
    moody = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in backbone.named_modules():
        if isinstance(module, moody) or type(module).__name__ == "DropPath":
            assert name in owned


def test_width_is_measured_and_trains(backbone):
    backbone.train()
    features = backbone(random_inputs(backbone.input, 2))
    assert features.shape == (2, backbone.num_features)
    features.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_eval_features_do_not_depend_on_batch_mates(backbone):
    backbone.eval()
    inputs = random_inputs(backbone.input, 3)
    with torch.no_grad():
        assert torch.allclose(backbone(inputs)[:1], backbone(example(inputs, 0)), atol=1e-4)


def test_preprocessing_is_the_models_own():
    half = TimmBackbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k").input
    assert (half.mean, half.std, half.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    imagenet = TorchvisionBackbone("resnet18").input
    assert imagenet.mean == (0.485, 0.456, 0.406)
    assert (imagenet.size, imagenet.interpolation) == (224, "bilinear")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimmBackbone("resnet19"), "resnet19: timm has no such model; did you mean: resnet18"),
        (lambda: TorchvisionBackbone("vgg17"), "vgg17: torchvision has no such classifier; did you mean: vgg"),
        (lambda: TimmBackbone("vgg11", drop_path_rate=0.1), "leave that option at its default"),
    ],
)
def test_what_cannot_be_built_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_grouping_gives_a_loose_dropout_to_the_stage_before_it():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2), nn.ReLU())
    stages = group_stages(net, {name: "a" if name[0] == "0" else "b" for name in net.state_dict()}, ["a", "b"])
    assert [stage.modules for stage in stages] == [("0", "1"), ("2", "3")]


def test_measuring_leaves_the_mode():
    backbone = make("small_cnn")
    assert backbone.training
    assert measure_width(backbone.eval(), backbone.input) == 128
    assert not backbone.training
