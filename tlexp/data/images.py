"""Pictures, in memory or in files, and what a backbone takes of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import floor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.data.samples import Indices
from tlexp.errors import UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageTable:
    """Images as uint8 (n, channels, size, size), normalised when they are taken."""

    def __init__(self, pixels: Tensor, spec: InputSpec) -> None:
        self.pixels = pixels
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Indices) -> Tensor:
        return (self.pixels[indices].float() / 255 - self.mean) / self.std


@dataclass(frozen=True)
class PixelArray:
    """Images in memory: uint8 of shape (n, height, width, channels)."""

    pixels: NDArray[np.uint8]

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Indices) -> "PixelArray":
        """Returns some of them."""
        return PixelArray(self.pixels[indices])

    def prepared(self, spec: InputSpec) -> ImageTable:
        """Brings them to the size and the channels that the backbone takes.

        Raises:
            UsageError: where the channels do not fit.
        """
        pixels, (height, width, channels) = self.pixels, self.pixels.shape[1:]
        if channels not in (1, spec.channels) and not {channels, spec.channels} <= MODES.keys():
            rule = f"the backbone takes {spec.channels}; choose another one or backbone.in_chans={channels}"
            raise UsageError(f"images of {channels} channels: {rule}")
        if height == width == spec.size == (spec.resize or spec.size) and channels in (1, spec.channels):
            stored = torch.from_numpy(np.repeat(pixels, spec.channels // channels, axis=3))
            return ImageTable(stored.permute(0, 3, 1, 2).contiguous(), spec)
        pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in pixels)
        return _table((fitted(picture, spec) for picture in pictures), len(pixels), spec)


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, read when they are needed."""

    paths: tuple[Path, ...]

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Indices) -> "ImageFiles":
        """Returns some of them."""
        return ImageFiles(tuple(self.paths[index] for index in indices))

    def prepared(self, spec: InputSpec) -> ImageTable:
        """Reads, turns, resizes and crops each of them once.

        Raises:
            UsageError: for a file that is not a readable image, by its path.
        """
        return _table((fitted(opened(path, spec.channels), spec) for path in self.paths), len(self), spec)


def opened(path: Path, channels: int) -> Image.Image:
    """Reads an image as its camera meant it, upright and with `channels` channels.

    Raises:
        UsageError: for a file that is not a readable image or channels that no picture has.
    """
    if channels not in MODES:
        rule = f"image files have 1, 3 or 4 channels, the backbone takes {channels}"
        raise UsageError(f"{path.name}: {rule}; use another backbone.in_chans")
    try:
        with Image.open(path) as picture:
            return _eight_bit(ImageOps.exif_transpose(picture), path).convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: not a readable image ({error}); mend or remove it") from error


def _eight_bit(picture: Image.Image, path: Path) -> Image.Image:
    """Keeps the upper eight of sixteen bits, where Pillow alone would turn nearly all of them white."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UsageError(f"{path}: holds values of mode {picture.mode} beyond 16 bits; convert it to 8 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def fitted(picture: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resizes and crops a picture as the backbone's own evaluation does: uint8 (size, size, channels).

    Raises:
        UsageError: for channels that a picture cannot have or an interpolation that is not known.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    if spec.channels not in MODES:
        raise UsageError(f"backbone.in_chans={spec.channels}: pictures have 1, 3 or 4 channels")
    known = {mode.value: mode for mode in InterpolationMode}
    if spec.interpolation not in known:
        raise UsageError(f"interpolation={spec.interpolation}: choose one of {', '.join(known)}")
    picture, side = picture.convert(MODES[spec.channels]), spec.resize or spec.size
    scaled = partial(resize, interpolation=known[spec.interpolation], antialias=True)
    if spec.crop == "squash":
        picture = scaled(picture, [side, side])
    elif spec.crop == "border":
        longer = max(picture.size)
        picture = scaled(picture, [max(1, floor(side * edge / longer)) for edge in reversed(picture.size)])
        filling = tuple(round(255 * value) for value in spec.mean)
        picture = ImageOps.pad(picture, (side, side), color=filling if spec.channels > 1 else filling[0])
    else:
        picture = scaled(picture, [side])
    pixels = np.asarray(center_crop(picture, [spec.size, spec.size]))
    return pixels[..., None] if spec.channels == 1 else pixels


def _table(images: Iterator[NDArray[np.uint8]], n: int, spec: InputSpec) -> ImageTable:
    pixels = torch.empty(n, spec.channels, spec.size, spec.size, dtype=torch.uint8)
    for place, image in enumerate(images):
        pixels[place] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    return ImageTable(pixels, spec)
