"""Where pictures come from, and what a backbone takes of one."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import floor
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tlexp.backbones.base import InputSpec
from tlexp.cache import Cache, digest
from tlexp.data.samples import Indices
from tlexp.data.tables import InMemory, Table, tabled
from tlexp.errors import UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
COMMON = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # what Pillow converts to each of them

# What a folder may hold: formats of pictures that Pillow reads by itself, without films, plots and documents.
ENDINGS = [
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".avif",
    ".avifs",
    ".jp2",
    ".j2k",
    ".jpx",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tga",
    ".ico",
    ".pcx",
    ".sgi",
    ".dds",
    ".qoi",
]


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
        return _opened(self.paths[index], self.where(index))

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
        return _opened(io.BytesIO(self._content(index)), self.where(index))

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


def _opened(file: Any, where: str) -> Image.Image:
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
