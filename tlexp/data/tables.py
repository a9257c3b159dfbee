"""Images by their number, wherever their pixels are: in memory, in the cache, or decoded each time.

They stay bytes on their way to the model, which normalises them where it is: a quarter of the memory and of the traffic
between processes and to a GPU.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.cache import Cache, Pixels, digest
from tlexp.data.samples import Indices
from tlexp.errors import UsageError

if TYPE_CHECKING:
    from tlexp.data.images import Pictures

FORMAT = 1  # another number where the same picture would give other pixels
MARGIN = 1.6  # a picture with its margins is about this much larger than the square in its middle


class Table(Protocol):
    """Images as a backbone takes them.

    Attributes:
        slow: whether an image costs so much that other processes should fetch it ahead.
        key: changes where any of the images does.
    """

    slow: bool
    key: str

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, indices: Indices) -> Tensor:
        """Returns images as uint8 (batch, channels, size, size), as they lie in memory."""

    def picture(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""


class InMemory:
    """Images as uint8 (n, channels, size, size)."""

    slow = False

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.key = digest(pixels.tobytes(), str(pixels.shape))
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Indices) -> Tensor:
        return self.pixels[indices]

    def picture(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        return self.pixels[index]


class Stored:
    """Images in the cache's file, which all jobs and processes of a machine read through the same memory."""

    slow = False

    def __init__(self, pixels: Pixels, spec: InputSpec, key: str) -> None:
        self.key = key
        self.flat, self.places, self.channels = pixels.flat, pixels.places, spec.channels
        self.shape = (spec.size, spec.size, spec.channels)
        stride = int(np.prod(self.shape))
        # Where all are of one size they are the rows of an array, so that a batch is one operation.
        uniform = (pixels.places[:, 1:] == spec.size).all() and not (pixels.places[:, 0] % stride).any()
        self.rows = pixels.places[:, 0] // stride if uniform else None
        self.array = self.flat[: len(self.flat) // stride * stride].reshape(-1, *self.shape)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Indices) -> Tensor:
        if self.rows is None:
            return torch.stack([self.picture(index) for index in indices])
        return torch.from_numpy(self.array[self.rows[indices]]).permute(0, 3, 1, 2)

    def picture(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        start, height, width = self.places[index]
        image = self.flat[start : start + height * width * self.channels].reshape(height, width, self.channels)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Streamed:
    """Images that are decoded whenever they are taken, since the cache has no room for them."""

    slow = True

    def __init__(self, decode: Callable[[int], NDArray[np.uint8]], n: int, key: str) -> None:
        self.decode, self.n, self.key = decode, n, key

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, indices: Indices) -> Tensor:
        return torch.from_numpy(np.stack([self.decode(index) for index in indices])).permute(0, 3, 1, 2)

    def picture(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
        return torch.from_numpy(self.decode(index).copy()).permute(2, 0, 1).contiguous()


def tabled(
    pictures: "Pictures",
    decode: Callable[[int], NDArray[np.uint8]],
    spec: InputSpec,
    cache: Cache | None,
    whole: bool,
) -> Table:
    """Puts pictures where a run reads them from: into the cache, into memory without one.

    Args:
        pictures: where they come from.
        decode: maps the number of a picture to its pixels (height, width, channels).
        spec: what the backbone takes.
        cache: where they are kept; None to keep them in memory.
        whole: whether they keep their margins, so that their shapes differ.

    Raises:
        UsageError: for a picture that cannot be read.
    """
    n, names = len(pictures), pictures.names()
    geometry = {key: value for key, value in spec.described().items() if key not in ("mean", "std")}
    filling = spec.mean if spec.crop == "border" else ()
    entry = digest(pictures.root, str(geometry), str(filling), str(whole), str(FORMAT), PIL.__version__)
    streamed = Streamed(decode, n, digest(entry, *names))
    if cache is None:
        return streamed if whole else InMemory(_stacked(decode, n, spec))

    def tried(index: int) -> NDArray[np.uint8] | UsageError:
        try:
            return decode(index)
        except UsageError as error:
            return error

    side = spec.resize or spec.size
    size = int(MARGIN * side * side * spec.channels) if whole else spec.size * spec.size * spec.channels
    stored = cache.pixels(entry, names, tried, size, "decoding")
    return streamed if stored is None else Stored(stored, spec, streamed.key)


def _stacked(decode: Callable[[int], NDArray[np.uint8]], n: int, spec: InputSpec) -> NDArray[np.uint8]:
    pixels = np.empty((n, spec.size, spec.size, spec.channels), np.uint8)
    for index in range(n):
        pixels[index] = decode(index)
    return pixels
