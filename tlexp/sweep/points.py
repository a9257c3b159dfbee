"""What a multirun asks for: axes, their combinations, and the job that answers each of them."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write

from tlexp import __version__
from tlexp import config as configuration
from tlexp.config import WHEREABOUTS, Config, content_key
from tlexp.errors import UsageError
from tlexp.sweep.layout import KEY_LENGTH, REPLICATES, short

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

SHORT = {"strategy": "", "backbone": "", "data": "", "alpha": "a", "seed": "s", "data.draw": "d", "data.shots": "n"}


@dataclass(frozen=True)
class Axis:
    """A key with the values it takes; a continuous one has none until a search suggests them."""

    name: str
    key: str
    values: tuple[str, ...]
    override: Override

    @property
    def repeats(self) -> bool:
        """Whether its values are repetitions of a question."""
        return self.name in REPLICATES


@dataclass(frozen=True)
class Question:
    """The overrides of a multirun, sorted into what varies and what does not."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    @property
    def key(self) -> str:
        """The same for a grown, shrunken or reordered grid: what varies and what is fixed, not the values."""
        silent = "|".join((*WHEREABOUTS, r"trainer\.enable_progress_bar"))
        fixed = sorted(each for each in self.fixed if not re.match(rf"[+~]*({silent})\b", each))
        return content_key({"axes": sorted(axis.name for axis in self.axes), "fixed": fixed})[:8]


@dataclass(frozen=True)
class Point:
    """One combination that was asked for, and the job that answers it.

    Attributes:
        values: as they were written, by axis.
        overrides: that make the job, which may be a simpler one with the same result.
        config: of the job.
        key: the same for points with the same result.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]
    config: Config
    key: str

    @property
    def folder(self) -> str:
        """The name of the job's folder: to read, and to find it by."""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', self.config.label)[:80]}-{self.key}"

    @property
    def name(self) -> str:
        """What its run is called in MLflow: the values that vary."""
        order = in_order(self.values)
        parts = [f"{SHORT.get(axis, axis.rsplit('.', 1)[-1])}{short(self.values[axis])}" for axis in order]
        return re.sub(r"[^A-Za-z0-9_.+-]+", "_", "-".join(parts) or self.config.label)[:100]


def in_order(axes: Iterable[str]) -> list[str]:
    """Returns axes as names have them, however they were given: the strategy first, repetitions last."""
    return sorted(axes, key=lambda axis: (axis in REPLICATES, axis != "strategy", axis))


def parsed(loader: "ConfigLoader", params: dict[str, Any], arguments: Sequence[str]) -> Question:
    """Sorts the overrides of a configuration and of the command line, of which the latter win.

    Raises:
        hydra.errors.HydraException: for what cannot be parsed.
        UsageError: for an axis that all jobs must agree on.
    """
    lines = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(loader).parse_overrides(lines)
    by_name = {each.get_key_element().lstrip("+~"): each for each in parsed}
    axes, fixed = [], []
    for name, each in by_name.items():
        key = each.get_key_element()
        if each.is_sweep_override():
            if name == "monitor" or name.startswith(("sweep.", "tracking", "hydra.")):
                rule = "says how all jobs are compared or kept, so it cannot vary between them; give one value"
                raise UsageError(f"{name}: {rule}")
            values = tuple(each.sweep_string_iterator()) if each.is_discrete_sweep() else ()
            axes.append(Axis(name, key, values, each))
        else:
            fixed.append(each.input_line or f"{key}={each.get_value_element_as_str()}")
    return Question(tuple(axes), tuple(fixed))


def combinations(axes: Iterable[Axis]) -> list[dict[str, str]]:
    """Returns every combination of the axes' values.

    Raises:
        UsageError: for an axis that has no values of its own.
    """
    axes = list(axes)
    for axis in axes:
        if not axis.values:
            rule = "a grid needs values; give them, or add sweep.trials=20 to search"
            raise UsageError(f"{axis.override.input_line}: {rule}")
    names = [axis.key for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def composed(loader: "ConfigLoader", master: DictConfig, overrides: Iterable[str]) -> Config:
    """Composes and checks one configuration of a multirun."""
    cfg = loader.load_sweep_config(master, list(overrides))
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return configuration.load(cfg, root=Path.cwd())


def point(loader: "ConfigLoader", master: DictConfig, question: Question, values: dict[str, str]) -> Point:
    """Composes and checks the configuration of one combination, keyed by the axes' own keys.

    Raises:
        UsageError: for a value outside its range.
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: for what does not exist.
    """
    overrides = (*question.fixed, *(f"{key}={value}" for key, value in values.items()))
    config = composed(loader, master, overrides)
    if config.resume is not None:
        raise UsageError(f"resume={config.resume}: with -m: the same command goes on by itself; leave it out")
    if is_inert(config):
        config, overrides = replace(config, alpha=0.0), (*overrides, "alpha=0")
    named = {key.lstrip("+~"): value for key, value in values.items()}
    return Point(named, overrides, config, job_key(config))


# Points with the same result -----------------------------------------------------------------------------------


def is_inert(config: Config) -> bool:
    """Whether alpha cannot reach the target, so that the point has the result of alpha = 0.

    So it is with a frozen backbone and an output layer for each domain. Where the source's own output layer was asked
    for (`objective.allow_inert_alpha`), the runs differ in what they say of the source.
    """
    if not (config.has_source_loss and config.has_target_loss) or config.objective.allow_inert_alpha or config.terms:
        return False
    if moves_backbone(config):
        return False
    return config.head == "two" or (config.head == "auto" and _classes(config, "source") != _classes(config, "target"))


def moves_backbone(config: Config) -> bool:
    """Whether the strategy ever moves a stage of the backbone."""
    from hydra.utils import get_class

    return bool(getattr(get_class(config.strategy["_target_"]), "moves_backbone", True))


_read: dict[str, tuple[str, ...]] = {}


def _classes(config: Config, role: str) -> tuple[str, ...]:
    """Returns the class names of a domain, read once for all points that share it."""
    from tlexp.assemble import read_domain

    key = content_key({"role": role, "data": asdict(config.data), "split": config.split_seed})
    if key not in _read:
        _read[key] = tuple(read_domain(config, role).samples.classes)
    return _read[key]


def job_key(config: Config) -> str:
    """Returns 12 digits that two configurations share if and only if they have the same result by contract.

    A strategy's name is no part of it, so that `full_transfer` with `init=random` is `scratch`. With alpha = 0 nothing
    of the source is built: its form and its heads say nothing, and neither does the source itself unless weights start
    from it or a term looks at it. Files count by name, size and time of change; so does the version of this package.
    """
    values: dict[str, Any] = {"version": __version__, **config.without(*WHEREABOUTS)}
    values["trainer"] = {key: value for key, value in config.trainer.items() if key != "enable_progress_bar"}
    values["strategy"] = {key: value for key, value in config.strategy.items() if key != "name"}
    if not config.has_source_loss:
        values["objective"] = {key: value for key, value in values["objective"].items() if key != "form"}
        if "heads" in config.strategy and not moves_backbone(config):
            del values["strategy"]["heads"]
        values["head"] = "one" if config.head == "auto" else config.head
        if config.init != "source" and not config.terms:
            values["data"] = {key: value for key, value in values["data"].items() if key not in ("source", "name")}
    if config.init != "source":
        del values["pretrain"]
    values["files"] = [_files(json.dumps(node, sort_keys=True)) for node in _data_nodes(config)]
    values["files"] += [_files(json.dumps(place)) for place in (config.init, config.backbone["name"])]
    return content_key(values)[:KEY_LENGTH]


def _data_nodes(config: Config) -> list[dict[str, Any]]:
    source = config.data.source if config.has_source_loss or config.init == "source" or config.terms else None
    return [node for node in (config.data.target, source, config.data.shifted) if node]


@cache
def _files(written: str) -> list[str | None]:
    """Returns keys of the files behind a data set or a path, given as JSON; looked up once for a sweep."""
    what = json.loads(written)
    if isinstance(what, str) and not Path(what).is_absolute():
        return []
    from tlexp.start import data_files, files_key  # which import torch

    return data_files(what) if isinstance(what, dict) else [files_key(what)]
