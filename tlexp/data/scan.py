"""What can be known of examples by looking at each once: whether it can be read, its size, what it is the same as."""

from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from tlexp.cache import Cache, digest
from tlexp.data.decode import UnreadableImageError
from tlexp.errors import UsageError

SMALL = 64  # pixels: of less, a thumbnail is too coarse to tell two pictures apart
FORMAT = 3  # another number where the same file would have other facts


class Facts(NamedTuple):
    """Of one example.

    Attributes:
        error: why it cannot be read; None where it can.
        width: pixels, or letters of a text.
        height: pixels; 0 for a text.
        mode: how its colours are stored, in Pillow's words; empty for a text.
        content: equal for examples with the same pixels, or the same words.
        look: 64 bits that nearly the same pictures share nearly all of; 0 for a text or a small picture.
        passing: whether the error may be the machine's rather than the file's, such as too many open files.
    """

    error: str | None = None
    width: int = 0
    height: int = 0
    mode: str = ""
    content: str = ""
    look: int = 0
    passing: bool = False


def facts(inputs: Any, cache: Cache | None = None) -> list[Facts]:
    """Returns the facts of each example, in order; those of pictures are remembered in the cache."""
    if inputs.kind == "texts":
        return [Facts(width=len(text), content=digest(" ".join(text.casefold().split()))) for text in inputs.texts]

    def look(index: int) -> list[Any]:
        return list(_facts(inputs, index))

    if cache is None:
        return [Facts(*look(index)) for index in range(len(inputs))]
    key = digest(inputs.root, str(FORMAT), PIL.__version__)
    found = cache.values(
        "facts", key, inputs.names(), look, "reading pictures", lambda values: not Facts(*values).passing
    )
    return [Facts(*values) for values in found]


def check_readable(inputs: Any, cache: Cache | None = None) -> None:
    """Makes sure that every example can be read, looking at those that nobody has looked at yet.

    Raises:
        UsageError: for the first that cannot, by its name, with the number of others.
    """
    bad = [(index, found.error) for index, found in enumerate(facts(inputs, cache)) if found.error]
    if bad:
        index, reason = bad[0]
        more = f"; {len(bad) - 1} more beside it, which scripts/check_data.py lists" if bad[1:] else ""
        raise UsageError(f"{inputs.where(index)}: {reason}; mend or remove it, or on_bad=skip{more}")


def _facts(inputs: Any, index: int) -> Facts:
    try:
        picture = inputs.opened(index)
    except UnreadableImageError as error:
        return Facts(error.reason, passing=error.passing)
    mode = picture.mode
    colours = picture.convert("RGBA" if "A" in mode else "RGB")
    content = digest(str(colours.size), colours.tobytes())
    return Facts(None, picture.width, picture.height, mode, content, _look(picture))


def _look(picture: Image.Image) -> int:
    """Returns the signs of 64 horizontal differences of a 9x8 thumbnail: a "difference hash" (Krawetz 2013)."""
    if min(picture.size) < SMALL:
        return 0
    thumbnail = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)
