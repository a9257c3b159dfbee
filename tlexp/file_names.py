"""Names of files as text: on most systems they are bytes, and need not be UTF-8."""

import os

from tlexp.errors import UsageError


def as_text(path: os.PathLike[str] | str) -> str:
    r"""Returns a path as it can be printed and stored: bytes that are no UTF-8 as `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_encoding(*values: str) -> None:
    """Checks that arguments can be part of a result.

    Raises:
        UsageError: for one with bytes that are no UTF-8.
    """
    for value in values:
        if (text := as_text(value)) != value:
            raise UsageError(
                f"{text}: holds bytes that are no UTF-8, which results cannot name; rename the file or folder"
            )
