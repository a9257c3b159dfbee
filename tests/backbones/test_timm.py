"""What a timm model may be asked for: other channels, other sizes, regularisation, less memory."""

import pytest
import timm
import torch
from torch import nn

from tests.helpers import compose
from tlexp.backbones.timm import TimmBackbone
from tlexp.backbones.weights import load_backbone
from tlexp.config.instantiate import build as instantiate
from tlexp.config.load import CONF
from tlexp.errors import UsageError
from tlexp.runs.build import build

NAMED = ["resnet18", "resnet50", "vit_small", "vit_base", "convnext_tiny", "efficientnet_lite0", "mobilenetv3"]
NAMED += ["swin_tiny", "dinov2_small"]


@pytest.mark.parametrize("option", NAMED)
def test_a_named_option_is_a_model_with_published_weights_and_its_preprocessing(option):
    node = compose(f"backbone={option}", "init=random").backbone
    published = timm.get_pretrained_cfg(node["name"], allow_unregistered=False)
    assert published is not None
    assert published.has_weights
    backbone = instantiate("backbone", node)
    assert (backbone.input.mean, backbone.input.std) == (published.mean, published.std)
    assert backbone.input.interpolation == published.interpolation
    assert backbone.input.size == published.input_size[1]
    assert backbone.input.resize == int(published.input_size[1] / published.crop_pct)


def test_a_grey_stem_sums_the_weights_and_averages_the_statistics():
    """With equal statistics in all channels the grey network is the colour network on copied channels, exactly."""
    colour, grey = TimmBackbone("tf_efficientnet_lite0", 32), TimmBackbone("tf_efficientnet_lite0", 32, in_chans=1)
    loaded = load_backbone(grey, colour.state_dict(), "colour", allow_partial=False)
    assert loaded.notes == ("conv_stem.weight adapted from 32x3x3x3 to 32x1x3x3",)
    assert (grey.input.channels, grey.input.mean, grey.input.std) == (1, (0.5,), (0.5,))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(grey.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)), atol=1e-4)
    imagenet = TimmBackbone("resnet10t", 32, in_chans=1).input
    assert (imagenet.mean[0], imagenet.std[0]) == (pytest.approx(0.449, abs=1e-3), pytest.approx(0.226, abs=1e-3))


def test_more_channels_repeat_the_weights_and_the_statistics():
    three, five = TimmBackbone("resnet10t", 32), TimmBackbone("resnet10t", 32, in_chans=5)
    load_backbone(five, three.state_dict(), "three", allow_partial=False)
    own, before = five.body.conv1[0].weight, three.body.conv1[0].weight
    assert torch.allclose(own, before[:, [0, 1, 2, 0, 1]] * 3 / 5)
    assert five.input.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert five(torch.randn(2, 5, 32, 32)).shape == (2, five.num_features)


@pytest.mark.parametrize(
    ("name", "sizes", "tensor"),
    [
        ("vit_tiny_patch16_224", (64, 96), "pos_embed adapted from 1x17x192 to 1x37x192"),
        ("vit_small_patch14_dinov2", (56, 28), "pos_embed adapted from 1x17x384 to 1x5x384"),
        ("beit_base_patch16_224", (64, 96), "relative_position_bias_table adapted from 52x12 to 124x12"),
        ("swin_tiny_patch4_window7_224", (224, 128), "relative_position_bias_table adapted from 169x24 to 49x24"),
    ],
)
def test_position_embeddings_are_resampled_and_said(name, sizes, tensor):
    before, after = (TimmBackbone(name, size) for size in sizes)
    loaded = load_backbone(after, before.state_dict(), "another size", allow_partial=False)
    assert loaded.loaded == loaded.total
    assert any(tensor in note for note in loaded.notes), loaded.notes
    assert tensor in str(loaded)


def test_resampled_positions_keep_their_place():
    """A ramp over the grid stays a ramp over the finer grid; the class token stays as it is."""
    coarse, fine = TimmBackbone("vit_tiny_patch16_224", 64), TimmBackbone("vit_tiny_patch16_224", 128)
    ramp = torch.arange(4.0).repeat_interleave(4)
    with torch.no_grad():
        coarse.body.pos_embed[0, 0] = 7.0
        coarse.body.pos_embed[0, 1:] = ramp[:, None]
    load_backbone(fine, coarse.state_dict(), "coarse", allow_partial=False)
    assert (fine.body.pos_embed[0, 0] == 7.0).all()
    rows = fine.body.pos_embed[0, 1:, 0].reshape(8, 8).detach()
    assert (rows.diff(dim=0) > 0).all()
    assert torch.allclose(rows[:, 0], rows[:, 7], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_small_patch16_224", 50, "its patches are 16 pixels wide, and 2 pixels would be ignored"),
        ("vit_small_patch14_dinov2", 64, "its patches are 14 pixels wide, and 8 pixels would be ignored"),
        ("crossvit_tiny_240", 50, "cannot work with it"),
        ("mvitv2_tiny", 50, "cannot work with it"),
        ("levit_128s", 50, "cannot work with it"),
        ("efficientformer_l1", 64, "cannot work with it"),
        ("resnet10t", 0, "must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(name, size, message):
    with pytest.raises(UsageError, match=message) as caught:
        TimmBackbone(name, size)
    assert str(caught.value).startswith(f"backbone.size={size}: ")
    assert "backbone.size=null" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_drop_rates_act_in_training_alone():
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, drop_rate=0.4, drop_path_rate=0.5)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), backbone(images))
        assert not torch.equal(backbone.train()(images), backbone(images))
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.4 for m in backbone.modules())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "convnext_atto"])
def test_gradient_checkpointing_gives_the_same_gradients(name, frozen):
    """Also above a frozen stem, whose output asks for no gradient."""
    torch.manual_seed(0)
    plain = TimmBackbone(name, 32).eval()
    saving = TimmBackbone(name, 32, gradient_checkpointing=True).eval()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for backbone in (plain, saving):
        stem = backbone.stages()[0].parameters if frozen else ()
        for tensor in stem:
            backbone.get_parameter(tensor).requires_grad_(False)
        backbone.train()(images).square().sum().backward()
    ours, theirs = dict(saving.named_parameters()), dict(plain.named_parameters())
    assert all((ours[n].grad is None) == (theirs[n].grad is None) == (n in stem) for n in ours)
    assert all(torch.allclose(ours[n].grad, theirs[n].grad, atol=1e-5) for n in ours if n not in stem)


def test_gradient_checkpointing_is_refused_where_statistics_would_count_twice():
    with pytest.raises(UsageError, match=r"backbone.gradient_checkpointing=true: timm's resnet10t has BatchNorm"):
        TimmBackbone("resnet10t", 32, gradient_checkpointing=True)


def test_a_rate_of_zero_is_zero_and_none_is_the_models_own():
    """Swin comes with stochastic depth of its own."""
    depths = {}
    for rate in (None, 0.0, 0.2):
        backbone = TimmBackbone("swin_tiny_patch4_window7_224", 56, drop_path_rate=rate)
        depths[rate] = max((m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"), default=0.0)
    assert depths == {None: pytest.approx(0.1), 0.0: 0.0, 0.2: pytest.approx(0.2)}


def test_a_model_may_have_a_size_of_its_own_that_its_patches_do_not_divide():
    with torch.device("meta"):  # no smaller one is like that
        assert TimmBackbone("vit_so400m_patch14_siglip_384").input.size == 384
    with pytest.raises(UsageError, match=r"backbone.name=resnet18.foo: timm cannot build it \(Invalid pretrained tag"):
        TimmBackbone("resnet18.foo")


def test_every_option_file_of_the_group_can_be_composed():
    for path in sorted((CONF / "backbone").glob("*.yaml")):
        name = () if path.stem != "text" else ("backbone.name=x",)
        assert (
            compose(f"backbone={path.stem}", "init=random", *name).backbone["_target_"].startswith("tlexp.backbones.")
        )


@pytest.mark.parametrize(
    "name",
    [
        *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "convnext_tiny", "convnextv2_atto", "densenet121"),
        *("resnetv2_50", "beit_base_patch16_224", "poolformer_s12", "davit_tiny", "caformer_s18", "edgenext_xx_small"),
        *("tiny_vit_5m_224", "test_convnext"),
    ],
)
def test_the_last_stage_is_more_than_a_normalisation(name):
    """The networks on which it was one: a strategy that trains the last stage trained next to nothing."""
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    last = backbone.stages()[-1]
    parameters = dict(backbone.named_parameters())
    assert max(parameters[owned].ndim for owned in last.parameters) > 1
    assert sum(parameters[owned].numel() for owned in last.parameters) > 50 * backbone.num_features


@pytest.mark.parametrize(
    ("name", "spared"),
    [("test_vit", {"body.pos_embed", "body.cls_token"}), ("test_convnext", set()), ("resnet18", set())],
)
def test_embeddings_and_tokens_are_not_decayed(name, spared):
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    assert backbone.no_weight_decay & {name for name, _ in backbone.named_parameters()} == spared
    options = ("backbone=timm", f"backbone.name={name}", "backbone.size=32", "init=random", "alpha=0")
    task = build(compose(*options)).task
    spared_tensors = {id(task.model.get_parameter(f"backbone.{name}")) for name in spared}
    decayed = {id(p) for group in task.build_optimizer().param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed
    assert not decayed & spared_tensors


def test_tables_of_relative_positions_are_not_decayed():
    with torch.device("meta"):
        backbone = TimmBackbone("swin_tiny_patch4_window7_224")
    tables = {name for name, _ in backbone.named_parameters() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 12
    assert tables <= backbone.no_weight_decay
