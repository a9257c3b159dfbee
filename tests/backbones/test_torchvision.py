import pytest
import torch
from torch import nn
from torchvision import models

from tlexp.backbones.torchvision import TorchvisionBackbone
from tlexp.backbones.weights import load_backbone
from tlexp.data.images.sources import PixelArray
from tlexp.errors import UsageError


@pytest.mark.parametrize(
    ("name", "count", "biases", "norms", "dropouts"),
    [
        ("alexnet", 57_044_810, 9_354, 0, [0.5, 0.5]),
        ("vgg16", 134_301_514, 12_426, 0, [0.5, 0.5]),
        ("resnet18", 11_181_642, 4_810, 20, []),
        ("resnet50", 23_528_522, 26_570, 53, []),
    ],
)
def test_known_counts_with_ten_classes(name, count, biases, norms, dropouts):
    """The published architectures with a last layer for ten classes."""
    backbone = TorchvisionBackbone(name)
    head = nn.Linear(backbone.num_features, 10)
    both = [*backbone.named_parameters(), *head.named_parameters()]
    assert sum(p.numel() for _, p in both) == count
    assert sum(p.numel() for n, p in both if n.endswith("bias")) == biases
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == norms
    assert [module.p for module in backbone.modules() if isinstance(module, nn.Dropout)] == dropouts


def test_vgg16_with_batchnorm_has_thirteen_of_them():
    backbone = TorchvisionBackbone("vgg16_bn", 32)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == 13


@pytest.mark.parametrize(("name", "width"), [("alexnet", 256 * 36), ("vgg16", 512 * 49), ("resnet50", 2048)])
def test_without_its_top_a_network_gives_what_its_convolutions_see(name, width):
    size = 64 if name == "alexnet" else 32
    backbone = TorchvisionBackbone(name, size, top=False)
    assert backbone.num_features == width
    assert not any(isinstance(module, nn.Linear) for module in backbone.modules())
    assert backbone.stages()[-1].name not in ("classifier", "fc")


def test_preprocessing_is_that_of_the_chosen_weights():
    """The pixels that enter the network are those of the transform in torchvision's enum, to the last one."""
    picture = torch.randint(0, 256, (300, 260, 3), dtype=torch.uint8)
    for name, choice in (("resnet50", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2"), ("swin_v2_t", None)):
        backbone = TorchvisionBackbone(name, weights=choice)
        weights = models.get_model_weights(name)[choice or "DEFAULT"]
        from PIL import Image

        expected = weights.transforms()(Image.fromarray(picture.numpy()))
        ours = backbone.input.normalised(PixelArray(picture.numpy()[None]).materialize(backbone.input)[[0]])[0]
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, atol=1e-5)
    with pytest.raises(UsageError, match="weights=IMAGENET1K_V9: torchvision has IMAGENET1K_V1, IMAGENET1K_V2 for"):
        TorchvisionBackbone("resnet50", weights="IMAGENET1K_V9")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_off_and_the_models_own_normalisation_is_on(name):
    backbone = TorchvisionBackbone(name, 96)
    assert not any("aux" in tensor.lower() for tensor in backbone.state_dict())
    published = models.get_model(name, init_weights=False, aux_logits=True, transform_input=True)
    state = published.state_dict()
    loaded = load_backbone(backbone, state, "published", allow_partial=False)
    assert any("aux" in name.lower() for name in loaded.unexpected)
    published.fc = nn.Identity()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(images), published.eval()(images), atol=1e-5)


def test_a_vision_transformers_positions_are_resampled_for_another_size():
    native, small = TorchvisionBackbone("vit_b_32"), TorchvisionBackbone("vit_b_32", 64)
    loaded = load_backbone(small, native.state_dict(), "native", allow_partial=False)
    assert loaded.notes == ("encoder.pos_embedding adapted from 1x50x768 to 1x5x768",)


def test_weights_of_another_size_come_with_it():
    backbone = TorchvisionBackbone("vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
    assert backbone.input.size == 384
    assert backbone.body.encoder.pos_embedding.shape[1] == 1 + 24**2


@pytest.mark.parametrize(("name", "size"), [("alexnet", 16), ("vit_b_16", 50), ("maxvit_t", 100), ("inception_v3", 32)])
def test_sizes_that_cannot_work_are_named(name, size):
    with pytest.raises(UsageError, match=f"backbone.size={size}: torchvision's {name} cannot work with it") as caught:
        TorchvisionBackbone(name, size)
    assert "backbone.size=null is" in str(caught.value)
    assert "\n" not in str(caught.value)
