"""Values as Hydra's overrides take them, and arguments as they can be copied to a shell."""

import re
import shlex


def quoted(value: str) -> str:
    """Returns a value in quotes for an override, whatever characters it has."""
    # A backslash is itself unless a quote follows.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), value) + "'"


def argument(key: str, value: object) -> str:
    """Returns `key=value` to be copied to a command line, with quotes where Hydra or the shell need them."""
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z0-9_./:@+-]+", text)
    return shlex.quote(f"{key}={text if plain else quoted(text)}")
