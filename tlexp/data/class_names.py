"""Class names that look the same: usually one class, written in two ways."""

import unicodedata
from collections.abc import Sequence

SHOWN = 3  # pairs or names in a message
INVISIBLE = ("Cf", "Cc")  # Unicode's categories of formats and controls, such as a zero-width space


def canonical(name: str) -> str:
    """Returns what names share that differ in case, spaces, underscores, hyphens, accents' code points or invisibly."""
    text = unicodedata.normalize("NFKC", name).casefold()
    kept = "".join(c for c in text if unicodedata.category(c) not in INVISIBLE and not c.isspace() and c != "_")
    return kept[:1] + kept[1:].replace("-", "") or name  # a minus at the start means something


def similar_names(names: Sequence[str]) -> list[str]:
    """Notes names of one data set that look the same."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(canonical(name), []).append(name)
    similar = (", ".join(map(_shown, same)) for same in spellings.values() if len(same) > 1)
    return [f"the classes {same} differ in case, spaces or signs only" for same in similar]


def look_alike(name: str, names: Sequence[str]) -> str:
    """Returns the first of some other names that looks the same, as a hint for a message; empty where none does."""
    same = next((other for other in names if other != name and canonical(other) == canonical(name)), None)
    return "" if same is None else _pair(name, same)


def nearly_the_same(target: Sequence[str], other: Sequence[str]) -> str:
    """Returns in words why the classes of two domains are not the same, though some look so; empty where none do."""
    if tuple(target) != tuple(other) and set(target) == set(other):
        return "they are in another order; give both the same classes="
    alike = {canonical(name): name for name in set(other) - set(target)}
    own, known = set(other), [(name, alike.get(canonical(name))) for name in target]
    pairs = [_pair(name, same) for name, same in known if same is not None and name not in own]
    more = f", and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
    return f"{'; '.join(pairs[:SHOWN])}{more}; rename one of each pair" if pairs else ""


def difference(target: Sequence[str], other: Sequence[str], role: str = "source") -> str:
    """Returns in words how the classes of two domains differ."""
    theirs, ours = set(other), set(target)
    only = {"target": [n for n in target if n not in theirs], role: [n for n in other if n not in ours]}
    parts = [
        f"only the {owner} has {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
        for owner, names in only.items()
        if names
    ]
    return nearly_the_same(target, other) or "; ".join(parts)


def _pair(name: str, same: str) -> str:
    return f"{_shown(name)} and {_shown(same)} differ in case, spaces or signs only"


def _shown(name: str) -> str:
    """Quotes a name; what cannot be told apart on the screen by its code points."""
    plain = name == unicodedata.normalize("NFKC", name) and name.isprintable()
    return repr(name) if plain else ascii(name)
