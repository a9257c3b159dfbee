"""Architectures of many families under one contract: width, stages, modes, gradients, and weights there and back."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from tests.helpers import ROOT, differing, every_third, state
from tlexp.backbones.timm import TimmBackbone
from tlexp.backbones.torchvision import TorchvisionBackbone
from tlexp.backbones.weights import load_backbone, read_checkpoint

# One or two of each family, at a size that is small for it; None where it works at its own size only.
TIMM = {
    "bat_resnext26ts": None,
    "beit_base_patch16_224": 32,
    "botnet26t_256": None,
    "caformer_s18": 64,
    "cait_xxs24_224": 32,
    "coat_lite_tiny": 64,
    "coatnet_nano_rw_224": 64,
    "convmixer_768_32": 32,
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "crossvit_tiny_240": None,
    "cspresnet50": 32,
    "darknet53": 32,
    "davit_tiny": 64,
    "deit3_small_patch16_224": 32,
    "densenet121": 32,
    "dla34": 32,
    "dpn48b": 32,
    "eca_nfnet_l0": 64,
    "edgenext_xx_small": 64,
    "efficientformerv2_s0": 64,
    "efficientnet_b0": 32,
    "efficientvit_b0": 64,
    "efficientvit_m0": 64,
    "ese_vovnet19b_slim": 32,
    "eva02_tiny_patch14_224": 28,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 64,
    "ghostnet_050": 32,
    "gmlp_ti16_224": 32,
    "hgnetv2_b0": 32,
    "hrnet_w18_small": 32,
    "inception_next_atto": 32,
    "inception_v3": 75,
    "lcnet_035": 32,
    "levit_128s": 64,
    "mambaout_femto": 32,
    "maxvit_pico_rw_256": 64,
    "mobilenetv3_small_050": 32,
    "mobilenetv4_conv_small_035": 32,
    "mobileone_s0": 32,
    "mobilevit_xxs": 64,
    "mvitv2_tiny": 64,
    "nextvit_small": 64,
    "nf_regnet_b0": 32,
    "pit_ti_224": 32,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "regnety_002": 32,
    "repvgg_a0": 32,
    "repvit_m0_9": 32,
    "res2net50_26w_4s": 32,
    "resmlp_12_224": 32,
    "resnest14d": 32,
    "resnetv2_50": 32,
    "rexnet_100": 32,
    "selecsls42": 64,
    "sequencer2d_s": 64,
    "seresnext26d_32x4d": 32,
    "starnet_s1": 32,
    "swin_tiny_patch4_window7_224": 56,
    "swinv2_cr_tiny_ns_224": 64,
    "tf_efficientnet_lite0": 32,
    "tiny_vit_5m_224": 64,
    "twins_svt_small": 64,
    "vit_relpos_small_patch16_224": 32,
    "vit_small_patch14_dinov2": 28,
    "vit_tiny_patch16_224": 32,
    "volo_d1_224": 64,
    "xception41": 64,
    "xcit_nano_12_p16_224": 32,
}
# Every module of torchvision that defines classifiers, by one of its models.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": None,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "vgg11": 32,
    "vit_b_16": 32,
}
ZOO = [
    *(pytest.param(TimmBackbone, name, size, id=f"timm-{name}") for name, size in TIMM.items()),
    *(pytest.param(TorchvisionBackbone, name, size, id=f"torchvision-{name}") for name, size in TORCHVISION.items()),
]
MOODY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@pytest.mark.parametrize(("adapter", "name", "size"), every_third(ZOO))
def test_an_architecture_keeps_the_contract(adapter, name, size, tmp_path):
    """One model is built and walked through everything, since building is most of the time."""
    torch.manual_seed(0)
    backbone = adapter(name, size)
    images = torch.randn(3, *backbone.input.example(1).shape[1:])

    stages = backbone.stages()
    for kind in ("parameters", "buffers"):
        owned = [tensor for stage in stages for tensor in getattr(stage, kind)]
        assert sorted(owned) == sorted(name for name, _ in getattr(backbone, f"named_{kind}")())
    assert stages[0].name == "stem"
    assert all(stage.parameters for stage in stages)
    assert len({stage.name for stage in stages}) == len(stages) >= 4
    modes = [module for stage in stages for module in stage.modules]
    assert len(modes) == len(set(modes))
    moody = {n for n, m in backbone.named_modules() if isinstance(m, MOODY) or type(m).__name__ == "DropPath"}
    assert moody <= set(modes)

    features = backbone.train()(images)
    assert features.shape == (3, backbone.num_features)
    features.square().mean().backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None], "several processes would wait for it"
    assert any(p.grad.abs().sum() > 0 for p in backbone.parameters())

    with torch.no_grad():
        together = backbone.eval()(images)
        assert torch.allclose(together[:1], backbone(images[:1]), atol=1e-5 * float(together.abs().max()) + 1e-7)

    save_file(
        {f"module.{n}": tensor.clone() for n, tensor in backbone.state_dict().items()}, tmp_path / "w.safetensors"
    )
    torch.manual_seed(1)
    other = adapter(name, size)
    tensors, _ = read_checkpoint(tmp_path / "w.safetensors")
    loaded = load_backbone(other, tensors, "there and back", allow_partial=False)
    assert (loaded.loaded, loaded.missing, loaded.unexpected) == (loaded.total, (), ())
    persistent = backbone.state_dict().keys()
    assert not differing(state(backbone), state(other)) & persistent


def test_every_family_of_torchvision_is_there():
    families = {model: models.get_model_builder(model).__module__ for model in models.list_models(module=models)}
    assert {families[name] for name in TORCHVISION} == set(families.values())
    assert len(TIMM) >= 40
    assert f"- {len(TIMM)} architectures of timm" in (ROOT / "README.md").read_text()
