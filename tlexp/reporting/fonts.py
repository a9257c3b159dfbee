"""Names in any script and of any length: fonts with what matplotlib's own font lacks, and the ends of long paths."""

from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from tlexp.reporting.console import shorten_paths

OWN = "DejaVu Sans"
LONGEST = 30  # characters shown of a path or a word
NO_FONT = "Last Resort"  # comes with matplotlib and draws a box for every character


def make_readable(figure: Figure, ticks: str = "class") -> None:
    """Gives the texts of a figure fonts that have their characters; of long words and paths the ends are shown.

    Args:
        figure: changed.
        ticks: what ticks are called that no font can label, with their number.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            drawable = [label if _is_drawable(label) else f"{ticks} {n}" for n, label in enumerate(labels)]
            shown = [_shortened(label) for label in drawable]
            if len(set(shown)) < len(set(drawable)):  # they differ in the middle
                shown = [f"{label} ({n})" for n, label in enumerate(shown)]
            if shown != labels or _missing(OWN, "".join(labels)):
                # Drawing would take the old labels again.
                axis.set_ticklabels(shown, fontfamily=_fonts_for("".join(shown)))
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        content = text.get_text()
        if _missing(OWN, content) or _shortened(content) != content:
            drawn = "".join(c if c.isspace() or _is_drawable(c) else "?" for c in _shortened(content))
            text.set(text=drawn, fontfamily=_fonts_for(drawn))


def _shortened(text: str) -> str:
    """Returns a text with the ends of its long paths, and the start and the end of a single long word."""
    if text.startswith("$"):  # a formula
        return text
    text = shorten_paths(text, LONGEST)
    return text if len(text) <= LONGEST + 3 or " " in text else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


def _fonts_for(text: str) -> list[str]:
    return [OWN, *_fonts_with(_missing(OWN, text))]


def _is_drawable(text: str) -> bool:
    """Returns whether the fonts of this machine have all characters of a text."""
    lacking = _missing(OWN, text)
    for font in _fonts_with(lacking):
        lacking = _missing(font, lacking)
    return not lacking


@cache
def _fonts_with(characters: str) -> list[str]:
    """Returns names of installed fonts that together have as many of some characters as there are fonts for."""
    chosen, lacking = [], characters
    for name in sorted(_files().keys() - {OWN}):
        if not lacking:
            break
        if not name.startswith(NO_FONT) and len(rest := _missing(name, lacking)) < len(lacking):
            chosen.append(name)
            lacking = rest
    return chosen


def _missing(font: str, text: str) -> str:
    """Returns the characters of a text that a font does not have, each once and sorted."""
    if font == OWN and text.isascii():
        return ""
    known = _characters(font)
    return "".join(sorted({c for c in text if ord(c) not in known and not c.isspace()}))


@cache
def _characters(font: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(_files()[font]).get_charmap())
    except Exception:  # a font that was removed, or that matplotlib cannot read: its list may be old
        return frozenset()


@cache
def _files() -> dict[str, str]:
    """Returns the upright fonts of normal weight with their files."""
    fonts = font_manager.fontManager.ttflist
    return {font.name: font.fname for font in fonts if font.style == "normal" and font.weight in (400, "normal")}
