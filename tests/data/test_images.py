from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from tlexp.backbones.base import InputSpec
from tlexp.backbones.timm import TimmBackbone
from tlexp.data.images.decode import convert_channels
from tlexp.data.images.sources import ImageFiles, PixelArray
from tlexp.errors import UsageError


def opened(path, channels):
    return convert_channels(ImageFiles((path,)).open(0), channels)


def inputs_of(pictures, spec):
    table = pictures.materialize(spec)
    return spec.normalised(table[range(len(table))])


def test_inputs_are_normalised_and_enlarged_as_the_backbone_says():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[1] = 255
    inputs = inputs_of(PixelArray(images), InputSpec(3, 12, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1), "bicubic"))
    assert inputs.shape == (2, 3, 12, 12)
    assert torch.allclose(inputs[0].amax((1, 2)), torch.tensor([-1.0, -2.0, -3.0]))
    assert torch.allclose(inputs[1].amin((1, 2)), torch.tensor([1.0, 3.0, 7.0]))


@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0.in1k",  # center, bicubic
        "resnet18.a1_in1k",  # its own test crop
        "vit_small_patch14_dinov2.lvd142m",  # no margin
        "vit_base_patch16_clip_224.openai",  # mean and std of its own
        "convnext_tiny.fb_in22k_ft_in1k_384",  # squash
        "mobilenetv4_conv_small.e2400_r224_in1k",
    ],
)
@pytest.mark.parametrize("size", [None, 224])
def test_pixels_are_those_of_timms_own_evaluation(name, size):
    """The oracle is the transform that timm makes for the model."""
    backbone = TimmBackbone(name, size)
    config = resolve_model_data_config(timm.create_model(name, num_classes=0))
    config["input_size"] = (3, backbone.input.size, backbone.input.size)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    ours = inputs_of(PixelArray(pixels[None]), backbone.input)[0]
    assert torch.allclose(ours, create_transform(**config, is_training=False)(Image.fromarray(pixels)), atol=1e-5)


def test_a_border_crop_pads_the_shorter_side():
    spec = InputSpec(3, 8, (0.0,) * 3, (1.0,) * 3, crop="border")
    ours = inputs_of(PixelArray(np.full((1, 8, 16, 3), 255, np.uint8)), spec)[0]
    assert ours.shape == (3, 8, 8)
    assert (ours[:, 2:6] == 1).all()
    assert (ours[:, :2] == 0).all()
    assert (ours[:, 6:] == 0).all()
    padded = inputs_of(PixelArray(np.full((1, 8, 16, 3), 255, np.uint8)), replace(spec, mean=(0.2, 0.4, 0.6)))
    assert torch.allclose(padded[0, :, 0], torch.zeros(3, 8), atol=3e-3), "the mean, which becomes zero"


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    for ending in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"ramp.{ending}")
        assert (np.asarray(opened(tmp_path / f"ramp.{ending}", 1)) == ramp >> 8).all()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UsageError, match=r"float.tif: holds values beyond 16 bits \(mode F\)"):
        opened(tmp_path / "float.tif", 1)


def test_colour_becomes_grey_by_luminance_where_the_backbone_is_grey():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3, 4, 4, 3))
    inputs = inputs_of(PixelArray(images), InputSpec(1, 4, (0.0,), (1.0,)))
    assert torch.allclose(inputs.mean((1, 2, 3)), torch.tensor([0.299, 0.587, 0.114]), atol=4e-3)


def test_channels_that_do_not_fit_are_named():
    with pytest.raises(UsageError, match=r"images of 2 channels: the backbone takes 3; .* backbone.in_chans=2"):
        PixelArray(np.zeros((1, 4, 4, 2), np.uint8)).materialize(InputSpec(3, 4, (0.5,) * 3, (0.5,) * 3))
    five = inputs_of(PixelArray(np.full((1, 4, 4, 5), 51, np.uint8)), InputSpec(5, 4, (0.1,) * 5, (0.1,) * 5))
    assert torch.allclose(five, torch.ones(1, 5, 4, 4))
    with pytest.raises(UsageError, match=r"backbone.in_chans=5: images have 1, 3 or 4 channels"):
        ImageFiles((Path("x.png"),)).materialize(InputSpec(5, 4, (0.1,) * 5, (0.1,) * 5))


def test_files_are_read_upright_and_in_the_backbones_channels(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[:3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter when it was taken
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    for channels in (1, 3, 4):
        picture = np.asarray(opened(tmp_path / "a.png", channels))
        assert picture.shape[:2] == (4, 6)
        grey = picture if channels == 1 else picture[..., 0]
        assert (grey[:, :3] == 0).all()
        assert (grey[:, 3:] == 255).all()


@pytest.mark.parametrize("content", [b"", b"a text", None])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is None:
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:500]
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.jpg: not a readable image") as caught:
        opened(path, 3)
    assert "\n" not in str(caught.value)
