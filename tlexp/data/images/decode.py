"""Decoding and preprocessing of one image."""

import warnings
from functools import partial
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tlexp.backbones.base import InputSpec
from tlexp.errors import UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CONVERTIBLE = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # what Pillow converts to each of `MODES`


class UnreadableImageError(UsageError):
    """An image that cannot be read.

    Attributes:
        reason: why, without its location and the remedy.
        transient: whether the machine may be the cause rather than the file, such as too many open files.
    """

    def __init__(self, message: str, reason: str = "", transient: bool = False) -> None:
        super().__init__(message)  # torch passes an error from a worker on by its message alone
        self.reason, self.transient = reason, transient


def _unreadable(location: str, reason: str, transient: bool = False) -> UnreadableImageError:
    return UnreadableImageError(f"{location}: {reason}; fix or remove it, or set on_bad=skip", reason, transient)


def open_image(file: Any, location: str) -> Image.Image:
    """Reads an image upright, with at most eight bits per channel.

    Raises:
        UnreadableImageError: for a file that is no readable image.
    """
    try:
        with warnings.catch_warnings():
            # Large images are welcome; beyond twice its bound Pillow refuses them by itself.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _eight_bit(ImageOps.exif_transpose(image), location)
    except UsageError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds of errors for corrupt files
        reason = f"{error or type(error).__name__}".replace("\n", " ")
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else reason
        transient = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        raise _unreadable(location, f"not a readable image ({reason})", transient) from error


def _eight_bit(image: Image.Image, location: str) -> Image.Image:
    """Keeps the upper eight of sixteen grey bits, as Pillow does for colours; its conversion of grey clips at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        if image.mode in ("P", "PA", "La", "RGBa") or "transparency" in image.info:
            return image.convert("RGBA")  # the same colours without Pillow's warning
        image.load()
        return image if image.mode in CONVERTIBLE else image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise _unreadable(location, f"holds values beyond 16 bits (mode {image.mode}); store 8 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def convert_channels(image: Image.Image, channels: int) -> Image.Image:
    """Returns an image with `channels` channels.

    Raises:
        UsageError: for a number of channels that no image has.
    """
    if channels not in MODES:
        raise UsageError(f"backbone.in_chans={channels}: images have 1, 3 or 4 channels; use another one")
    return image.convert(MODES[channels])


def resize_and_crop(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resizes and crops an image as the backbone's own evaluation does: uint8 (size, size, channels).

    Raises:
        UsageError: for channels that an image cannot have or an unknown interpolation.
    """
    from torchvision.transforms.functional import center_crop

    return _array(center_crop(_resized(convert_channels(image, spec.channels), spec), [spec.size, spec.size]))


def resize_only(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resizes an image as the backbone's own evaluation does and keeps its margins, for random crops.

    Returns:
        uint8 (height, width, channels), at least `spec.size` both ways.
    """
    return _array(_resized(convert_channels(image, spec.channels), spec))


def _resized(image: Image.Image, spec: InputSpec) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    known = {mode.value: mode for mode in InterpolationMode}
    if spec.interpolation not in known:
        raise UsageError(f"interpolation={spec.interpolation}: choose one of {', '.join(known)}")
    side = spec.resize or spec.size
    scaled = partial(resize, interpolation=known[spec.interpolation], antialias=True)
    if spec.crop == "border":
        longer = max(image.size)
        image = scaled(image, [max(1, floor(side * edge / longer)) for edge in reversed(image.size)])
        fill = tuple(round(255 * value) for value in spec.mean)
        return ImageOps.pad(image, (side, side), color=fill if spec.channels > 1 else fill[0])
    resized: Image.Image = scaled(image, [side, side] if spec.crop == "squash" else [side])
    return resized


def _array(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
