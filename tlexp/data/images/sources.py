"""Where images come from: arrays, files, columns of tables."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlexp.backbones.base import InputSpec
from tlexp.data.cache import Cache, Decoded
from tlexp.data.images.decode import (
    MODES,
    ValueRange,
    convert_channels,
    open_image,
    resize_and_crop,
    resize_only,
)
from tlexp.data.images.protocols import ImageSource, ImageStore
from tlexp.data.images.stores import InMemory, store_images
from tlexp.data.samples import Indices
from tlexp.errors import UsageError
from tlexp.file_names import as_text
from tlexp.fingerprint import digest

# Image formats that Pillow reads by itself, without films, plots and documents.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .tif .tiff .webp .avif .avifs .jp2 .j2k .jpx "  # noqa: SIM905
    ".ppm .pgm .pbm .pnm .tga .ico .pcx .sgi .dds .qoi".split()
)


@dataclass(frozen=True)
class PixelArray:
    """Images in memory: uint8 of shape (n, height, width, channels)."""

    pixels: NDArray[np.uint8]

    kind: ClassVar[str] = "images"
    root: ClassVar[str] = "arrays"

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Indices) -> "PixelArray":
        """Returns some of them."""
        return PixelArray(self.pixels[indices])

    def content_keys(self) -> list[str]:
        """Returns a digest of each."""
        return [digest(image.tobytes(), str(image.shape)) for image in self.pixels]

    def stable_ids(self) -> list[str]:
        """Returns a digest of each."""
        return self.content_keys()

    def location(self, index: int) -> str:
        """Returns its number, counted from 1."""
        return f"image {index + 1}"

    def open(self, index: int) -> Image.Image:
        """Returns one as a Pillow image."""
        image = self.pixels[index]
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)

    def materialize(self, spec: InputSpec, cache: Cache | None = None, keep_margins: bool = False) -> ImageStore:
        """Converts them to the size and channels of the backbone's input.

        Raises:
            UsageError: where the channels do not fit.
        """
        height, width, channels = self.pixels.shape[1:]
        if channels not in (1, spec.channels) and not {channels, spec.channels} <= MODES.keys():
            remedy = f"the backbone takes {spec.channels}; choose another one or backbone.in_chans={channels}"
            raise UsageError(f"images of {channels} channels: {remedy}")
        if height == width == spec.size == (spec.resize or spec.size) and channels in (1, spec.channels):
            return InMemory(np.repeat(self.pixels, spec.channels // channels, axis=3))
        return _materialize(self, spec, cache, keep_margins)


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, read when they are needed.

    Attributes:
        paths: of the files.
        root: the folder that all of them belong to.
        value_range: see `open_image`.
    """

    paths: tuple[Path, ...]
    root: str = ""
    value_range: ValueRange = None

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Indices) -> "ImageFiles":
        """Returns some of them."""
        return replace(self, paths=tuple(self.paths[index] for index in indices))

    def content_keys(self) -> list[str]:
        """Returns path, size and times of each file: it cannot change without one of them."""
        return [_file_key(path) + _range_key(self.value_range) for path in self.paths]

    def stable_ids(self) -> list[str]:
        """Returns the path of each relative to their folder."""
        return [as_text(path).removeprefix(self.root) for path in self.paths]

    def location(self, index: int) -> str:
        """Returns its path."""
        return as_text(self.paths[index])

    def open(self, index: int) -> Image.Image:
        """Reads one, upright."""
        return open_image(self.paths[index], self.location(index), self.value_range)

    def materialize(self, spec: InputSpec, cache: Cache | None = None, keep_margins: bool = False) -> ImageStore:
        """Reads, rotates, resizes and crops each of them once.

        Raises:
            UsageError: for a file that is not a readable image, by its path.
        """
        return _materialize(self, spec, cache, keep_margins)


@dataclass(frozen=True)
class EncodedImages:
    """Images as encoded bytes, such as a column of a table holds.

    Attributes:
        column: maps a row to the bytes of its image file.
        rows: which rows these are.
        root: the name of the column in messages.
        value_range: see `open_image`.
    """

    column: Callable[[int], bytes]
    rows: Indices
    root: str
    value_range: ValueRange = None

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Indices) -> "EncodedImages":
        """Returns some of them."""
        return replace(self, rows=self.rows[indices])

    def content_keys(self) -> list[str]:
        """Returns a digest of each."""
        return [digest(self._content(index)) + _range_key(self.value_range) for index in range(len(self.rows))]

    def stable_ids(self) -> list[str]:
        """Returns the row of each."""
        return [str(row) for row in self.rows]

    def location(self, index: int) -> str:
        """Returns its row, counted from 1."""
        return f"{self.root}: row {int(self.rows[index]) + 1}"

    def open(self, index: int) -> Image.Image:
        """Reads one, upright."""
        return open_image(io.BytesIO(self._content(index)), self.location(index), self.value_range)

    def _content(self, index: int) -> bytes:
        try:
            return self.column(int(self.rows[index]))
        except OSError:
            return b""  # a missing file; reported when it is opened

    def materialize(self, spec: InputSpec, cache: Cache | None = None, keep_margins: bool = False) -> ImageStore:
        """Reads, rotates, resizes and crops each of them once.

        Raises:
            UsageError: for a row that is not a readable image.
        """
        return _materialize(self, spec, cache, keep_margins)


def _file_key(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return f"{as_text(path)}?"  # a missing file; reported when it is opened
    return f"{as_text(path)}?{stat.st_size}.{stat.st_mtime_ns}.{stat.st_ctime_ns}"


def _range_key(value_range: ValueRange) -> str:
    return "" if value_range is None else f"#{value_range[0]:g}-{value_range[1]:g}"


def _materialize(source: ImageSource, spec: InputSpec, cache: Cache | None, keep_margins: bool) -> ImageStore:
    """Returns images as a backbone takes them, or resized only where they keep their margins.

    Raises:
        UsageError: for an image that cannot be read, by its location.
    """
    preprocess = resize_only if keep_margins else resize_and_crop
    convert_channels(Image.new("L", (1, 1)), spec.channels)  # raises for channels that no image has

    def decode(index: int) -> Decoded:
        image = source.open(index)
        return Decoded(preprocess(image, spec), image.info.get("frames", 1), image.info.get("brightest", 255))

    return store_images(source, decode, spec, cache, keep_margins)
