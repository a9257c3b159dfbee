"""Where pictures come from: arrays, files, columns of tables."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlexp.backbones.base import InputSpec
from tlexp.cache import Cache, digest
from tlexp.data.decode import MODES, channelled, fitted, opened, shrunk
from tlexp.data.samples import Indices
from tlexp.data.tables import InMemory, Table, tabled
from tlexp.errors import UsageError

# What a folder may hold: formats of pictures that Pillow reads by itself, without films, plots and documents.
ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .tif .tiff .webp .avif .avifs .jp2 .j2k .jpx "  # noqa: SIM905
    ".ppm .pgm .pbm .pnm .tga .ico .pcx .sgi .dds .qoi".split()
)


class Pictures(Protocol):
    """A source of pictures: files, columns of a table, arrays."""

    kind: ClassVar[str]

    @property
    def root(self) -> str:
        """What all of them lie in, for the cache to keep them together."""

    def __len__(self) -> int:
        """Returns the number of pictures."""

    def names(self) -> list[str]:
        """Returns a name for each that changes where its content does."""

    def where(self, index: int) -> str:
        """Returns what people know one by."""

    def opened(self, index: int) -> Image.Image:
        """Returns one, upright, with at most eight bits a channel.

        Raises:
            UnreadableImageError: for one that cannot be read.
        """


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

    def names(self) -> list[str]:
        """Returns a digest of each."""
        return [digest(image.tobytes(), str(image.shape)) for image in self.pixels]

    def identities(self) -> list[str]:
        """Returns a digest of each."""
        return self.names()

    def where(self, index: int) -> str:
        """Returns its number."""
        return f"image {index + 1}"

    def opened(self, index: int) -> Image.Image:
        """Returns one as a picture."""
        image = self.pixels[index]
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)

    def prepared(self, spec: InputSpec, cache: Cache | None = None, whole: bool = False) -> Table:
        """Brings them to the size and the channels that the backbone takes.

        Raises:
            UsageError: where the channels do not fit.
        """
        height, width, channels = self.pixels.shape[1:]
        if channels not in (1, spec.channels) and not {channels, spec.channels} <= MODES.keys():
            rule = f"the backbone takes {spec.channels}; choose another one or backbone.in_chans={channels}"
            raise UsageError(f"images of {channels} channels: {rule}")
        if height == width == spec.size == (spec.resize or spec.size) and channels in (1, spec.channels):
            return InMemory(np.repeat(self.pixels, spec.channels // channels, axis=3))
        return prepared(self, spec, cache, whole)


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, read when they are needed."""

    paths: tuple[Path, ...]
    root: str = ""

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Indices) -> "ImageFiles":
        """Returns some of them."""
        return ImageFiles(tuple(self.paths[index] for index in indices), self.root)

    def names(self) -> list[str]:
        """Returns the path, the size and the times of each: no file can change without one of them."""
        return [_named(path) for path in self.paths]

    def identities(self) -> list[str]:
        """Returns the path of each below their folder."""
        return [str(path).removeprefix(self.root) for path in self.paths]

    def where(self, index: int) -> str:
        """Returns its path."""
        return str(self.paths[index])

    def opened(self, index: int) -> Image.Image:
        """Reads one, upright."""
        return opened(self.paths[index], self.where(index))

    def prepared(self, spec: InputSpec, cache: Cache | None = None, whole: bool = False) -> Table:
        """Reads, turns, resizes and crops each of them once.

        Raises:
            UsageError: for a file that is not a readable image, by its path.
        """
        return prepared(self, spec, cache, whole)


@dataclass(frozen=True)
class EncodedImages:
    """Images as the content of files, such as a column of a table holds.

    Attributes:
        column: maps a row to the bytes of its image file.
        rows: which rows these are.
        root: what the column is called in messages.
    """

    column: Callable[[int], bytes]
    rows: Indices
    root: str

    kind: ClassVar[str] = "images"

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Indices) -> "EncodedImages":
        """Returns some of them."""
        return EncodedImages(self.column, self.rows[indices], self.root)

    def names(self) -> list[str]:
        """Returns a digest of each."""
        return [digest(self._content(index)) for index in range(len(self.rows))]

    def identities(self) -> list[str]:
        """Returns the row of each."""
        return [str(row) for row in self.rows]

    def where(self, index: int) -> str:
        """Returns its row, counted from 1."""
        return f"{self.root}: row {int(self.rows[index]) + 1}"

    def opened(self, index: int) -> Image.Image:
        """Reads one, upright."""
        return opened(io.BytesIO(self._content(index)), self.where(index))

    def _content(self, index: int) -> bytes:
        try:
            return self.column(int(self.rows[index]))
        except OSError:
            return b""  # of a path that leads nowhere; said when it is opened

    def prepared(self, spec: InputSpec, cache: Cache | None = None, whole: bool = False) -> Table:
        """Reads, turns, resizes and crops each of them once.

        Raises:
            UsageError: for a row that is not a readable image.
        """
        return prepared(self, spec, cache, whole)


def _named(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return f"{path}?"  # said when it is opened
    return f"{path}?{stat.st_size}.{stat.st_mtime_ns}.{stat.st_ctime_ns}"


def prepared(pictures: Pictures, spec: InputSpec, cache: Cache | None, whole: bool) -> Table:
    """Returns pictures as a backbone takes them, or `whole`, resized only.

    Raises:
        UsageError: for a picture that cannot be read, by its name.
    """
    view = shrunk if whole else fitted
    channelled(Image.new("L", (1, 1)), spec.channels)

    def decode(index: int) -> NDArray[np.uint8]:
        return view(pictures.opened(index), spec)

    return tabled(pictures, decode, spec, cache, whole)
