"""What went wrong, in one line: our own errors say it already, those of Hydra and OmegaConf are shortened."""

import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import get_type_hints

import yaml
from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException

from tlexp.config.load import CONF, option_files
from tlexp.config.schema import Config
from tlexp.errors import JobsFailedError, RankFailedError, TrainingDivergedError, UsageError

_OURS = (UsageError, TrainingDivergedError, RankFailedError, JobsFailedError)
_EXPECTED = (*_OURS, CompactHydraException, OmegaConfBaseException)
_INTO_NULL = "Unexpected type for root: NoneType"  # an assertion of OmegaConf, where an override goes into null


def is_expected(error: Exception) -> bool:
    """Returns whether one line says all there is to say of an error; a bug shows its traceback."""
    return isinstance(error, _EXPECTED) or str(error) == _INTO_NULL


# What other tools call an option, where that is not similar to its name.
SYNONYMS = {
    "arch": "backbone",
    "batch": "batch_size",
    "dataset": "data",
    "learning_rate": "lr",
    "model": "backbone",
    "momentum": "optimizer.momentum",
    "num_epochs": "epochs",
    "pretrained": "init=pretrained",
    "weight_decay": "optimizer.weight_decay",
}


def similar_option(name: str) -> str | None:
    """Returns the option that a wrong name is most likely to mean; None where nothing is similar."""
    section, _, key = name.rpartition(".")
    if not section and key in SYNONYMS:
        return SYNONYMS[key]
    group = _group(section)
    known = set() if section else {item.name for item in fields(Config)}
    if is_dataclass(kind_of := get_type_hints(Config).get(section)):
        known |= {item.name for item in fields(kind_of)}
    for file in (CONF / group).glob("*.yaml") if group else ():
        content = yaml.safe_load(file.read_text()) or {}
        known |= set(content.get(section, content) if isinstance(content, dict) else ())
    close = get_close_matches(key, known, n=1, cutoff=0.75)
    return ".".join(filter(None, (section, close[0]))) if close else None


def _group(section: str) -> str:
    return "dataset" if section in ("data.target", "data.source", "data.shifted") else section


def _options_with(name: str) -> list[str]:
    """Returns the options of a group that have a key."""
    section, _, key = name.rpartition(".")
    group = _group(section)
    choice = f"{group}@{section}" if group != section else group
    files = option_files(CONF / group)
    contents = {file.stem: yaml.safe_load(file.read_text()) or {} for file in files}
    # A strategy's file holds its options under their section, beside the recipe that it sets.
    return [f"{choice}={name}" for name, content in contents.items() if key in {**content, **content.get(section, {})}]


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
        known = " ".join(file.stem for file in option_files(CONF / group))
        return f"Could not find '{group}/{option}' Available options in '{group}': {known}"
    if "Could not find 'data/" in text:  # Hydra lists the old names too
        old = {file.stem for file in (CONF / "data").glob("*.yaml")} - {f.stem for f in option_files(CONF / "data")}
        start, available, names = text.partition("Available options in 'data': ")
        return start + available + " ".join(name for name in names.split() if name not in old)
    if "To append to your config use +" in text or "is not in struct" in text or "not in 'Config'" in text:
        name = key or (re.search(r"Could not override '([^']+)'", text) or ["", ""])[1]
        similar = similar_option(name) if name else None
        hint = f"did you mean {similar}? " if similar else ""
        if similar == name:  # an option of another choice in this group
            hint = f"it is one of {', '.join(_options_with(name))}; "
        return f"{text.split('. To append')[0].split(' Key ')[0]}: no such option; {hint}--help lists them"
    if (override := getattr(error, "override", None)) and override.endswith(","):
        return f"{override}: ends with a comma; give values without spaces between them, such as alpha=0,0.1"
    if "mismatched input" in text or "no viable alternative" in text or "token recognition" in text:
        return f"{text}; a value with = or other special characters needs quotes: 'key=\"value\"'"
    return f"{key}: {text}" if key and key not in text else text
