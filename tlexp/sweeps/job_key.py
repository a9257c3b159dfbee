"""Which grid points have the same result by contract, and so share one job."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from tlexp.config.schema import NOT_HASHED, TRAINER_NOT_HASHED, Config
from tlexp.fingerprint import content_key
from tlexp.run_folder import KEY_LENGTH
from tlexp.version import __version__


def job_key(config: Config) -> str:
    """Returns 12 digits that two configurations share if and only if they have the same result by contract.

    A strategy's name is not part of it, so that `full_transfer` with `init=random` is `scratch`. With alpha = 0 nothing
    of the source is built: the form of the objective and the heads do not matter, and neither does the source itself
    unless weights start from it or a term uses it. Files count by name, size and modification time; so does the version
    of this package.
    """
    values: dict[str, Any] = {"version": __version__, **config.without(*NOT_HASHED)}
    values["trainer"] = {key: value for key, value in config.trainer.items() if key not in TRAINER_NOT_HASHED}
    values["strategy"] = {key: value for key, value in config.strategy.items() if key != "name"}
    if not config.weights.trains_source:
        values["objective"] = {key: value for key, value in values["objective"].items() if key != "form"}
        if "heads" in config.strategy and not trains_backbone(config):
            del values["strategy"]["heads"]
        values["head"] = "one" if config.head == "auto" else config.head
        if not _uses_source(config):
            values["data"] = {key: value for key, value in values["data"].items() if key not in ("source", "name")}
    if config.init != "source":
        del values["pretrain"]
    nodes = (config.data.target, config.data.source if _uses_source(config) else None, config.data.shifted)
    values["files"] = [_data_keys(json.dumps(node, sort_keys=True)) for node in nodes if node]
    values["files"] += [_path_keys(path) for path in (config.init, config.backbone["name"])]
    return content_key(values)[:KEY_LENGTH]


def is_inert(config: Config) -> bool:
    """Returns whether alpha cannot change the target's predictions, so that the result is that of alpha = 0.

    Where the source's own head was asked for (`objective.allow_inert_alpha`), the runs differ in what they measure on
    the source.
    """
    weights = config.weights
    if not (weights.trains_source and weights.trains_target) or config.objective.allow_inert_alpha or config.terms:
        return False
    if weights.acts_on_target(trains_backbone(config), separate_heads=True):
        return False  # whatever the heads, which take reading the data
    return config.head == "two" or (config.head == "auto" and _classes(config, "source") != _classes(config, "target"))


def trains_backbone(config: Config) -> bool:
    """Returns whether the strategy ever trains a stage of the backbone."""
    from hydra.utils import get_class

    return bool(getattr(get_class(config.strategy["_target_"]), "trains_backbone", True))


def _uses_source(config: Config) -> bool:
    return config.weights.trains_source or config.init == "source" or bool(config.terms)


_known_classes: dict[str, tuple[str, ...]] = {}


def _classes(config: Config, role: str) -> tuple[str, ...]:
    """Returns the class names of a domain, read once for all grid points that share it."""
    from tlexp.runs.domains import read_domain

    key = content_key({"role": role, "data": asdict(config.data), "split": config.split_seed})
    if key not in _known_classes:
        _known_classes[key] = tuple(read_domain(config, role).samples.classes)
    return _known_classes[key]


@cache
def _data_keys(node: str) -> list[str | None]:
    """Returns keys of the files behind a data set, given as JSON; looked up once for a sweep."""
    from tlexp.data.fingerprints import data_keys  # which imports torch

    return data_keys(json.loads(node))


@cache
def _path_keys(path: str) -> list[str | None]:
    """Returns the key of a file or folder; none for the name of an option or a network."""
    if not Path(path).is_absolute():
        return []
    from tlexp.data.fingerprints import path_key  # which imports torch

    return [path_key(path)]
