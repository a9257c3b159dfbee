"""From a node of the configuration to the object it describes."""

import inspect
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from hydra.utils import get_object, instantiate

from tlexp.errors import UsageError

# The extra to install, by the package that is missing without it.
EXTRAS = {"transformers": "text", "peft": "peft", "datasets": "hf"}


# What libraries raise where an option is wrong, wherever they notice it.
REFUSALS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    ImportError,
)


def reason(error: BaseException) -> str:
    """Returns what an error says in one line, with its kind where that alone would mean little."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return text if isinstance(error, TypeError | ValueError) and text else f"{kind}: {text}" if text else kind


def build(group: str, node: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Instantiates a node; what goes wrong there becomes one line that names the group.

    Raises:
        UsageError: for options that the object does not take, or a package of an extra that is not installed.
    """
    try:
        built = instantiate(node, *args, _convert_="all", **kwargs)
        if isinstance(built, partial):  # its last arguments come later, but wrong ones should be reported now
            inspect.signature(built.func).bind_partial(*built.args, **built.keywords)
        return built
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UsageError):
                raise cause from None
            if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
                install = f"pip install 'tlexp[{EXTRAS[cause.name]}]'"
                raise UsageError(f"{group}={node.get('name')}: needs the package {cause.name}; {install}") from None
        innermost = list(_causes(error))[-1]
        if isinstance(innermost, REFUSALS):
            raise UsageError(f"{group}: cannot build {node.get('_target_')}: {reason(innermost)}") from error
        raise


def find(group: str, target: str) -> Any:
    """Imports the class or function that a node names.

    Raises:
        UsageError: where it cannot be imported.
    """
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # which would print what is said here
    try:
        return get_object(target)
    except Exception as error:  # whatever goes wrong while a module of the user's is imported
        raise UsageError(f"{group}: cannot import {target}: {reason(list(_causes(error))[-1])}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
