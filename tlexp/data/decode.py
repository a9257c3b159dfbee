"""One picture: how it is read, and what a backbone takes of it."""

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
COMMON = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # what Pillow converts to each of them


class UnreadableImageError(UsageError):
    """An image that is not one.

    Attributes:
        reason: why, without its name and the remedy.
        passing: whether it may be the machine's fault rather than the file's, such as too many open files.
    """

    def __init__(self, message: str, reason: str = "", passing: bool = False) -> None:
        super().__init__(message)  # torch hands an error from a worker over by its message alone
        self.reason, self.passing = reason, passing


def _unreadable(where: str, reason: str, passing: bool = False) -> UnreadableImageError:
    return UnreadableImageError(f"{where}: {reason}; mend or remove it, or on_bad=skip", reason, passing)


def opened(file: Any, where: str) -> Image.Image:
    """Reads an image as its camera meant it, upright, with at most eight bits a channel.

    Raises:
        UnreadableImageError: for what is none.
    """
    try:
        with warnings.catch_warnings():
            # Large pictures are welcome; beyond twice Pillow's bound it refuses them by itself.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return _eight_bit(ImageOps.exif_transpose(picture), where)
    except UsageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a torn header leads them to
        reason = f"{error or type(error).__name__}".replace("\n", " ")
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else reason
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        raise _unreadable(where, f"not a readable image ({reason})", passing) from error


def _eight_bit(picture: Image.Image, where: str) -> Image.Image:
    """Keeps the upper eight of sixteen grey bits, as Pillow does for colours; its own conversion clips them at 255."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        if picture.mode in ("P", "PA", "La", "RGBa") or "transparency" in picture.info:
            return picture.convert("RGBA")  # the same colours without Pillow's warning
        picture.load()
        return picture if picture.mode in COMMON else picture.convert("RGB")
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise _unreadable(where, f"holds values beyond 16 bits (mode {picture.mode}); store 8 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def channelled(picture: Image.Image, channels: int) -> Image.Image:
    """Returns a picture with `channels` channels.

    Raises:
        UsageError: for channels that no picture has.
    """
    if channels not in MODES:
        raise UsageError(f"backbone.in_chans={channels}: pictures have 1, 3 or 4 channels; use another one")
    return picture.convert(MODES[channels])


def fitted(picture: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resizes and crops a picture as the backbone's own evaluation does: uint8 (size, size, channels).

    Raises:
        UsageError: for channels that a picture cannot have or an interpolation that is not known.
    """
    from torchvision.transforms.functional import center_crop

    return _array(center_crop(_resized(channelled(picture, spec.channels), spec), [spec.size, spec.size]))


def shrunk(picture: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resizes a picture as the backbone's own evaluation does and keeps its margins, for crops at random.

    Returns:
        uint8 (height, width, channels), at least `spec.size` both ways.
    """
    return _array(_resized(channelled(picture, spec.channels), spec))


def _resized(picture: Image.Image, spec: InputSpec) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    known = {mode.value: mode for mode in InterpolationMode}
    if spec.interpolation not in known:
        raise UsageError(f"interpolation={spec.interpolation}: choose one of {', '.join(known)}")
    side = spec.resize or spec.size
    scaled = partial(resize, interpolation=known[spec.interpolation], antialias=True)
    if spec.crop == "border":
        longer = max(picture.size)
        picture = scaled(picture, [max(1, floor(side * edge / longer)) for edge in reversed(picture.size)])
        filling = tuple(round(255 * value) for value in spec.mean)
        return ImageOps.pad(picture, (side, side), color=filling if spec.channels > 1 else filling[0])
    resized: Image.Image = scaled(picture, [side, side] if spec.crop == "squash" else [side])
    return resized


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
