"""The two sides of an image data set: a source that opens images, and a store that gives the backbone its pixels."""

from typing import ClassVar, Protocol

from PIL import Image
from torch import Tensor

from tlexp.data.samples import Indices


class ImageSource(Protocol):
    """Where images come from: files, columns of a table, arrays."""

    kind: ClassVar[str]

    @property
    def root(self) -> str:
        """What all images belong to, so that the cache keeps them together."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def content_keys(self) -> list[str]:
        """Returns a key of each image that changes with its content."""

    def location(self, index: int) -> str:
        """Returns where a person finds an image."""

    def open(self, index: int) -> Image.Image:
        """Returns an image, upright, with at most eight bits per channel.

        Raises:
            UnreadableImageError: for one that cannot be read.
        """


class ImageStore(Protocol):
    """Images as a backbone takes them.

    Attributes:
        slow: whether an image costs so much that DataLoader workers should fetch it ahead.
        key: changes where any of the images does.
        frames: how many frames the file of each has, of which the first is used; empty where that is not known.
        brightest: the largest value of the grey images of more than eight bits, of 255; 255 if there are others.
    """

    slow: bool
    key: str
    frames: list[int]
    brightest: int

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, indices: Indices) -> Tensor:
        """Returns images as uint8 (batch, channels, size, size)."""

    def image(self, index: int) -> Tensor:
        """Returns one image as uint8 (channels, height, width)."""
