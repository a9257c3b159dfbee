"""Where the pixels of images are kept: in memory, in the cache, or nowhere, so that they are decoded each time.

Images stay bytes on their way to the model, which normalises them on its own device: a quarter of the memory and of the
traffic between processes and to a GPU.
"""

from collections.abc import Callable, Sequence

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.data.cache import Cache, Decoded, Pixels
from tlexp.data.images.protocols import ImageSource, ImageStore
from tlexp.data.samples import Indices
from tlexp.errors import UsageError
from tlexp.fingerprint import digest

FORMAT = 2  # to be increased where the same image would give other pixels
MARGIN = 1.6  # an image with its margins is about this much larger than its central square


class InMemory:
    """Images as one uint8 tensor (n, channels, size, size)."""

    slow = False

    def __init__(self, pixels: NDArray[np.uint8], frames: Sequence[int] = (), brightest: int = 255) -> None:
        self.key = digest(pixels.tobytes(), str(pixels.shape))
        self.frames, self.brightest = list(frames), brightest
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Indices) -> Tensor:
        return self.pixels[indices]

    def image(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        return self.pixels[index]


class Cached:
    """Images in the cache's file, which all jobs and processes of a machine read through the same memory."""

    slow = False

    def __init__(self, pixels: Pixels, spec: InputSpec, key: str) -> None:
        self.key = key
        self.flat, self.extents, self.channels = pixels.flat, pixels.extents, spec.channels
        self.frames, self.brightest = pixels.frames, pixels.brightest
        shape = (spec.size, spec.size, spec.channels)
        stride = int(np.prod(shape))
        # Where all are of one size they are the rows of an array, so that a batch is one indexing operation.
        uniform = (pixels.extents[:, 1:] == spec.size).all() and not (pixels.extents[:, 0] % stride).any()
        self.rows = pixels.extents[:, 0] // stride if uniform else None
        self.array = self.flat[: len(self.flat) // stride * stride].reshape(-1, *shape)

    def __len__(self) -> int:
        return len(self.extents)

    def __getitem__(self, indices: Indices) -> Tensor:
        if self.rows is None:
            return torch.stack([self.image(index) for index in indices])
        return torch.from_numpy(self.array[self.rows[indices]]).permute(0, 3, 1, 2)

    def image(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        start, height, width = self.extents[index]
        pixels = self.flat[start : start + height * width * self.channels].reshape(height, width, self.channels)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


class Lazy:
    """Images that are decoded whenever they are taken, since the cache has no room for them."""

    slow = True

    def __init__(self, decode: Callable[[int], Decoded], n: int, key: str) -> None:
        self.decode, self.n, self.key = decode, n, key
        self.frames: list[int] = []  # unknown
        self.brightest = 255

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, indices: Indices) -> Tensor:
        return torch.from_numpy(np.stack([self.decode(index).pixels for index in indices])).permute(0, 3, 1, 2)

    def image(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        return torch.from_numpy(self.decode(index).pixels.copy()).permute(2, 0, 1).contiguous()


def store_images(
    source: ImageSource,
    decode: Callable[[int], Decoded],
    spec: InputSpec,
    cache: Cache | None,
    keep_margins: bool,
) -> ImageStore:
    """Puts images where a run reads them from: into the cache, or into memory without one.

    Args:
        source: where they come from.
        decode: maps the index of an image to its pixels.
        spec: the backbone's input.
        cache: where they are stored; None to keep them in memory.
        keep_margins: whether they are not cropped, so that their shapes differ.

    Raises:
        UsageError: for an image that cannot be read.
    """
    n, keys = len(source), source.content_keys()
    geometry = {key: value for key, value in spec.described().items() if key not in ("mean", "std")}
    fill = spec.mean if spec.crop == "border" else ()
    entry = digest(source.root, str(geometry), str(fill), str(keep_margins), str(FORMAT), PIL.__version__)
    lazy = Lazy(decode, n, digest(entry, *keys))
    if cache is None:
        return lazy if keep_margins else _in_memory(decode, n, spec)

    def decode_or_error(index: int) -> Decoded | UsageError:
        try:
            return decode(index)
        except UsageError as error:
            return error

    side = spec.resize or spec.size
    size = int(MARGIN * side * side * spec.channels) if keep_margins else spec.size * spec.size * spec.channels
    pixels = cache.pixels(entry, keys, decode_or_error, size, "decoding")
    return lazy if pixels is None else Cached(pixels, spec, lazy.key)


def _in_memory(decode: Callable[[int], Decoded], n: int, spec: InputSpec) -> InMemory:
    pixels, brightest = np.empty((n, spec.size, spec.size, spec.channels), np.uint8), 0
    frames: list[int] = []
    for index in range(n):
        image = decode(index)
        pixels[index], brightest = image.pixels, max(brightest, image.brightest)
        frames.append(image.frames)
    return InMemory(pixels, frames, brightest)
