"""What went wrong, in one line: our own errors say it already, those of Hydra and OmegaConf are shortened."""

import re

from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException

from tlexp.config.load import CONF
from tlexp.errors import JobsFailedError, TrainingDivergedError, UsageError

_EXPECTED = (UsageError, TrainingDivergedError, JobsFailedError, CompactHydraException, OmegaConfBaseException)
_INTO_NULL = "Unexpected type for root: NoneType"  # an assertion of OmegaConf, where an override goes into null


def is_expected(error: Exception) -> bool:
    """Returns whether a user can act on an error; anything else is a bug and shows its traceback."""
    return isinstance(error, _EXPECTED) or str(error) == _INTO_NULL


def one_line(error: Exception) -> str:
    """Returns the message of an error as one line; those of Hydra and OmegaConf span several."""
    text = str(error)
    if text == _INTO_NULL:
        return "an override sets a key of what is null; choose an option first, such as dataset@data.source=NAME"
    if cause := getattr(error, "__cause__", None):
        text += f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
    text = text.split("Config search path:")[0]
    if "in DataLoader worker process" in text:  # the worker's traceback, whose last line is the message
        text = text.strip().splitlines()[-1].split("Error: ", 1)[-1]
    key = getattr(error, "full_key", None) or re.search(r"full_key: (\S+)", text)
    key = key.group(1) if isinstance(key, re.Match) else key
    text = re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", text)
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    if match := re.search(
        r"Could not load '(\w+)/([^']+)'", text
    ):  # in a list of options, where Hydra names no choices
        group, option = match.groups()
        known = " ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        return f"Could not find '{group}/{option}' Available options in '{group}': {known}"
    if "To append to your config use +" in text or "is not in struct" in text or "not in 'Config'" in text:
        return f"{text.split('. To append')[0].split(' Key ')[0]}: no such option; --help lists them"
    if "mismatched input" in text or "no viable alternative" in text or "token recognition" in text:
        return f"{text}; a value with = or other special characters needs quotes: 'key=\"value\"'"
    return f"{key}: {text}" if key and key not in text else text
