"""From stored pixels to what a backbone expects: its channels, size, interpolation, mean and standard deviation."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.errors import UsageError


def to_inputs(images: NDArray[np.uint8], spec: InputSpec) -> Tensor:
    """Converts uint8 images (n, height, width, channels) to float32 (n, *spec.shape), as the backbone was trained.

    Raises:
        UsageError: where colour images meet a grey backbone, or an interpolation that is not known.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, spec.channels, -1, -1)
    if pixels.shape[1] != spec.channels:
        rule = f"the backbone takes {spec.channels} channels; choose another backbone"
        raise UsageError(f"images of {pixels.shape[1]} channels: {rule}")
    if pixels.shape[-2:] != (spec.size, spec.size):
        if spec.interpolation not in ("bilinear", "bicubic"):
            raise UsageError(f"interpolation={spec.interpolation}: choose bilinear or bicubic")
        shape = (spec.size, spec.size)
        pixels = F.interpolate(pixels, shape, mode=spec.interpolation, antialias=True).clamp(0, 1)
    mean = torch.tensor(spec.mean).view(-1, 1, 1)
    std = torch.tensor(spec.std).view(-1, 1, 1)
    return ((pixels - mean) / std).contiguous()
