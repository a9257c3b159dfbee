"""What is wrong with images that can be read: nearly black ones, several frames, a single colour."""

from collections.abc import Sequence

DARK = 63  # of 255: images without a brighter pixel have perhaps 10 to 14 bits, stored in 16


def darkness(role: str, brightest: int) -> list[str]:
    """Returns a notice where the brightest value of all images of a role, of 255, is that of a nearly black one."""
    if brightest > DARK:
        return []
    bits = 8 + max(2, brightest.bit_length())
    reason = "are black" if brightest == 0 else f"are nearly black, with no value above {brightest} of 255"
    remedy = f"if they hold {bits} bits in 16, set data.{role}.value_range=[0,{2**bits - 1}]"
    return [f"its images {reason}: {remedy}"]


def several_frames(frames: Sequence[int], locations: Sequence[str]) -> list[str]:
    """Returns a notice where images of a film, an animation or a stack have more frames than the one that is used."""
    several = [index for index, count in enumerate(frames) if count > 1]
    if not several:
        return []
    example = f"such as {locations[several[0]]} ({frames[several[0]]} frames)"
    return [f"{len(several):,} images have several frames, of which the first is used, {example}"]


def single_colour(blank: Sequence[bool], locations: Sequence[str]) -> list[str]:
    """Returns a notice where images show nothing."""
    indices = [index for index, is_blank in enumerate(blank) if is_blank]
    return [f"{len(indices):,} images are of a single colour, such as {locations[indices[0]]}"] if indices else []
