"""Decoding and preprocessing of one image."""

import warnings
from collections.abc import Sequence
from functools import partial
from math import floor, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tlexp.backbones.base import InputSpec
from tlexp.errors import UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LONGEST = 10  # times the shorter side: of a longer image the middle, rather than a strip of millions of pixels
ValueRange = tuple[float, float] | None
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


def open_image(file: Any, location: str, value_range: ValueRange = None) -> Image.Image:
    """Reads an image upright, with at most eight bits per channel.

    Its `info` has the number of `frames` in the file, and the `brightest` value of a grey image of more bits.

    Args:
        file: a path or an open file.
        location: for messages.
        value_range: the values of grey images with more than eight bits that become black and white; None for those of
            16 bits.

    Raises:
        UnreadableImageError: for a file that is no readable image.
    """
    try:
        with warnings.catch_warnings():
            # Large images are welcome; beyond twice its bound Pillow refuses them by itself.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                frames, is_wide = _count_frames(image), _is_wide(image)
                upright = _eight_bit(ImageOps.exif_transpose(image), location, value_range)
                brightest = int(np.asarray(upright).max()) if is_wide else 255
                upright.info |= {"frames": frames, "brightest": brightest}
                return upright
    except UsageError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds of errors for corrupt files
        reason = f"{error or type(error).__name__}".replace("\n", " ")
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else reason
        transient = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        raise _unreadable(location, f"not a readable image ({reason})", transient) from error


def _count_frames(image: Image.Image) -> int:
    """Returns the number of frames; a photograph with a preview of itself has one."""
    if image.format == "MPO":
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # as above: a frame that is corrupt does not matter
        image.seek(0)
        return 1


def _is_wide(image: Image.Image) -> bool:
    """Returns whether an image is grey with more than eight bits; of such colours Pillow keeps the upper eight."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bit(image: Image.Image, location: str, value_range: ValueRange) -> Image.Image:
    """Keeps the upper eight of sixteen grey bits, as Pillow does for colours; its conversion of grey clips at 255."""
    if not _is_wide(image):
        if image.mode in ("P", "PA", "La", "RGBa") or "transparency" in image.info:
            return image.convert("RGBA")  # the same colours without Pillow's warning
        image.load()
        return image if image.mode in CONVERTIBLE else image.convert("RGB")
    values = np.asarray(image)
    if value_range is not None:
        low, high = value_range
        scaled = np.nan_to_num(255 * (values.astype(np.float64) - low) / (high - low), posinf=255, neginf=0)
        return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        remedy = "set value_range=[DARKEST,BRIGHTEST], or store 8 bits a channel"
        raise _unreadable(location, f"holds values beyond 16 bits (mode {image.mode}); {remedy}")
    return Image.fromarray((values >> 8).astype(np.uint8))


def check_range(value_range: Sequence[float] | None) -> ValueRange:
    """Returns the two ends of a range.

    Raises:
        UsageError: for anything else than two numbers, the smaller one first.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
        valid = low < high and isfinite(high - low)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UsageError(f"value_range={value_range}: two numbers, those of black and white, such as [0,4095]")
    return low, high


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
    resized: Image.Image = scaled(image, [side, side]) if spec.crop == "squash" else scaled(_middle(image), [side])
    return resized


def _middle(image: Image.Image) -> Image.Image:
    """Crops what is far longer than wide around its centre, which would become millions of pixels long."""
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    # An even number of pixels is cut, so that the centre stays where it is.
    x, y = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


def _array(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
