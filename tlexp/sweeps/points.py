"""What a multirun asks for: its axes, their combinations, and the job behind each grid point."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write

from tlexp.comparison.axes import REPLICATES, shorten_number
from tlexp.config.load import load
from tlexp.config.schema import LOCATED, NOT_HASHED, TRAINER_NOT_HASHED, Config
from tlexp.errors import UsageError
from tlexp.fingerprint import content_key
from tlexp.reporting.console import shorten_paths
from tlexp.sweeps.job_key import is_inert, job_key

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

ABBREVIATIONS = {
    "strategy": "",
    "backbone": "",
    "data": "",
    "alpha": "a",
    "seed": "s",
    "data.draw": "d",
    "data.shots": "n",
}
LONGEST_PATH = 24  # characters of a path in a name


@dataclass(frozen=True)
class Axis:
    """A key with the values it takes; a continuous one has none until a search suggests them.

    Attributes:
        name: the key without Hydra's signs.
        key: as it was given, such as `+terms` or `dataset@data.target`.
        values: as written on the command line.
        override: parsed by Hydra.
    """

    name: str
    key: str
    values: tuple[str, ...]
    override: Override

    @property
    def is_replicate(self) -> bool:
        """Whether its values repeat an experiment rather than change it."""
        return self.name in REPLICATES


@dataclass(frozen=True)
class SweepSpec:
    """The overrides of a multirun: axes that vary, and those that are fixed."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    @property
    def key(self) -> str:
        """The same for a grown, shrunken or reordered grid: depends on what varies and what is fixed, not on values."""
        ignored = "|".join((*NOT_HASHED, *(rf"trainer\.{name}" for name in TRAINER_NOT_HASHED)))
        fixed = sorted(override for override in self.fixed if not re.match(rf"[+~]*({ignored})\b", override))
        return content_key({"axes": sorted(axis.name for axis in self.axes), "fixed": fixed})[:8]

    @property
    def label(self) -> str:
        """A name to read, made of the axes."""
        names = [name.rsplit(".", 1)[-1] for name in naming_order(axis.name for axis in self.axes)]
        return "-".join(names) or "sweep"


@dataclass(frozen=True)
class GridPoint:
    """One combination of values, and the job that has its result.

    Attributes:
        values: as they were written, by axis.
        overrides: of the job, which may be a simpler one with the same result.
        config: of the job.
        key: the same for grid points with the same result.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]
    config: Config
    key: str

    @property
    def draw(self) -> str:
        """Which splits and which labels its job has: grid points that share it share their validation set."""
        return f"{self.config.split_seed}/{self.config.data.draw}"

    @property
    def folder(self) -> str:
        """The name of the job's folder, the same in every sweep that has the job: what it is, and its key."""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', what_it_is(self.config))[:100]}-{self.key}"

    @property
    def name(self) -> str:
        """The name of its run in MLflow: the values that vary."""
        parts = [self._short(axis) for axis in naming_order(self.values)]
        return re.sub(r"[^A-Za-z0-9_.+-]+", "_", "-".join(parts) or self.config.label)[:100]

    def _short(self, axis: str) -> str:
        value = shorten_paths(shorten_number(self.values[axis]), LONGEST_PATH)
        return f"{ABBREVIATIONS.get(axis, axis.rsplit('.', 1)[-1])}{value}"


def what_it_is(config: Config) -> str:
    """Returns the label of a configuration with what else sweeps often vary, where it is not the default."""
    data, recipe = config.data, config.recipe
    target = data.target["name"] if data.name in LOCATED else ""
    others = {
        "": target,
        "n": data.shots,
        "d": data.draw or None,
        "lr": config.lr if config.lr != recipe.lr else None,
        "e": config.epochs if config.epochs != recipe.epochs else None,
        "init": Path(config.init).name if config.init != recipe.init else None,
    }
    parts = [config.label, Path(config.backbone["name"]).name, *config.terms]
    return "-".join([*parts, *(f"{name}{value}" for name, value in others.items() if value not in (None, ""))])


class Composer:
    """Composes and checks configurations of one multirun.

    Args:
        loader: Hydra's.
        master: the configuration of the multirun.
        spec: its overrides.
    """

    def __init__(self, loader: "ConfigLoader", master: DictConfig, spec: SweepSpec) -> None:
        self._loader, self._master, self.spec = loader, master, spec

    def shared(self) -> Config:
        """Returns the configuration that all jobs share; axes, of which some must be set, have their first value."""
        first = [f"{axis.key}={axis.values[0]}" for axis in self.spec.axes if axis.values]
        return self._compose([*self.spec.fixed, *first])

    def point(self, values: dict[str, str]) -> GridPoint:
        """Returns the grid point of one combination, given by the axes' own keys.

        Raises:
            UsageError: for a value outside its range.
            hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: for an unknown option or value.
        """
        overrides = (*self.spec.fixed, *(f"{key}={value}" for key, value in values.items()))
        config = self._compose(overrides)
        check_metric(config)
        if config.resume is not None:
            raise UsageError(f"resume={config.resume}: not with -m; rerun the same command to resume a sweep")
        if is_inert(config):
            config, overrides = replace(config, alpha=0.0), (*overrides, "alpha=0")
        by_name = {key.lstrip("+~"): value for key, value in values.items()}
        return GridPoint(by_name, overrides, config, job_key(config))

    def _compose(self, overrides: Iterable[str]) -> Config:
        cfg = self._loader.load_sweep_config(self._master, list(overrides))
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return load(cfg, root=Path.cwd())


def check_metric(config: Config) -> None:
    """Checks that a job measures the reported metric.

    Raises:
        UsageError: for a metric of a domain that it does not test.
    """
    role = config.sweep.metric.split("/")[1]
    lacks_source = role == "source" and not config.weights.trains_source
    if lacks_source or (role == "shifted" and config.data.shifted is None):
        needs = "alpha above 0" if role == "source" else "a shifted test set, +dataset@data.shifted="
        raise UsageError(f"sweep.metric={config.sweep.metric}: every job must measure it, which needs {needs}")


def axes_with_other_tests(axes: Sequence[str], points: Sequence[GridPoint]) -> list[str]:
    """Returns the axes, whatever their names, along which the target's data or their splits differ."""
    found = []
    for axis in axes:
        tests: dict[tuple[str, ...], set[str]] = {}
        for point in points:
            data = point.config.data
            others = tuple(value for name, value in point.values.items() if name != axis)
            tests.setdefault(others, set()).add(f"{data.target} {data.test_fraction}")
        if axis not in REPLICATES and any(len(different) > 1 for different in tests.values()):
            found.append(axis)
    return found


def naming_order(axes: Iterable[str]) -> list[str]:
    """Returns axes in the order of names, however they were given: the strategy first, replicates last."""
    return sorted(axes, key=lambda axis: (axis in REPLICATES, axis != "strategy", axis))


def parse_overrides(loader: "ConfigLoader", params: dict[str, Any], arguments: Sequence[str]) -> SweepSpec:
    """Sorts the overrides of the configuration and of the command line, of which the latter win.

    Raises:
        hydra.errors.HydraException: for what cannot be parsed.
        UsageError: for an axis that all jobs must agree on.
    """
    lines = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    overrides = OverridesParser.create(loader).parse_overrides(lines)
    by_name = {override.get_key_element().lstrip("+~"): override for override in overrides}
    axes, fixed = [], []
    for name, override in by_name.items():
        key = override.get_key_element()
        if override.is_sweep_override():
            if name == "monitor" or name.startswith(("sweep.", "tracking", "hydra.")):
                reason = "decides how all jobs are compared or stored, so it cannot vary between them; give one value"
                raise UsageError(f"{name}: {reason}")
            values = tuple(override.sweep_string_iterator()) if override.is_discrete_sweep() else ()
            axes.append(Axis(name, key, values, override))
        else:
            fixed.append(override.input_line or f"{key}={override.get_value_element_as_str()}")
    return SweepSpec(tuple(axes), tuple(fixed))


def combinations(axes: Iterable[Axis]) -> list[dict[str, str]]:
    """Returns every combination of the axes' values, by key.

    Raises:
        UsageError: for an axis that has no values of its own.
    """
    axes = list(axes)
    for axis in axes:
        if not axis.values:
            remedy = "a grid needs values; give them, or add sweep.trials=20 to search"
            raise UsageError(f"{axis.override.input_line}: {remedy}")
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]
