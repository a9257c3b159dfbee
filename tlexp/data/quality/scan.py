"""Facts about each example from reading it once: whether it can be read, its size, and keys to find duplicates by."""

from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from tlexp.data.cache import Cache
from tlexp.data.images.decode import UnreadableImageError
from tlexp.errors import UsageError
from tlexp.fingerprint import digest

SMALL = 64  # pixels: below, a thumbnail is too coarse to tell two images apart
FORMAT = 4  # to be increased where the same file would have other facts


class Facts(NamedTuple):
    """Facts about one example.

    Attributes:
        error: why it cannot be read; None where it can.
        width: in pixels, or characters of a text.
        height: in pixels; 0 for a text.
        mode: Pillow's colour mode; empty for a text.
        content: equal for examples with the same pixels or the same words.
        perceptual_hash: 64 bits of which near duplicates share nearly all; 0 for a text or a small image.
        transient: whether the machine may be the cause of the error rather than the file.
        brightest: the largest value of a grey image of more than eight bits, of 255; 255 for others.
        blank: whether all pixels are the same.
        frames: number of frames in the file; 1 for a text.
    """

    error: str | None = None
    width: int = 0
    height: int = 0
    mode: str = ""
    content: str = ""
    perceptual_hash: int = 0
    transient: bool = False
    brightest: int = 255
    blank: bool = False
    frames: int = 1


def facts(inputs: Any, cache: Cache | None = None) -> list[Facts]:
    """Returns the facts of each example, in order; those of images are kept in the cache."""
    if inputs.kind == "texts":
        return [Facts(width=len(text), content=digest(" ".join(text.casefold().split()))) for text in inputs.texts]

    def inspect(index: int) -> list[Any]:
        return list(_facts(inputs, index))

    if cache is None:
        return [Facts(*inspect(index)) for index in range(len(inputs))]
    key = digest(inputs.root, str(FORMAT), PIL.__version__)
    keys = inputs.content_keys()
    rows = cache.values("facts", key, keys, inspect, "reading images", lambda row: not Facts(*row).transient)
    return [Facts(*row) for row in rows]


def check_readable(inputs: Any, cache: Cache | None = None) -> list[Facts]:
    """Checks that every example can be read, reading those that were not read before; returns the facts.

    Raises:
        UsageError: for the first that cannot, by its location, with the number of others.
    """
    known = facts(inputs, cache)
    bad = [(index, fact.error) for index, fact in enumerate(known) if fact.error]
    if bad:
        index, reason = bad[0]
        others = f"; and {len(bad) - 1} more; run tlexp-check-data to list them" if bad[1:] else ""
        raise UsageError(f"{inputs.location(index)}: {reason}; fix or remove it, or set on_bad=skip{others}")
    return known


def _facts(inputs: Any, index: int) -> Facts:
    try:
        image = inputs.open(index)
    except UnreadableImageError as error:
        return Facts(error.reason, transient=error.transient)
    mode = image.mode
    colours = image.convert("RGBA" if "A" in mode else "RGB")
    content = digest(str(colours.size), colours.tobytes())
    extrema: Any = colours.getextrema()
    known = (image.width, image.height, mode, content, _perceptual_hash(image))
    in_file = {name: image.info[name] for name in ("brightest", "frames") if name in image.info}
    return Facts(None, *known, blank=all(low == high for low, high in extrema), **in_file)


def _perceptual_hash(image: Image.Image) -> int:
    """Returns the signs of 64 horizontal differences of a 9x8 thumbnail: a "difference hash" (Krawetz 2013)."""
    if min(image.size) < SMALL:
        return 0
    thumbnail = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)
